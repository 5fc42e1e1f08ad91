"""Rules of operations that mix channels: norms, reductions, softmax and other scans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from eslkit.graph.atoms import Atoms, Divisor
from eslkit.graph.ops import Op, dims_of
from eslkit.graph.values import Value, flat, merge, pin_all, support

__all__ = [
    "gated",
    "loss",
    "norm_channels",
    "norm_last",
    "norm_weight",
    "order",
    "recurrent",
    "reduce",
    "scan",
]


def along_channels(value: Any, rank: int) -> list[Value]:
    """A vector of per-channel parameters placed along axis 1 (nothing for None)."""
    if not isinstance(value, Value):
        return []
    shape = (1, *value.shape, *(1,) * (rank - 2)) if rank > 1 else value.shape
    parts = tuple(p.reshape(shape if support(p) else (1,) * len(shape)) for p in value.parts)
    return [Value(shape, parts, value.free)]


def _summed(atoms: Atoms, affine: list[Value], op: Op) -> list[Value]:
    """Scale and shift of a norm: they name the result, for it is linear in the two together."""
    if len(affine) < 2:
        return affine
    shape = affine[0].shape
    return [Value(shape, merge(atoms, affine, shape, op.where, added=True))]


def norm_channels(atoms: Atoms, op: Op) -> list[Value]:
    """Batch norm and group norm: parameters and statistics meet the channel axis."""
    x = op.x
    affine, rest = (
        [v for n in names for v in along_channels(op.args.get(n), len(x.shape))]
        for names in (("weight", "bias"), ("running_mean", "running_var"))
    )
    parts = merge(atoms, [*_summed(atoms, affine, op), x, *rest], op.shapes[0], op.where)
    number = op.args.get("group")
    if isinstance(number, int):
        for part in parts:
            if part.shape[1] > 1:
                atoms.divisors.append(Divisor(flat(part), number, op.where))
                if number < x.shape[1]:
                    atoms.mix(flat(part), op.where, counts=False)
    return op.results(parts)


def gated(atoms: Atoms, op: Op) -> list[Value]:
    """glu: the axis in two halves, which are multiplied."""
    axis = dims_of(op, len(op.x.shape))[0]
    half = op.shapes[0][axis]
    pieces: list[list[Tensor]] = [[], []]
    for part in op.x.parts:
        if part.shape[axis] == 1:
            pieces[0].append(part)
            continue
        for found, start in zip(pieces, (0, half), strict=True):
            found.append(part.narrow(axis, start, half))
    values = [Value(op.shapes[0], tuple(parts), op.x.free) for parts in pieces]
    return [op.result(merge(atoms, values, op.shapes[0], op.where))]


def norm_weight(atoms: Atoms, op: Op) -> list[Value]:
    """Weight norm: directions and lengths meet on one axis, the norm is over all the others."""
    direction, length = op.args["v"], op.args["g"]
    for part in direction.parts:
        if not support(part) <= {op.args["dim"]}:
            atoms.mix(flat(part), op.where)
    return [
        op.result(merge(atoms, [direction, length], op.shapes[0], op.where)),
        op.result(length.parts, 1),
    ]


def norm_last(atoms: Atoms, op: Op) -> list[Value]:
    """Layer norm and RMS norm: parameters meet the last axes, which are mixed."""
    affine = [op.args[n] for n in ("weight", "bias") if isinstance(op.args.get(n), Value)]
    parts = merge(atoms, [*_summed(atoms, affine, op), op.x], op.shapes[0], op.where)
    over = len(op.args["normalized_shape"])
    for part in parts:
        if any(axis >= part.dim() - over for axis in support(part)):
            atoms.mix(flat(part), op.where, counts=False)
    return op.results(parts)


def reduce(atoms: Atoms, op: Op) -> list[Value]:
    """mean, sum, var, max ...: labels along the reduced axes end here.

    Where channels were cut into two axes of which one is reduced, the other stays as long as it is;
    or, where `atoms.holding` says so, the one that is reduced does, and the other's labels go on.
    """
    rank = len(op.x.shape)
    axes = dims_of(op, rank)
    keepdim = bool(op.args.get("keepdim", False))
    parts: list[Tensor] = []
    for part in op.x.parts:
        over = support(part) & set(axes)
        rest = sorted(support(part) - over)
        if over and rest:
            atoms.reductions.append(atoms.node)
        if over and rest and atoms.node in atoms.holding:
            reason = f"{op.where} reduces over a fixed number"
            parts += [_left(p, axes, keepdim=keepdim) for p in pin_all(atoms, [part], over, reason)]
        elif over:
            atoms.mix(flat(part), op.where, counts=not _is_mean(op))
            pin_all(atoms, [part], rest, f"{op.where} reduces over part of the axis")
        else:
            parts.append(_left(part, axes, keepdim=keepdim))
    return op.results(parts)


def _left(part: Tensor, axes: Sequence[int], *, keepdim: bool) -> Tensor:
    """A part that is of size 1 along the axes that are reduced, without them."""
    return part.reshape([s for i, s in enumerate(part.shape) if i not in axes or keepdim])


_MEANS = {"mean", "amax", "amin", "max", "min", "median", "argmax", "argmin", "any", "all"}


def _is_mean(op: Op) -> bool:
    """Whether equal copies of what is reduced leave the result as it is."""
    biased = op.name in ("var", "std", "var_mean", "std_mean") and op.args.get("correction") == 0
    return op.name in _MEANS or biased


def loss(atoms: Atoms, op: Op) -> list[Value]:
    """mse_loss ...: element by element, and then, unless it is left out, a mean or a sum."""
    parts = merge(atoms, op.values, op.x.shape, op.where)
    if op.shapes[0] == op.x.shape:
        return op.results(parts)
    for part in parts:
        atoms.mix(flat(part), op.where, counts=op.args.get("reduction", _MEAN) != _MEAN)
    return [op.result((), i) for i in range(len(op.shapes))]


_MEAN = 1
"""A loss's `reduction`, as torch numbers them."""


def scan(atoms: Atoms, op: Op) -> list[Value]:
    """softmax, cumsum ...: same shape, channels along the axis are mixed."""
    axes = dims_of(op, len(op.x.shape))
    for part in op.x.parts:
        if support(part) & set(axes):
            atoms.mix(flat(part), op.where)
    return op.results(op.x.parts)


def order(atoms: Atoms, op: Op) -> list[Value]:
    """sort, topk: positions along the axis are no longer those of the input."""
    axes = dims_of(op, len(op.x.shape))
    parts = pin_all(atoms, op.x.parts, axes, f"{op.where} reorders the axis")
    return op.results(parts)


def recurrent(atoms: Atoms, op: Op) -> list[Value]:
    """A layer of an LSTM: the gates' rows and what reads the state back are one set of channels."""
    size = int(op.args["hidden_size"])
    weights: list[Value] = [op.args[f"weight{i}"] for i in range(4)]
    reason = f"{op.where} cuts it into gates"
    held: list[Value] = []
    for weight in weights:
        rows = [p.reshape(-1, size) for p in weight.parts if support(p) == {0}]
        made = [p.reshape(-1) for p in pin_all(atoms, rows, [0], reason)]
        held.append(Value((size,), tuple(made)))
    read = [tuple(p.reshape(-1) for p in w.parts if support(p) == {1}) for w in weights[:2]]
    inner = op.x.shape[-1:]
    last = len(op.x.shape) - 1
    met = pin_all(atoms, op.x.parts, range(last), f"{op.where} keeps positions as they are")
    along = Value(inner, tuple(p.reshape(-1) for p in met), op.x.free, given=op.x.given)
    merge(atoms, [along, Value(inner, read[0])], inner, op.where)
    state = merge(atoms, [*held, Value((size,), read[1])], (size,), op.where)
    for role, parts in (("consumer", (*read[0], *read[1])), ("producer", held[0].parts)):
        for part in parts:
            atoms.set_role(flat(part), role)
    return [
        op.result([p.reshape(*(1,) * (len(shape) - 1), -1) for p in state] if i < 3 else (), i)
        for i, shape in enumerate(op.shapes)
    ]
