"""Windows that slide along the channels themselves.

Efficient channel attention (ECA-Net, https://arxiv.org/abs/1910.03151) convolves a vector with one
number for each channel, local response normalisation pools over neighbouring channels. Such an
operation takes as many channels as come: it mixes them, as a softmax does, and what it puts out
belongs to the channel in the middle of its window. Where the window is one channel wide, as where a
convolution mixes tokens (gMLP), nothing is mixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from eslkit.graph.atoms import WILD, Atoms
from eslkit.graph.ops import Op
from eslkit.graph.values import flat, support

__all__ = ["slide"]


def slide(
    atoms: Atoms, op: Op, parts: Iterable[Tensor], kernel: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Hand on labels along an axis over which a window slides that keeps every channel.

    Args:
        atoms: what is known of the labels.
        op: a convolution or a pool.
        parts: labels of what it reads, with the rank of the result.
        kernel: the window's size along each of the last axes.

    Returns:
        Labels of the result along such axes, and the parts for which this does not hold.
    """
    slid: list[Tensor] = []
    others: list[Tensor] = []
    for part in parts:
        over = [axis for axis in support(part) if axis >= part.dim() - len(kernel)]
        made = _middle(atoms, op, part, kernel, over[0]) if len(over) == 1 else None
        if made is None:
            others.append(part)
            continue
        if kernel[over[0] - part.dim()] > 1:
            atoms.mix(flat(made), op.where)
        slid.append(made)
    return slid, others


def _middle(atoms: Atoms, op: Op, part: Tensor, kernel: Sequence[int], axis: int) -> Tensor | None:
    """What is in the middle of the window at each of its places; None where channels get lost."""
    first = part.dim() - len(kernel)
    size = kernel[axis - first]
    if op.args.get("transposed") or _number(op, "stride", axis - first, size) != 1:
        return None
    dilation, padding = (
        _number(op, name, axis - first, default)
        for name, default in (("dilation", 1), ("padding", 0))
    )
    start, length = dilation * (size // 2) - padding, op.shapes[0][axis]
    if start < 0 or start + length > part.shape[axis]:
        return None
    made = part.narrow(axis, start, length)
    lost = np.setdiff1d(flat(part), flat(made))
    filling = atoms.roles.get("filling", [])
    return made if np.isin(lost, np.concatenate([[WILD], *filling])).all() else None


def _number(op: Op, name: str, index: int, default: int) -> int:
    """What an argument says of one axis: it has a number for each, one for all, or is absent."""
    given = op.args.get(name)
    if given is None or given == []:
        return default
    numbers: Sequence[int] = given if isinstance(given, (list, tuple)) else (given,)
    return int(numbers[index if len(numbers) > 1 else 0])
