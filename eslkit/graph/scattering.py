"""Rules of operations that read or write along one axis by an index: gather, scatter, topk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from eslkit.graph.atoms import Atoms
from eslkit.graph.ops import Op, dims_of
from eslkit.graph.values import Value, flat, merge, pin_all, support

__all__ = ["gather", "index_into", "scatter", "top"]


def gather(atoms: Atoms, op: Op) -> list[Value]:
    """Tensor and index meet element by element on the other axes; the axis itself stays."""
    x, index = op.args["self"], op.args["index"]
    if not x.shape:
        return [op.result(())]
    return [op.result(_beside(atoms, op, [x, index]))]


def scatter(atoms: Atoms, op: Op) -> list[Value]:
    """The same for what is written into.

    Where the index comes from `top`, which picks from as many channels as come, the written tensor
    keeps its channels along the axis: what is written there hangs on all of them.
    """
    base, index = op.args["self"], op.args["index"]
    if not base.shape:
        return [op.result(())]
    source = op.args.get("src")
    values = [base, index, *([source] if isinstance(source, Value) else [])]
    axis = dims_of(op, len(base.shape))[0]
    along: list[Tensor] = []
    if axis in index.loose:
        along = [part for part in base.parts if support(part) == {axis}]
        for part in along:
            atoms.mix(flat(part), op.where)
        values[0] = replace(base, parts=tuple(p for p in base.parts if support(p) != {axis}))
    return [op.result([*_beside(atoms, op, values), *along], free=base.free)]


def index_into(atoms: Atoms, op: Op) -> list[Value]:
    """index_add, index_copy, index_fill: as scatter, by one row of places for all."""
    base, source = op.args["self"], op.args.get("source")
    if not base.shape:
        return [op.result(())]
    values = [base, source] if isinstance(source, Value) and source.shape else [base]
    return [op.result(_beside(atoms, op, values), free=base.free)]


def _beside(atoms: Atoms, op: Op, values: Sequence[Value]) -> tuple[Tensor, ...]:
    """Unite labels on the axes on which all are equally long, but for the one that is indexed."""
    rank = len(values[0].shape)
    axis = dims_of(op, rank)[0]
    lengths = [{value.shape[a] for value in values} for a in range(rank)]
    held = [a for a in range(rank) if a == axis or len(lengths[a]) > 1]
    shape = tuple(1 if a in held else values[0].shape[a] for a in range(rank))
    reason = f"{op.where} picks positions by index"
    met = [
        replace(
            value,
            shape=shape,
            parts=tuple(pin_all(atoms, value.parts, held, reason)),
            loose=value.loose - set(held),
        )
        for value in values
    ]
    return merge(atoms, met, shape, op.where)


def top(atoms: Atoms, op: Op) -> list[Value]:
    """topk: the largest of as many channels as come, so that their labels end; how many, is code's.

    Positions along which something else varies, too, stay as they are.
    """
    axis = dims_of(op, len(op.x.shape))[0] if op.x.shape else 0
    mixed = [part for part in op.x.parts if support(part) == {axis}]
    for part in mixed:
        atoms.mix(flat(part), op.where)
    others = [part for part in op.x.parts if support(part) != {axis}]
    kept = pin_all(atoms, others, [axis], f"{op.where} reorders the axis")
    loose = frozenset({axis} if mixed else ())
    return [replace(value, loose=value.loose | loose) for value in op.results(kept)]
