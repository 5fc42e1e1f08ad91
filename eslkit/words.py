"""What a step does, in words: for tables, pictures and status lines."""

from __future__ import annotations

from eslkit.plan import LayerInfo, Plan, Step

__all__ = ["describe", "picture_before"]


def picture_before(step: Step, plan: Plan) -> tuple[LayerInfo, ...]:
    """The layers of the network that a step starts from.

    A whole schedule ends where it began, so the small model looks like the last network.
    """
    return plan.steps[step.index - 2].picture if step.index > 1 else plan.steps[-1].picture


def describe(step: Step, plan: Plan) -> str:
    """One line on what a step changes, such as `level 4: 512 to 256 (2 layers)`."""
    if step.phase == "expand":
        parts = [] if step.width in (None, 1) else [f"{step.width:g} times as wide"]
        if step.depth:
            parts.append(f"{step.depth} level{'s' if step.depth > 1 else ''} deeper")
        return "expand: " + (", ".join(parts) or "trained as it is")
    layers = f"{step.layers} layer{'s' if step.layers != 1 else ''}"
    if step.phase == "layers":
        return f"remove {layers}"
    changes = _width_changes(step, plan)
    return f"{changes} ({layers})" if changes else f"narrow {layers}"


def _width_changes(step: Step, plan: Plan) -> str:
    """The changes of the convolutions' widths by level, from the pictures; empty without them."""
    before = {layer.name: layer for layer in picture_before(step, plan)}
    changes: dict[int, list[str]] = {}
    for layer in step.picture:
        old = before.get(layer.name)
        if old is None or old.width == layer.width or layer.kind == "up":
            continue
        change = f"{old.width} to {layer.width}"
        known = changes.setdefault(layer.level, [])
        if change not in known:
            known.append(change)
    if len(changes) > 2:
        return f"narrow levels {', '.join(map(str, sorted(changes)))}"
    return "; ".join(f"level {level}: {', '.join(c)}" for level, c in sorted(changes.items()))
