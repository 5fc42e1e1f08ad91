"""Rules of operations that only move data: they are executed on the labels themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from eslkit.graph.atoms import WILD, Atoms
from eslkit.graph.ops import Op, Parts, dims_of, protect
from eslkit.graph.values import Value, compact, flat, merge, one_part, pin_all, support, tidy

__all__ = ["MOVES", "concatenate", "move", "pad", "pick", "scatter_slice", "write"]

_AS_RESHAPE = {"view", "_unsafe_view", "reshape"}


def execute(op: Op, part: Tensor) -> list[Tensor]:
    """Run the operation on a part in place of its first tensor; index tensors become zeros."""
    call = dict(op.args)
    first = next(name for name, arg in call.items() if isinstance(arg, Value))
    for name, arg in call.items():
        call[name] = [_zeros(item) for item in arg] if isinstance(arg, list) else _zeros(arg)
    call[first] = part.expand(op.args[first].shape)
    if op.name in _AS_RESHAPE:
        return [call[first].reshape(call["size" if "size" in call else "shape"])]
    if op.name == "as_strided":
        return [_restrided(call[first], call["size"], call["stride"])]
    made = op.target(**call)
    return [made] if isinstance(made, Tensor) else list(made)


def _zeros(arg: Any) -> Any:
    return torch.zeros(arg.shape, dtype=torch.int64) if isinstance(arg, Value) else arg


def _restrided(x: Tensor, size: Sequence[int], stride: Sequence[int]) -> Tensor:
    """as_strided, where it only tells again how a tensor lies in memory."""
    steps = [step for step, count in zip(stride, size, strict=True) if count > 1]
    if tuple(size) != tuple(x.shape) or sorted(steps, reverse=True) != steps:
        raise ValueError("it reads memory in another order")
    return x


def move(atoms: Atoms, op: Op) -> list[Value]:
    """view, permute, slice, split, roll, pixel_shuffle ...: the labels move as the data do."""
    outs: list[list[Tensor]] = [[] for _ in op.shapes]
    for part in op.x.parts:
        before = support(part)
        moved = execute(op, part)
        _note_cuts(atoms, op, part, moved)
        if op.name.endswith("channel_shuffle") and part.shape[1] > 1:
            _note_split(atoms, part.unflatten(1, (int(op.args["groups"]), -1)))
        for out, piece in zip(outs, moved, strict=False):
            out.extend(tidy(atoms, [piece], op.where))
            if len(before) < len(support(out[-1]) if out else ()):
                _note_split(atoms, out[-1])
    made = [op.result(parts, i, free=op.x.free) for i, parts in enumerate(outs)]
    if not op.x.loose or any(value.loose for value in made):
        return made
    return [
        replace(value, loose=loose) for value, loose in zip(made, _moved_loose(op), strict=True)
    ]


def _moved_loose(op: Op) -> list[frozenset[int]]:
    """The axes of each result along which the code repeats one number.

    They are those that no other axis of the tensor was moved to.
    """
    loose = [{axis for axis, size in enumerate(shape) if size > 1} for shape in op.shapes]
    for axis, size in enumerate(op.x.shape):
        if size == 1 or axis in op.x.loose:
            continue
        row = torch.arange(size).reshape([size if i == axis else 1 for i in range(len(op.x.shape))])
        for left, moved in zip(loose, execute(op, row), strict=True):
            left -= {a for a in left if bool((moved != moved.narrow(a, 0, 1)).any())}
    return [frozenset(left) for left in loose]


def _note_split(atoms: Atoms, part: Tensor) -> None:
    """A view lays an axis out along several."""
    axis = min(support(part))
    atoms.splits.append(part)
    atoms.partitions.append(part.movedim(axis, 0).reshape(part.shape[axis], -1).numpy())


def _note_cuts(atoms: Atoms, op: Op, part: Tensor, moved: Parts) -> None:
    """A part of an axis that the code takes apart from the rest keeps its own count."""
    axis = op.args.get("dim")
    if not isinstance(axis, int) or op.name not in _CUTS:
        return
    axis %= part.dim()
    if part.shape[axis] == 1:
        return
    pieces = [flat(compact(atoms, piece)) for piece in moved]
    if len(pieces) == 1 and pieces[0].size >= part.numel():
        return
    atoms.set_marks(pieces)
    if len(pieces) > 1 and len({piece.size for piece in pieces}) == 1:
        atoms.partitions.append(torch.stack([torch.from_numpy(p) for p in pieces]).numpy())


_CUTS = {"slice", "split", "split_with_sizes", "narrow", "select", "unbind", "chunk"}
MOVES = (
    _CUTS
    | _AS_RESHAPE
    | set(
        """permute transpose t squeeze unsqueeze expand flip roll repeat pixel_shuffle alias
    pixel_unshuffle channel_shuffle clone detach lift_fresh_copy lift_fresh as_strided contiguous
    movedim unfold diagonal tril triu repeat_interleave view_copy expand_copy numpy_T mT adjoint
    squeeze_copy slice_copy select_copy swapaxes unsafe_split unsafe_split_with_sizes rot90
    native_channel_shuffle""".split()
    )
)


def pick(atoms: Atoms, op: Op) -> list[Value]:
    """x[i, j], gather, embedding ...: the axes picked from cannot resize, the others are kept."""
    picked, *indices = op.values
    _fix_indices(atoms, indices, op.where)
    executed = op
    if "indices" in op.args and isinstance(op.args["indices"], list):
        found = _indexed(op.args["indices"])
        axes, last = found.axes, op.shapes[0][found.at + found.rank - 1 :][:1]
        plain = [i for index in op.args["indices"] for i in _unmasked(index, last)]
        executed = replace(op, args={**op.args, "indices": plain})
    else:
        axes = (0 if op.name == "embedding" else dims_of(op, len(picked.shape))[0],)
    parts = pin_all(atoms, picked.parts, axes, f"{op.where} picks positions by index")
    return [op.result(tidy(atoms, [execute(executed, part)[0] for part in parts], op.where))]


def _fix_indices(atoms: Atoms, indices: Sequence[Any], where: str) -> None:
    for part in (p for index in indices if isinstance(index, Value) for p in index.parts):
        atoms.fix(flat(part), f"{where} uses it as an index")


@dataclass(frozen=True)
class _Indexed:
    """What x[i, j ...] picks over."""

    axes: tuple[int, ...]
    """Axes of x that are picked from."""
    at: int
    """The first axis of the result that is as long as the indices are; the others stand around."""
    rank: int
    """How many such axes there are."""


def _indexed(indices: Sequence[Any]) -> _Indexed:
    axes: list[int] = []
    axis = rank = 0
    for index in indices:
        taken = len(index.shape) if isinstance(index, Value) and index.mask else 1
        if isinstance(index, Value):
            axes += range(axis, axis + taken)
            rank = max(rank, 1 if index.mask else len(index.shape))
        axis += taken
    if not axes:
        raise ValueError("it picks over no axis")
    together = axes[-1] - axes[0] == len(axes) - 1
    return _Indexed(tuple(axes), axes[0] if together else 0, rank)


def _unmasked(index: Any, length: Sequence[int]) -> list[Any]:
    """An index as torch takes it: a mask is a row of numbers for each of its axes."""
    if not isinstance(index, Value) or not index.mask:
        return [index]
    return [Value(tuple(length))] * len(index.shape)


def concatenate(atoms: Atoms, op: Op) -> list[Value]:
    """cat: labels side by side; a tensor of fixed size adds channels that must stay."""
    values = [value for value in op.args["tensors"] if 0 not in value.shape] or [op.x]
    if len(values) == 1:
        return [op.result(values[0].parts, free=values[0].free)]
    return [op.result(_join(atoms, values, dims_of(op, len(op.shapes[0]))[0], op.where))]


def _join(atoms: Atoms, values: Sequence[Value], axis: int, where: str) -> list[Tensor]:
    """The parts of tensors that are laid end to end along an axis."""
    rank = len(values[0].shape)
    others: list[Value] = []
    for value in values:
        keep = tuple(p for p in value.parts if axis not in support(p))
        shape = tuple(1 if i == axis else size for i, size in enumerate(value.shape))
        others.append(Value(shape, keep, free=value.free))
    result = list(merge(atoms, others, others[0].shape, where))
    along = [one_part(atoms, [p for p in v.parts if axis in support(p)], where) for v in values]
    if any(len(parts) > 1 for parts in along):
        for part in (p for parts in along for p in parts):
            atoms.fix(flat(part), f"{where} joins axes that are labelled apart")
    elif any(along):
        axes = set[int]().union(*(support(p) for parts in along for p in parts))
        pieces: list[Tensor] = []
        for value, parts in zip(values, along, strict=True):
            want = [value.shape[i] if i in axes else 1 for i in range(rank)]
            pieces.append(parts[0].expand(want) if parts else _unlabelled(atoms, value, axis, want))
        result.extend(tidy(atoms, [torch.cat(pieces, axis)], where))
    return result


def _unlabelled(atoms: Atoms, value: Value, axis: int, want: Sequence[int]) -> Tensor:
    """Labels for a piece of an axis that has none: of a fixed size, unless the code makes it."""
    first = atoms.new(value.shape[axis])
    labels = torch.arange(first, first + value.shape[axis])
    atoms.set_marks([labels.numpy()])
    atoms.set_role(labels.numpy(), "filling")
    if not value.free and axis not in value.loose:
        atoms.fix(labels.numpy(), "concatenated with a tensor of fixed size")
    return labels.reshape([-1 if i == axis else 1 for i in range(len(want))]).expand(list(want))


def scatter_slice(atoms: Atoms, op: Op) -> list[Value]:
    """slice_scatter and select_scatter: what writing into a view has become."""
    base, source = op.args["self"], op.args["src"]
    if not base.parts and not source.parts:
        return [op.result((), free=base.free and source.free)]
    if len(base.parts) > 1 or len(source.parts) > 1:
        return protect(atoms, op)
    call = dict(op.args)
    for name, value in (("self", base), ("src", source)):
        filler = torch.full(value.shape, WILD)
        call[name] = value.parts[0].expand(value.shape).clone() if value.parts else filler
    return [op.result(tidy(atoms, [op.target(**call)], op.where), free=base.free)]


def write(atoms: Atoms, op: Op) -> list[Value]:
    """x[i, j] = y: the labels of both meet on the axes that are not indexed, the others stay."""
    base, indices, source = op.args["self"], op.args["indices"], op.args["values"]
    first = indices[0]
    apart = isinstance(first, Value) and first.counted and all(i is first for i in indices)
    spread = len(source.shape) <= len(base.shape) - len(indices)  # the same on all of the diagonal
    if apart and base.free and (spread or not any(0 in support(p) for p in source.parts)):
        return _write_diagonal(atoms, op)
    found = _indexed(indices)
    rank = len(base.shape)
    masks = [index for index in indices if isinstance(index, Value)]
    if len(masks) == 1 and masks[0].mask and all(size == 1 for size in source.shape):
        values = [base, _placed(masks[0], masks[0].parts, found.axes, rank)]  # as masked_fill
        return [op.result(merge(atoms, values, base.shape, op.where), free=base.free)]
    _fix_indices(atoms, indices, op.where)
    reason = f"{op.where} writes positions by index"
    others = [axis for axis in range(rank) if axis not in found.axes]
    places = [*others[: found.at], *[-1] * found.rank, *others[found.at :]]
    places = places[len(places) - len(source.shape) :]  # axes of y -> axes of x
    kept = pin_all(atoms, base.parts, found.axes, reason)
    written = pin_all(atoms, source.parts, [i for i, at in enumerate(places) if at < 0], reason)
    values = [replace(base, parts=tuple(kept)), _placed(source, written, places, rank)]
    added = bool(op.args.get("accumulate"))
    return [op.result(merge(atoms, values, base.shape, op.where, added=added), free=base.free)]


def _placed(value: Value, parts: Parts, places: Sequence[int], rank: int) -> Value:
    """A value with these parts, its axes at these places among `rank` axes; -1: left out."""

    def placed(sizes: Sequence[int]) -> list[int]:
        return [sizes[places.index(axis)] if axis in places else 1 for axis in range(rank)]

    return replace(
        value,
        shape=tuple(placed(value.shape)),
        parts=tuple(part.reshape(placed(part.shape)) for part in parts),
        loose=frozenset(places[axis] for axis in value.loose if places[axis] >= 0),
    )


def _write_diagonal(atoms: Atoms, op: Op) -> list[Value]:
    """zeros[i, i] = x: a weight that keeps channels apart, so both its axes are the same ones."""
    base, indices, source = op.args["self"], op.args["indices"], op.args["values"]
    labels = _unlabelled(atoms, base, 0, base.shape[:1])
    views = [[-1 if a == i else 1 for a in range(len(base.shape))] for i in range(len(indices))]
    rest = [p.reshape((1,) * (len(base.shape) - p.dim()) + p.shape) for p in source.parts]
    return [op.result([*(labels.reshape(view) for view in views), *rest])]


def pad(atoms: Atoms, op: Op) -> list[Value]:
    """Zero padding: new channels have labels of their own, new positions those of the old."""
    x = op.x
    for i, amount in enumerate(op.args["pad"]):
        axis = len(x.shape) - 1 - i // 2
        shape, more = list(x.shape), list(x.shape)
        shape[axis], more[axis] = shape[axis] + amount, amount
        if amount > 0:
            zeros = Value(tuple(more), free=True)
            parts = _join(atoms, (x, zeros) if i % 2 else (zeros, x), axis, op.where)
        else:
            start = 0 if i % 2 else -amount
            parts = [
                p.narrow(axis, start, shape[axis]) if axis in support(p) else p for p in x.parts
            ]
        x = replace(x, shape=tuple(shape), parts=tuple(parts))
    return [op.result(tidy(atoms, x.parts, op.where))]
