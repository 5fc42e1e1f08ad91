"""`trace`, and the two directions in width and depth: `expand` and `shrink`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from eslkit.errors import InputError, ResizeError
from eslkit.graph.channels import ChannelGraph
from eslkit.graph.trace import check_model, trace_fully
from eslkit.surgery.depth import clone, deepen, flatten_step, inserted_at, inserted_levels
from eslkit.surgery.level import LevelBuilder
from eslkit.surgery.policies import Policy
from eslkit.surgery.resize import prepare_possible, scale
from eslkit.surgery.widths import scaled_widths

__all__ = ["expand", "shrink", "trace"]


def trace(
    model: nn.Module, *, example_inputs: Any = None, protect: Sequence[str] = ()
) -> ChannelGraph:
    """Find which channels of a model are coupled, and at which level they live.

    What is found is proved: all groups that the operations allow to be resized are doubled, and
    the model's own code is run at those widths, without memory or arithmetic. Groups with which it
    fails (a size is written into the code) are protected, with what it said as the reason.

    Args:
        model: any module; it is not touched.
        example_inputs: a tensor, a tuple of positional arguments, or a mapping of keyword
            arguments with which the model runs. Left out, it is inferred from the first layer.
        protect: names or patterns (`decoder.*`) of layers or parameters whose channels must stay,
            or names of channel groups.

    Returns:
        The channel graph: groups, widths, levels, skip connections, and why some groups are
        protected.

    Raises:
        TraceError: the model did not run on the inputs, or no inputs could be inferred.
        InputError: a pattern of `protect` matches nothing.

    Example:
        >>> import eslkit
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))
        >>> eslkit.trace(model).widths
        {'0': 8}
    """
    traced = trace_fully(model, example_inputs=example_inputs, protect=protect)
    try:
        proved, refused = prepare_possible(model, traced, scaled_widths(traced.graph, 2))
    except ResizeError as error:
        return traced.graph.protect(dict.fromkeys(traced.graph.widths, str(error)))
    return traced.graph.protect(refused).note(proved.numbers.groups)


def expand(
    model: nn.Module,
    *,
    width: float = 2,
    depth: int = 0,
    init: str | Policy = "random",
    example_inputs: Any = None,
    protect: Sequence[str] = (),
    divisor: int = 1,
    at: str | Sequence[str] | None = None,
    level: LevelBuilder | None = None,
) -> nn.Module:
    """A larger model of the same class (the paper's expand phase).

    Args:
        model: any encoder-decoder; it is not touched.
        width: multiplier of every resizable group's width, at least 1; 1 only deepens.
        depth: levels to insert into the bottleneck.
        init: "random" draws all weights afresh, "preserve" keeps the output, "first" and "last"
            put the old weights into a corner of the new ones; or a policy.
        example_inputs: as for `trace`.
        protect: as for `trace`.
        divisor: every resized axis gets a multiple of so many channels (8 suits many devices).
        at: where the level goes, one of `places_for_levels`; left out, into the bottleneck.
        level: what builds the level, in place of one made after the model's own innermost.

    Returns:
        The larger model. Groups that the model's own code refuses to resize keep their width,
        with a `ResizeWarning` that gives the reason.

    Raises:
        InputError: no model, a width below 1, a negative depth, or no such place.
        DepthError: a level cannot be inserted.
        TraceError: the model did not run on the example inputs.

    Example:
        >>> import eslkit, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))
        >>> eslkit.expand(model, width=2)[0]
        Conv2d(3, 16, kernel_size=(3, 3), stride=(1, 1))
    """
    check_model(model)
    _check_numbers("expand", width, depth)
    if width < 1:
        raise InputError(f"expand: width={width} is below 1; use shrink to make a model smaller")
    name = init if isinstance(init, str) else "random"
    deeper = deepen(
        model, levels=depth, init=name, at=at, level=level, example_inputs=example_inputs
    )
    if width == 1 and init != "random":
        return deeper
    return scale(
        deeper,
        width,
        init=init,
        example_inputs=example_inputs,
        protect=protect,
        divisor=divisor,
    )


def shrink(
    model: nn.Module,
    *,
    width: float = 0.5,
    depth: int = 0,
    init: str | Policy = "first",
    example_inputs: Any = None,
    protect: Sequence[str] = (),
    divisor: int = 1,
) -> nn.Module:
    """A smaller model of the same class (the paper's shrink phase, in one go).

    Args:
        model: any model; it is not touched.
        width: multiplier of every resizable group's width, at most 1; 1 only flattens.
        depth: -1 takes the innermost inserted level out, -2 two, and so on.
        init: which channels stay: "first", "last", "combined", or a policy.
        example_inputs: as for `trace`.
        protect: as for `trace`.
        divisor: as for `expand`.

    Returns:
        The smaller model; what could not be narrowed is named by a `ResizeWarning`.

    Raises:
        InputError: no model, a width above 1, or a positive depth.
        DepthError: fewer inserted levels than asked for.
    """
    check_model(model)
    _check_numbers("shrink", width, depth)
    if not 0 < width <= 1:
        raise InputError(f"shrink: width={width} must lie in (0, 1]; use expand to enlarge")
    if depth > 0:
        raise InputError(f"shrink: depth={depth} must not be positive; use expand to insert levels")
    made = model
    if width < 1:
        made = scale(
            model,
            width,
            init=init,
            example_inputs=example_inputs,
            protect=protect,
            divisor=divisor,
        )
    for _ in range(-depth):
        made, _ = flatten_step(made)
        levels = [inserted_at(made, name).level for name in inserted_levels(made)]
        if any(getattr(level, "flattened", False) for level in levels):
            made, _ = flatten_step(made)
    return clone(made) if made is model else made


def _check_numbers(call: str, width: object, depth: object) -> None:
    number = isinstance(width, (int, float)) and not isinstance(width, bool)
    if not number or not math.isfinite(width):  # type: ignore[arg-type]
        raise InputError(f"{call}: width={width!r} must be a finite number, such as 2 or 0.5")
    if not isinstance(depth, int) or isinstance(depth, bool):
        raise InputError(f"{call}: depth={depth!r} must be a whole number of levels")
