"""Large pictures through a network part by part, with the result of the whole.

Every part is cut with a halo as wide as the network looks, and on its pooling grid; what the halo
restores is thrown away. At the picture's own borders there is no halo: the network pads there as
it does with the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import torch
from torch import Tensor

from eslkit.errors import InputError
from eslkit_tsdn.reach import Reach

__all__ = ["Tiling", "pad_to_multiple", "plan_tiles", "run_tiled"]

_MOST_PARTS = 64
"""Along one side."""

Span = tuple[int, int, int, int]
"""Along one axis: where a part starts and ends, and where it does with its halo."""


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut."""

    rows: tuple[Span, ...]
    """The parts along the height."""
    columns: tuple[Span, ...]
    """The parts along the width."""

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[tuple[Span, Span]]:
        return ((row, column) for row in self.rows for column in self.columns)

    @property
    def num_pixels(self) -> int:
        """Pixels that the network is run on, halos included."""
        return sum(down - up for *_, up, down in self.rows) * sum(
            right - left for *_, left, right in self.columns
        )

    @property
    def largest(self) -> int:
        """Pixels of the largest part, its halo included."""
        return max(down - up for *_, up, down in self.rows) * max(
            right - left for *_, left, right in self.columns
        )


def plan_tiles(height: int, width: int, *, reach: Reach, max_pixels: int) -> Tiling:
    """Cuts a picture into parts of bounded size with as little overlap as there can be.

    Args:
        height: rows of the picture, a multiple of `reach.multiple`.
        width: columns, likewise.
        reach: of the network.
        max_pixels: pixels of a part at most, its halo included.

    Returns:
        The parts. Where none is small enough (a halo that is wider than memory allows), the
        smallest there are; the whole picture where the network looks at all of it.

    Raises:
        InputError: a side that is no multiple.
    """
    for name, side in (("height", height), ("width", width)):
        if side < 1 or side % reach.multiple:
            raise InputError(
                f"{name}={side} is no multiple of {reach.multiple}, the network's pooling grid; "
                "pad the picture with pad_to_multiple"
            )
    if reach.halo is None:
        return Tiling(((0, height, 0, height),), ((0, width, 0, width),))
    choices = list(product(_cuts(height, reach), _cuts(width, reach)))
    fitting = [(down, over) for down, over in choices if down.largest * over.largest <= max_pixels]
    if fitting:
        down, over = min(fitting, key=lambda cuts: (cuts[0].total * cuts[1].total, _num(*cuts)))
    else:
        down, over = min(choices, key=lambda cuts: (cuts[0].largest * cuts[1].largest, _num(*cuts)))
    return Tiling(down.spans, over.spans)


class _Cut(NamedTuple):
    """One way to cut a side."""

    spans: tuple[Span, ...]
    largest: int
    """Length of the longest part, with its halo."""
    total: int
    """Length of all parts, with their halos."""


def _num(down: _Cut, over: _Cut) -> int:
    return len(down.spans) * len(over.spans)


def _cuts(side: int, reach: Reach) -> list[_Cut]:
    """All ways to cut a side into parts of (nearly) equal length that are not mostly halo."""
    halo = reach.halo or 0
    blocks = side // reach.multiple
    most = min(_MOST_PARTS, blocks, max(1, side // max(2 * halo, 1)))
    ways: list[_Cut] = []
    for num_parts in range(1, most + 1):
        ends = [blocks * part // num_parts * reach.multiple for part in range(num_parts + 1)]
        spans = tuple(
            (start, end, max(0, start - halo), min(side, end + halo))
            for start, end in pairwise(ends)
        )
        lengths = [after - before for *_, before, after in spans]
        ways.append(_Cut(spans, max(lengths), sum(lengths)))
    return ways


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Reflects a picture at its lower and right border until its sides are multiples.

    Args:
        image: (..., height, width).
        multiple: what both sides are to be divisible by.

    Returns:
        (..., height', width') with the picture in its upper left corner.
    """
    for axis in (-2, -1):
        side = image.shape[axis]
        padded = -(-side // multiple) * multiple
        if padded > side:
            period = max(2 * (side - 1), 1)
            places = torch.arange(padded, device=image.device) % period
            image = image.index_select(
                axis, torch.minimum(places, period - places).clamp_(max=side - 1)
            )
    return image


def run_tiled(
    run: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    reach: Reach,
    max_pixels: int,
    advance: Callable[[int], None] | None = None,
) -> Tensor:
    """Runs a network on a picture part by part.

    Args:
        run: the network: (1, planes, height, width) to an image of the same height and width.
        image: (1, planes, height, width) of any size.
        reach: of the network.
        max_pixels: pixels of a part at most, its halo included.
        advance: called after every part with the number of the picture's pixels that it restored.

    Returns:
        What `run` makes of the whole picture, reflected to the network's grid, cropped back.
    """
    height, width = image.shape[-2:]
    padded = pad_to_multiple(image, reach.multiple)
    restored: Tensor | None = None
    tiling = plan_tiles(*padded.shape[-2:], reach=reach, max_pixels=max_pixels)
    for (top, bottom, up, down), (first, last, left, right) in tiling:
        part = run(padded[..., up:down, left:right])
        if restored is None:
            restored = part.new_empty((*part.shape[:-2], *padded.shape[-2:]))
        inner = part[..., top - up : bottom - up, first - left : last - left]
        restored[..., top:bottom, first:last] = inner
        if advance is not None:
            rows, columns = min(bottom, height) - top, min(last, width) - first
            advance(max(rows, 0) * max(columns, 0))
    assert restored is not None
    return restored[..., :height, :width]
