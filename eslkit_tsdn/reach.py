"""How far a network looks: found by running it, whatever it is made of.

One row of the input is NaN. Through any chain of operations NaN reaches exactly those outputs
that depend on it, whatever the weights are. Convolutions are run on one channel with a kernel of
ones: where they look is the same for all channels, and it costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from eslkit.errors import EslError, InputError

__all__ = ["Reach", "measure_reach"]

_MAX_MULTIPLE = 64
_MAX_SIDE = 2048


@dataclass(frozen=True)
class Reach:
    """What a picture must be cut by, so that parts of it are restored as in the whole."""

    multiple: int
    """Sides must be multiples of this, and parts begin at multiples of it: the pooling grid."""
    halo: int | None
    """Pixels beyond a part, a multiple of `multiple`, that its own pixels depend on at most;
    None where every output depends on the whole picture."""


def measure_reach(network: nn.Module, *, planes: int = 4) -> Reach:
    """Finds the pooling grid of a network, and how far it looks.

    Args:
        network: takes (batch, planes, height, width) and gives one image of the same height and
            width in inference. It is not touched.
        planes: planes of its input.

    Returns:
        The multiple and the halo, for heights and widths alike.

    Raises:
        InputError: the network runs at none of the sizes that were tried.
    """
    training = network.training
    network.eval()
    try:
        multiple = _accepted_multiple(network, planes)
        side = 128
        while side <= _MAX_SIDE and multiple <= _MAX_MULTIPLE:
            found = [_fields(network, planes, multiple, side, axis) for axis in (2, 3)]
            fields = [each for each in found if each is not None]
            if len(fields) < len(found):
                side *= 2
            elif all(each[:multiple] == each[multiple:] for each in fields):
                return Reach(multiple, max(_halo(each, multiple) for each in fields))
            else:
                multiple *= 2
        return Reach(min(multiple, _MAX_MULTIPLE), None)
    finally:
        network.train(training)


def _accepted_multiple(network: nn.Module, planes: int) -> int:
    """The smallest power of two whose multiples the network runs on."""
    problem: Exception | None = None
    multiple = 1
    while multiple <= _MAX_MULTIPLE:
        side = 2 * _MAX_MULTIPLE + multiple  # divisible by `multiple`, and by no larger power
        try:
            if _run(network, torch.zeros(1, planes, side, side)).shape[-2:] == (side, side):
                return multiple
        except (EslError, RuntimeError, ValueError, AssertionError) as error:
            problem = error
        multiple *= 2
    raise InputError(
        f"This {type(network).__name__} gives no image of its input's size for (1, {planes}, side, "
        f"side), for no side that is a multiple of 1, 2, 4 ... {_MAX_MULTIPLE}"
        + (f": {problem}" if problem else ".")
    ) from problem


Fields = tuple[tuple[int, int], ...]
"""For every input row of a period: how many rows before and behind it feel it."""


def _fields(network: nn.Module, planes: int, multiple: int, side: int, axis: int) -> Fields | None:
    """Which outputs feel each row (axis 2) or column (axis 3); None where the field is cut off.

    Two periods are measured: a network that takes any size may pool all the same.
    """
    rows = [side // 2 // multiple * multiple + phase for phase in range(2 * multiple)]
    length = -(-side // multiple) * multiple + 2 * multiple
    shape = [len(rows), planes, multiple, multiple]
    shape[axis] = length
    x = torch.zeros(shape)
    for index, row in enumerate(rows):
        x[index].select(axis - 1, row).fill_(torch.nan)
    felt = _run(network, x).isnan().any(dim=1).any(dim=4 - axis)
    fields: list[tuple[int, int]] = []
    for row, hits in zip(rows, felt, strict=True):
        places = hits.nonzero().flatten()
        if not len(places) or places[0] == 0 or places[-1] == length - 1:
            return None
        fields.append((row - int(places[0]), int(places[-1]) - row))
    return tuple(fields)


def _halo(fields: Fields, multiple: int) -> int:
    """How far beyond a part, which begins and ends on the grid, its outputs are felt from."""
    furthest = max(max(field) for field in fields)
    felt = [
        distance
        for distance in range(1, furthest + 1)
        if fields[-distance % multiple][1] >= distance
        or fields[(distance - 1) % multiple][0] >= distance
    ]
    return -(-max(felt, default=0) // multiple) * multiple


def _run(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), _OneChannel():
        y: object = network(x.to(next(network.parameters(), x).device))
    if not isinstance(y, Tensor) or y.ndim != 4:
        raise InputError(
            f"This {type(network).__name__} gives a {type(y).__name__} in inference; expected one "
            "image, (batch, planes, height, width)."
        )
    return y.cpu()


class _OneChannel(TorchDispatchMode):
    """Runs every convolution on the sum of its channels, with a kernel of ones."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not torch.ops.aten.convolution.default:
            return func(*args, **(kwargs or {}))
        x, weight, _, stride, padding, dilation, transposed, output_padding, groups = args
        expected = weight.shape[0] if transposed else weight.shape[1] * groups
        if x.shape[1] != expected:
            raise InputError(f"a convolution expected {expected} planes and got {x.shape[1]}")
        ones = weight.new_ones((1, 1, *weight.shape[2:]))
        made = func(
            x.sum(1, keepdim=True),
            ones,
            None,
            stride,
            padding,
            dilation,
            transposed,
            output_padding,
            1,
        )
        planes = weight.shape[1] * groups if transposed else weight.shape[0]
        return made.expand(-1, planes, *made.shape[2:])
