"""How one axis of one tensor comes from the axis before it: selected exactly, or mixed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["AxisMap", "ChannelMap", "Piece"]


@dataclass(frozen=True)
class ChannelMap:
    """One map of channels, told apart: a selection (exact, cheap), or a mixture."""

    matrix: Tensor
    """(new, old) float64."""
    index: Tensor | None
    """Old channel of each new one, -1 for a fresh one; None where channels are mixed."""
    scale: Tensor | None
    """Factor of each new channel; None where all are 1."""

    @staticmethod
    def of(matrix: Tensor) -> ChannelMap:
        """The map with this matrix (new, old)."""
        matrix = matrix.detach().to("cpu", torch.float64)
        taken = matrix != 0
        if (taken.sum(dim=1) > 1).any():
            return ChannelMap(matrix, None, None)
        index = torch.where(taken.any(dim=1), taken.int().argmax(dim=1), -1)
        scale = matrix.sum(dim=1)
        plain = bool(((scale == 1) | (index < 0)).all())
        return ChannelMap(matrix, index, None if plain else torch.where(index < 0, 1.0, scale))

    @property
    def fresh(self) -> Tensor:
        """Which new channels take nothing over."""
        return (self.matrix == 0).all(dim=1)

    @property
    def squared(self) -> ChannelMap:
        """The map of variances: every coefficient squared."""
        return ChannelMap.of(self.matrix.square())


@dataclass(frozen=True)
class Piece:
    """A stretch of an axis: `size` old positions from `start`, in blocks of `inner`."""

    start: int
    size: int
    inner: int = 1
    changes: tuple[ChannelMap, ...] = ()
    """None: all is kept. One: it maps whole blocks. Several: one for each position in a block."""

    @property
    def fresh(self) -> Tensor:
        """Which new positions take nothing over."""
        if not self.changes:
            return torch.zeros(self.size, dtype=torch.bool)
        each = torch.stack([change.fresh for change in self.changes], 1)
        return each.expand(-1, self.inner).flatten()


@dataclass(frozen=True)
class AxisMap:
    """How one axis of one tensor comes from the axis before."""

    pieces: tuple[Piece, ...]

    @property
    def fresh(self) -> Tensor:
        """Which new positions take nothing over."""
        return torch.cat([piece.fresh for piece in self.pieces])

    @property
    def exact(self) -> bool:
        """Whether every new position is one old position, or fresh: nothing is computed."""
        return all(
            change.index is not None and change.scale is None
            for piece in self.pieces
            for change in piece.changes
        )

    @property
    def squared(self) -> AxisMap:
        """The map of variances: every coefficient squared."""
        return AxisMap(
            tuple(
                Piece(p.start, p.size, p.inner, tuple(change.squared for change in p.changes))
                for p in self.pieces
            )
        )

    def apply(self, tensor: Tensor, axis: int) -> Tensor:
        """The tensor with this axis mapped; selections are exact, bit for bit."""
        return torch.cat([_apply(piece, tensor, axis) for piece in self.pieces], axis)


def _apply(piece: Piece, tensor: Tensor, axis: int) -> Tensor:
    part = tensor.narrow(axis, piece.start, piece.size)
    if not piece.changes:
        return part
    split = part.unflatten(axis, (piece.size // piece.inner, piece.inner))
    lanes = split.split(piece.inner // len(piece.changes), axis + 1)
    mapped = [_mapped(c, lane, axis) for c, lane in zip(piece.changes, lanes, strict=True)]
    return (torch.cat(mapped, axis + 1) if len(mapped) > 1 else mapped[0]).flatten(axis, axis + 1)


def _mapped(change: ChannelMap, tensor: Tensor, axis: int) -> Tensor:
    if change.index is None and (tensor.is_floating_point() or tensor.is_complex()):
        return _mixed(change.matrix, tensor, axis)
    index = change.index if change.index is not None else change.matrix.abs().argmax(dim=1)
    made = tensor.index_select(axis, index.clamp(min=0))
    if change.scale is not None and (tensor.is_floating_point() or tensor.is_complex()):
        view = [-1 if i == axis else 1 for i in range(made.dim())]
        made = (made.to(_wide(made)) * change.scale.reshape(view)).to(tensor.dtype)
    return made


def _mixed(matrix: Tensor, tensor: Tensor, axis: int) -> Tensor:
    wide = _wide(tensor)
    mixed = torch.tensordot(matrix.to(wide), tensor.movedim(axis, 0).to(wide), dims=1)
    return mixed.to(tensor.dtype).movedim(0, axis)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64
