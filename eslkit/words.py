"""What a step does, in words: for tables, pictures and status lines."""

from __future__ import annotations

from eslkit.plan import LayerInfo, Plan, Step

__all__ = ["describe", "mebibytes", "picture_before", "picture_of_model"]


def picture_of_model(plan: Plan) -> tuple[LayerInfo, ...]:
    """The layers of the small model; a whole schedule leaves it as its last network."""
    return plan.picture or plan.steps[-1].picture


def picture_before(step: Step, plan: Plan) -> tuple[LayerInfo, ...]:
    """The layers of the network that a step starts from."""
    if step.index > 1:
        return plan.steps[step.index - 2].picture
    return picture_of_model(plan) if plan.source is None else plan.source.picture


def mebibytes(count: int | None) -> str:
    """Bytes as `12.3` MiB; `?` where they are not known."""
    if count is None:
        return "?"
    number = count / 2**20
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}"


def describe(step: Step, plan: Plan) -> str:
    """One line on what a step changes, such as `level 4: 512 to 256 (2 layers)`."""
    if step.phase == "expand":
        return _expansion(step, plan)
    layers = f"{step.layers} layer{'s' if step.layers != 1 else ''}"
    if step.phase == "layers":
        return f"remove {layers}"
    if step.phase == "both":
        gone = len(step.removed)
        return f"narrow {step.layers - gone} layers, remove {gone}"
    changes = _width_changes(step, plan)
    return f"{changes} ({layers})" if changes else f"narrow {layers}"


def _expansion(step: Step, plan: Plan) -> str:
    multiplier = plan.width if step.width is None else step.width
    parts: list[str] = []
    if isinstance(multiplier, dict):
        parts.append(f"{min(multiplier.values()):g} to {max(multiplier.values()):g} times as wide")
    elif multiplier != 1:
        parts.append(f"{multiplier:g} times as wide")
    if step.depth:
        parts.append(f"{step.depth} level{'s' if step.depth > 1 else ''} deeper")
    if not parts:
        start = "from random weights" if step.init == "random" else "as it is"
        return f"train it {start}{', its layers larger inside' if plan.linear else ''}"
    return "expand: " + ", ".join(parts)


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
