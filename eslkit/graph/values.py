"""What stands for a tensor while the graph runs on labels, and the few moves that rules share.

A `Value` holds no numbers. Its parts are label tensors: at each element, an atom that must be
kept for the element to be kept. A part has the full rank, and size 1 along every axis on which
it does not vary, so labels of large activations cost nothing. Most values have one part, along
the channel axis; a weight has two, and so has the map between channels of a transposed attention.
An axis longer than 1 along which no part varies has a fixed size (positions, batch, input
channels), unless the value is free: made by the code from nothing, to whatever size it needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eslkit.graph.atoms import WILD, Atoms, IntArray

__all__ = [
    "Value",
    "compact",
    "flat",
    "merge",
    "one_part",
    "pin",
    "pin_all",
    "support",
    "tidy",
    "unite",
]


@dataclass(frozen=True)
class Value:
    """A tensor's labels."""

    shape: tuple[int, ...]
    parts: tuple[Tensor, ...] = ()
    free: bool = False
    weight: bool = False
    """Computed from parameters and constants alone."""
    given: bool = False
    """An input of the model, at most moved about: its axes are fixed by whoever calls."""
    constant: bool = False
    """Made without parameters and without the model's input."""
    scales: bool = False
    """Multiplying what the labels name, and all that was added to it, multiplies this."""
    raw: bool = False
    """A parameter, at most moved about."""
    loose: frozenset[int] = frozenset()
    """Axes along which the code repeats one number, to whatever length it needs."""
    counted: bool = False
    """Made of numbers that depend on how many there are (arange, linspace)."""
    mask: bool = False
    """True or false: as an index it picks over as many axes as it has."""

    def part_on(self, axis: int) -> Tensor | None:
        """The first part that varies along `axis`."""
        return next((part for part in self.parts if part.shape[axis] > 1), None)


def support(part: Tensor) -> frozenset[int]:
    """The axes along which a part varies."""
    return frozenset(axis for axis, size in enumerate(part.shape) if size > 1)


def flat(part: Tensor) -> IntArray:
    """A part's labels as one numpy row."""
    return part.reshape(-1).numpy()


def compact(atoms: Atoms, part: Tensor) -> Tensor:
    """Size 1 along axes without variation, up to unions.

    The labels themselves stay as they are, so that it stays visible which parameter axis they
    came from.
    """
    for axis, size in enumerate(part.shape):
        if size > 1 and part.stride(axis) == 0:
            part = part.narrow(axis, 0, 1)
    varying = [axis for axis, size in enumerate(part.shape) if size > 1]
    if len(varying) == 1:  # nearly all of them
        row = atoms.find(flat(part))
        return part.narrow(varying[0], 0, 1) if (row == row[:1]).all() else part
    roots = torch.from_numpy(atoms.find(part.numpy()))
    for axis, size in enumerate(part.shape):
        if size > 1:
            first = roots.narrow(axis, 0, 1)
            if bool((roots == first).all()):
                roots, part = first, part.narrow(axis, 0, 1)
    return part


def tidy(atoms: Atoms, parts: Iterable[Tensor], where: str) -> tuple[Tensor, ...]:
    """Compact parts; one that has become a single label was picked by index, and must stay."""
    kept: list[Tensor] = []
    for part in parts:
        small = compact(atoms, part)
        if support(small):
            kept.append(small)
        else:
            atoms.fix(flat(small), f"a single channel is picked out by {where}")
    return tuple(kept)


def pin(atoms: Atoms, part: Tensor, axis: int, reason: str) -> Tensor | None:
    """Make an axis of a part unresizable: None where nothing else is left to vary."""
    if part.shape[axis] == 1:
        return part
    if support(part) == {axis}:
        atoms.fix(flat(part), reason)
        return None
    known = (part != WILD).int().argmax(axis, keepdim=True)
    one = part.gather(axis, known)  # the first label that is not WILD
    atoms.union(flat(one.expand_as(part)), flat(part))
    small = compact(atoms, one)
    if support(small):
        return small
    atoms.fix(flat(small), reason)
    return None


def pin_all(
    atoms: Atoms, parts: Iterable[Tensor], axes: Iterable[int], reason: str
) -> list[Tensor]:
    """Pin several axes of several parts; the parts that are left."""
    axes = tuple(axes)
    kept: list[Tensor] = []
    for part in parts:
        current: Tensor | None = part
        for axis in axes:
            if current is not None:
                current = pin(atoms, current, axis, reason)
        if current is not None:
            kept.append(current)
    return kept


def blocks(parts: Iterable[Tensor]) -> list[frozenset[int]]:
    """Axes joined where a part varies along several of them."""
    joined: list[frozenset[int]] = []
    for part in parts:
        axes = support(part)
        touching = [block for block in joined if block & axes]
        joined = [block for block in joined if not block & axes]
        joined.append(axes.union(*touching))
    return joined


def pad_rank(part: Tensor, rank: int) -> Tensor:
    """Leading axes of size 1, as broadcasting adds them."""
    return part.reshape((1,) * (rank - part.dim()) + tuple(part.shape))


def merge(
    atoms: Atoms,
    values: Sequence[Value],
    shape: tuple[int, ...],
    where: str,
    *,
    added: bool = False,
) -> tuple[Tensor, ...]:
    """Unite the labels that meet where `values` are broadcast to `shape`.

    A value of size 1 along an axis is repeated along it and says nothing about its channels; one
    that is longer there but has no labels has a fixed size, which then holds for all.
    """
    rank = len(shape)
    padded = [[pad_rank(compact(atoms, p), rank) for p in value.parts] for value in values]
    sizes = [(1,) * (rank - len(value.shape)) + value.shape for value in values]
    result: list[Tensor] = []
    for block in blocks(part for parts in padded for part in parts):
        own = [one_part(atoms, [p for p in parts if support(p) & block], where) for parts in padded]
        if any(len(parts) > 1 for parts in own):
            reason = f"{where} joins axes that are labelled apart"
            pinned = [pin_all(atoms, parts, sorted(block)[:-1], reason) for parts in own]
            own, block = [one_part(atoms, parts, where) for parts in pinned], {max(block)}
        bare = [
            (value, axis)
            for value, parts, size in zip(values, own, sizes, strict=True)
            if not parts
            for axis in block
            if size[axis] > 1 and axis - rank + len(value.shape) not in value.loose
        ]
        fixed = {axis: value.given for value, axis in bare if not value.free}
        present = [parts[0] for parts in own if parts]
        reason = f"{where} meets a tensor whose size there is fixed"
        if any(fixed.values()):
            reason = "the model's input"
        present = pin_all(atoms, present, sorted(fixed), reason)
        if present:
            result.append(unite(atoms, present, added=added))
            if added and all(value.weight for value in values):
                atoms.twins += [(flat(result[-1]), flat(p.expand_as(result[-1]))) for p in present]
        if present and any(value.counted for value, _ in bare):
            atoms.mix(flat(result[-1]), f"{where}, which counts them")
    return tidy(atoms, result, where)


def one_part(atoms: Atoms, parts: list[Tensor], where: str) -> list[Tensor]:
    """Of parts along one axis (flattened ones), the longest: the others are then fixed."""
    if len({support(part) for part in parts}) != 1:
        return parts
    counts = [len(set(flat(part).tolist())) for part in parts]
    chosen = counts.index(max(counts))
    for part in parts[:chosen] + parts[chosen + 1 :]:
        atoms.fix(flat(part), f"{where} flattens it together with channels")
    return [parts[chosen]]


def unite(atoms: Atoms, parts: Sequence[Tensor], *, added: bool = False) -> Tensor:
    """Unite parts element by element, broadcasting; the label of the result."""
    if len(parts) == 1:
        return parts[0]
    wide = torch.broadcast_tensors(*parts)
    result = wide[0]
    for part in wide[1:]:
        atoms.union(flat(result), flat(part))
        if added:
            atoms.sums.append((flat(result), flat(part)))
        result = torch.where(result == WILD, part, result)
    return result
