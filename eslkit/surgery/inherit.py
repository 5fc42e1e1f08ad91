"""Weights carried over through a policy's maps, and from one model into another."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from eslkit.errors import ResizeError
from eslkit.surgery.policies import GroupChange, Policy
from eslkit.surgery.sizes import Sizes

__all__ = ["AxisMap", "axis_maps", "carry", "named_tensors", "refresh"]


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by qualified name; tied ones once, by their first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@dataclass(frozen=True)
class _Map:
    """One group's map, told apart: a selection (exact, cheap), or a mixture."""

    matrix: Tensor
    """(new, old) float64."""
    index: Tensor | None
    """Old channel of each new one, -1 for a fresh one; None where channels are mixed."""
    scale: Tensor | None
    """Factor of each new channel; None where all are 1."""

    @staticmethod
    def of(matrix: Tensor) -> _Map:
        matrix = matrix.to(torch.float64)
        taken = matrix != 0
        if (taken.sum(dim=1) > 1).any():
            return _Map(matrix, None, None)
        index = torch.where(taken.any(dim=1), taken.int().argmax(dim=1), -1)
        scale = matrix.sum(dim=1)
        plain = bool(((scale == 1) | (index < 0)).all())
        return _Map(matrix, index, None if plain else torch.where(index < 0, 1.0, scale))

    @property
    def fresh(self) -> Tensor:
        """Which new channels take nothing over."""
        return (self.matrix == 0).all(dim=1)


@dataclass(frozen=True)
class _Piece:
    """A stretch of an axis: `size` old positions from `start`, kept, or mapped by a group."""

    start: int
    size: int
    inner: int = 1
    change: _Map | None = None


@dataclass(frozen=True)
class AxisMap:
    """How one axis of one tensor comes from the axis before."""

    pieces: tuple[_Piece, ...]

    @property
    def fresh(self) -> Tensor:
        """Which new positions take nothing over."""
        return torch.cat(
            [
                piece.change.fresh.repeat_interleave(piece.inner)
                if piece.change is not None
                else torch.zeros(piece.size, dtype=torch.bool)
                for piece in self.pieces
            ]
        )

    def apply(self, tensor: Tensor, axis: int) -> Tensor:
        """The tensor with this axis mapped; selections are exact, bit for bit."""
        return torch.cat([_apply(piece, tensor, axis) for piece in self.pieces], axis)


def _apply(piece: _Piece, tensor: Tensor, axis: int) -> Tensor:
    part = tensor.narrow(axis, piece.start, piece.size)
    change = piece.change
    if change is None:
        return part
    split = part.unflatten(axis, (piece.size // piece.inner, piece.inner))
    if change.index is None:
        mixed = torch.tensordot(change.matrix, split.movedim(axis, 0).to(torch.float64), dims=1)
        return mixed.to(tensor.dtype).movedim(0, axis).flatten(axis, axis + 1)
    made = split.index_select(axis, change.index.clamp(min=0))
    if change.scale is not None:
        view = [-1 if i == axis else 1 for i in range(made.dim())]
        made = (made.to(torch.float64) * change.scale.reshape(view)).to(tensor.dtype)
    return made.flatten(axis, axis + 1)


def axis_maps(
    sizes: Sizes, tensors: Mapping[str, Tensor], policy: Policy
) -> dict[tuple[str, int], AxisMap]:
    """(tensor, axis) -> its map, for every axis that changes.

    Raises:
        ResizeError: the policy gave maps of the wrong shape, or that are not finite.
    """
    maps: dict[str, tuple[_Map, _Map]] = {}
    for change in sizes.changes:
        group = change.group
        made = policy(GroupChange(group, group.width, change.new, tensors))
        for matrix in (made.producer, made.consumer):
            if tuple(matrix.shape) != (change.new, group.width) or not matrix.isfinite().all():
                raise ResizeError(
                    f"the init policy gave a map of shape {tuple(matrix.shape)} for group "
                    f"{group.name}; expected finite numbers of shape {(change.new, group.width)}"
                )
        maps[group.name] = (_Map.of(made.producer), _Map.of(made.consumer))
    return {
        (name, axis): _axis_map(sizes, (name, axis), tensors[name].shape[axis], maps)
        for name, axis in sizes.spans
    }


def _axis_map(
    sizes: Sizes, key: tuple[str, int], old: int, maps: Mapping[str, tuple[_Map, _Map]]
) -> AxisMap:
    pieces: list[_Piece] = []
    position = 0
    for span, change in sizes.spans[key]:
        if span.start > position:
            pieces.append(_Piece(position, span.start - position))
        size = change.group.width * span.inner
        chosen = maps[change.group.name][span.role == "consumer"]
        pieces.append(_Piece(span.start, size, span.inner, chosen))
        position = span.start + size
    if old > position:
        pieces.append(_Piece(position, old - position))
    return AxisMap(tuple(pieces))


def carry(
    tensors: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    maps: Mapping[tuple[str, int], AxisMap],
) -> dict[str, Tensor]:
    """New values of every tensor: mapped along its changed axes, fresh where nothing is mapped.

    Args:
        tensors: values of the network before.
        fresh: tensors of the new shapes, freshly initialised.
        maps: as `axis_maps` gives them.
    """
    made: dict[str, Tensor] = {}
    for name, old in tensors.items():
        value = old.detach()
        untouched = torch.zeros((1,) * value.dim(), dtype=torch.bool)
        for axis in range(value.dim()):
            axis_map = maps.get((name, axis))
            if axis_map is None:
                continue
            value = axis_map.apply(value.cpu(), axis)
            view = [-1 if i == axis else 1 for i in range(value.dim())]
            untouched = untouched | axis_map.fresh.reshape(view)
        if untouched.any():
            value = torch.where(untouched, fresh[name].to(value.dtype).cpu(), value.cpu())
        made[name] = value.to(old.device)
    return made


def refresh(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Initialise a model's tensors afresh; the model is changed, the global RNG moves on.

    Layers that have `reset_parameters` are given to it. A parameter that no such layer holds is
    drawn from a normal distribution with the mean and standard deviation of the tensor before (a
    constant stays that constant). Buffers repeat what the model had before.
    """
    for name, parameter in model.named_parameters():
        old = before[name].detach().float()
        spread = float(old.std()) if old.numel() > 1 else 0.0
        with torch.no_grad():
            parameter.normal_(float(old.mean()), spread) if spread else parameter.fill_(
                float(old.mean())
            )
    for name, buffer in model.named_buffers():
        buffer.copy_(_repeated(before[name].detach(), tuple(buffer.shape)))
    for module in model.modules():
        for reset in _resets(module):
            reset()


def _resets(module: nn.Module) -> Iterator[Any]:
    if parametrize.is_parametrized(module) or hasattr(module, "weight_g"):
        return
    for name in ("reset_parameters", "_reset_parameters"):
        reset = getattr(module, name, None)
        if callable(reset) and next(module.parameters(recurse=False), None) is not None:
            yield reset
            return


def _repeated(old: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor repeated or cut along every axis to a new shape."""
    for axis, size in enumerate(shape):
        if old.shape[axis] != size:
            old = old.index_select(axis, torch.arange(size, device=old.device) % old.shape[axis])
    return old


def copy_into(target: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `target` with these values."""
    made = copy.deepcopy(target)
    own = named_tensors(made)
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)
    return made
