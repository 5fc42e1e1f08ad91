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
from eslkit.surgery.policies import GroupChange, Maps, Policy
from eslkit.surgery.sizes import Sizes

__all__ = ["AxisMap", "axis_maps", "carry", "named_tensors", "refresh"]


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by qualified name; tied ones once, by their first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@dataclass(frozen=True)
class AxisMap:
    """How one axis of one tensor comes from the axis before."""

    matrix: Tensor
    """(new, old) float64."""
    index: Tensor | None
    """Old position of each new one, -1 for a fresh one; None where positions are mixed."""
    scale: Tensor | None
    """Factor of each new position; None where all are 1."""

    @property
    def fresh(self) -> Tensor:
        """Which new positions take nothing over."""
        return (self.matrix == 0).all(dim=1)

    def apply(self, tensor: Tensor, axis: int) -> Tensor:
        """The tensor with this axis mapped; selections are exact, bit for bit."""
        if self.index is None:
            moved = tensor.movedim(axis, 0)
            mixed = torch.tensordot(self.matrix, moved.to(torch.float64), dims=1)
            return mixed.to(tensor.dtype).movedim(0, axis)
        made = tensor.index_select(axis, self.index.clamp(min=0))
        if self.scale is not None:
            view = [-1 if i == axis else 1 for i in range(tensor.dim())]
            made = (made.to(torch.float64) * self.scale.reshape(view)).to(tensor.dtype)
        return made


def axis_maps(
    sizes: Sizes, tensors: Mapping[str, Tensor], policy: Policy
) -> dict[tuple[str, int], AxisMap]:
    """(tensor, axis) -> its map, for every axis that changes.

    Raises:
        ResizeError: the policy gave maps of the wrong shape, or that are not finite.
    """
    maps: dict[str, Maps] = {}
    for change in sizes.changes:
        group = change.group
        made = policy(GroupChange(group, group.width, change.new, tensors))
        for matrix in (made.producer, made.consumer):
            if tuple(matrix.shape) != (change.new, group.width) or not matrix.isfinite().all():
                raise ResizeError(
                    f"the init policy gave a map of shape {tuple(matrix.shape)} for group "
                    f"{group.name}; expected finite numbers of shape {(change.new, group.width)}"
                )
        maps[group.name] = made
    return {key: _axis_map(sizes, key, tensors, maps) for key in sizes.spans}


def _axis_map(
    sizes: Sizes,
    key: tuple[str, int],
    tensors: Mapping[str, Tensor],
    maps: Mapping[str, Maps],
) -> AxisMap:
    name, axis = key
    old = tensors[name].shape[axis]
    pieces: list[Tensor] = []
    columns: list[int] = []
    position = 0
    for span, change in sizes.spans[key]:
        keep = span.start - position
        pieces.append(torch.eye(keep, dtype=torch.float64))
        columns.append(position)
        made = maps[change.group.name]
        matrix = made.consumer if span.role == "consumer" else made.producer
        matrix = matrix.to(torch.float64)
        pieces.append(torch.kron(matrix, torch.eye(span.inner, dtype=torch.float64)))
        columns.append(span.start)
        position = span.start + change.group.width * span.inner
    pieces.append(torch.eye(old - position, dtype=torch.float64))
    columns.append(position)
    rows = sum(piece.shape[0] for piece in pieces)
    matrix = torch.zeros(rows, old, dtype=torch.float64)
    row = 0
    for piece, column in zip(pieces, columns, strict=True):
        matrix[row : row + piece.shape[0], column : column + piece.shape[1]] = piece
        row += piece.shape[0]
    return _as_selection(matrix)


def _as_selection(matrix: Tensor) -> AxisMap:
    taken = matrix != 0
    if (taken.sum(dim=1) > 1).any():
        return AxisMap(matrix, None, None)
    index = torch.where(taken.any(dim=1), taken.int().argmax(dim=1), -1)
    scale = matrix.sum(dim=1)
    plain = bool(((scale == 1) | (index < 0)).all())
    return AxisMap(matrix, index, None if plain else scale)


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
