"""Rules of operations that sum over an axis of two tensors, and of what undoes that.

Convolutions, matrix products, inverses, solved systems of equations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from eslkit.graph.atoms import Atoms, IntArray, Product
from eslkit.graph.ops import Op, Parts
from eslkit.graph.sliding import slide
from eslkit.graph.values import Value, flat, merge, pin_all, support

__all__ = ["convolution", "distance", "invert", "matrix", "solve"]


def batched(value: Value, axes: Sequence[int]) -> Value:
    """The value with its axes as (batch, row, column); -1 inserts an axis of size 1."""
    shape = tuple(1 if a < 0 else value.shape[a] for a in axes)
    parts = tuple(p.reshape([1 if a < 0 else p.shape[a] for a in axes]) for p in value.parts)
    return replace(value, shape=shape, parts=parts)


def contract(atoms: Atoms, a: Value, b: Value, where: str) -> list[Tensor]:
    """(batch, m, k) @ (batch, k, n): unite along k, hand on the labels of m and n."""
    reason = f"{where} keeps that axis as it is"
    left = pin_all(atoms, [p for p in a.parts if support(p) > {0}], [0], reason)
    left += [p for p in a.parts if not support(p) > {0}]
    right = pin_all(atoms, [p for p in b.parts if support(p) > {0}], [0], reason)
    right += [p for p in b.parts if not support(p) > {0}]
    left = [
        q for p in left for q in (pin_all(atoms, [p], [1], reason) if support(p) == {1, 2} else [p])
    ]
    right = [
        q
        for p in right
        for q in (pin_all(atoms, [p], [2], reason) if support(p) == {1, 2} else [p])
    ]
    k_left = [p.reshape(1, -1) for p in left if support(p) == {2}]
    k_right = [p.reshape(1, -1) for p in right if support(p) == {1}]
    inner = (1, a.shape[2])
    met = [
        Value(inner, tuple(k_left), a.free, given=a.given),
        Value(inner, tuple(k_right), b.free, given=b.given),
    ]
    merge(atoms, met, inner, where)
    rows = [p for p in left if support(p) == {1}]
    columns = [p for p in right if support(p) == {2}]
    if a.weight or b.weight:
        _set_roles(atoms, a, b, where, k_left, k_right, rows, columns)
    elif k_left or k_right:
        sides = (_labels_on(a, 2), _labels_on(b, 1))
        atoms.products.append(Product(atoms.node, sides, (a.scales, b.scales), where))
    batch = (max(a.shape[0], b.shape[0]), 1, 1)
    outer = [
        Value((v.shape[0], 1, 1), tuple(p for p in ps if support(p) == {0}), v.free)
        for v, ps in ((a, left), (b, right))
    ]
    return [*rows, *columns, *merge(atoms, outer, batch, where)]


def _labels_on(value: Value, axis: int) -> IntArray:
    """All labels of the channels along an axis, of every head."""
    parts = [flat(part) for part in value.parts if part.shape[axis] > 1]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _set_roles(
    atoms: Atoms,
    a: Value,
    b: Value,
    where: str,
    k_a: Parts,
    k_b: Parts,
    rows: Parts,
    columns: Parts,
) -> None:
    # A product of two weights (W2 W1) is read as W2 consuming what W1 makes; one of a weight and
    # of what the code computed from weights and constants, as a layer.
    left = a.raw or not b.raw if a.weight and b.weight else a.weight
    if a.weight and b.weight and not rows and not columns:
        for part in (*k_a, *k_b):  # a norm of weights
            atoms.mix(flat(part), where, counts=False)
    consumed, produced = (k_a, rows) if left else (k_b, columns)
    for part in consumed:
        atoms.set_role(flat(part), "consumer")
    for part in produced:  # of two weights, either may be what makes
        atoms.set_role(flat(part), "maker" if a.weight and b.weight else "producer")


def matrix(atoms: Atoms, op: Op) -> list[Value]:
    """mm, bmm, mv, dot, and the same with an added bias."""
    name = op.target.overloadpacket.__name__
    values = op.values
    bias = values[0] if name in ("addmm", "baddbmm", "addmv") else None
    a, b = values[1:3] if bias is not None else values[:2]
    left, right, drop = {
        "mm": ((-1, 0, 1), (-1, 0, 1), (0,)),
        "addmm": ((-1, 0, 1), (-1, 0, 1), (0,)),
        "bmm": ((0, 1, 2), (0, 1, 2), ()),
        "baddbmm": ((0, 1, 2), (0, 1, 2), ()),
        "mv": ((-1, 0, 1), (-1, 0, -1), (0, 2)),
        "addmv": ((-1, 0, 1), (-1, 0, -1), (0, 2)),
        "dot": ((-1, -1, 0), (-1, 0, -1), (0, 1, 2)),
        "vdot": ((-1, -1, 0), (-1, 0, -1), (0, 1, 2)),
    }[name]
    parts = contract(atoms, batched(a, left), batched(b, right), op.where)
    keep = [axis for axis in range(3) if axis not in drop]
    shape = op.shapes[0]
    parts = [p.reshape([p.shape[axis] for axis in keep]) for p in parts]
    product = Value(shape, tuple(p for p in parts if support(p)))
    if bias is not None:
        return [op.result(merge(atoms, [product, bias], shape, op.where, added=True))]
    return [op.result(product.parts)]


def convolution(atoms: Atoms, op: Op) -> list[Value]:
    """Convolutions of any dimension, transposed, grouped and depthwise."""
    x, w, groups = op.args["input"], op.args["weight"], int(op.args["groups"])
    rank = len(x.shape)
    spatial = range(2, rank)
    where = f"{op.where} keeps positions and batch as they are"
    joint = [p for p in x.parts if 1 in support(p)]
    slid, others = slide(atoms, op, [p for p in x.parts if 1 not in support(p)], w.shape[2:])
    kept = [*slid, *pin_all(atoms, others, spatial, where)]
    channels = [p for p in pin_all(atoms, joint, (0, *spatial), where) if 1 in support(p)]
    weights = pin_all(atoms, w.parts, spatial, "positions of a kernel")
    transposed = bool(op.args["transposed"])
    ins, outs = (0, 1) if transposed else (1, 0)
    incoming = [p.reshape(-1) for p in channels]
    w_in = [p.reshape(-1) for p in weights if support(p) == {ins}]
    w_out = [p.reshape(-1) for p in weights if support(p) == {outs}]
    sizes = (x.shape[1], w.shape[outs])
    made = _grouped(atoms, op, incoming, w_in, w_out, sizes, groups, transposed=transposed)
    whole = groups > 1 and groups in (x.shape[1], op.shapes[0][1])
    for labels in w_in if not whole else []:
        atoms.set_role(flat(labels), "consumer")
    bias = op.args.get("bias")
    width = op.shapes[0][1]
    flat_values = [Value((width,), tuple(made))]
    if isinstance(bias, Value):
        flat_values.append(bias)
    merged = merge(atoms, flat_values, (width,), op.where, added=True)
    view = [-1 if axis == 1 else 1 for axis in range(rank)]
    return [op.result([*(p.reshape(view) for p in merged), *kept])]


def _grouped(
    atoms: Atoms,
    op: Op,
    x: Parts,
    w_in: Parts,
    w_out: Parts,
    sizes: tuple[int, int],
    groups: int,
    *,
    transposed: bool,
) -> list[Tensor]:
    """Couple the input channels with the weight; labels of the output channels."""
    channels, size_out = sizes

    def meet(left: Parts, right: Parts, shape: tuple[int, ...]) -> None:
        source, weight = op.args["input"], op.args["weight"]
        incoming = Value(shape, tuple(left), source.free, given=source.given)
        free = weight.free or 0 in weight.loose  # one filter, repeated for every channel
        merge(atoms, [incoming, Value(shape, tuple(right), free)], shape, op.where)

    if groups == 1:
        meet(x, w_in, (channels,))
        for labels in w_out:
            atoms.set_role(flat(labels), "producer")
        return list(w_out)
    each, per = channels // groups, size_out if transposed else size_out // groups
    if each == 1 or per == 1:  # whole groups come and go, their number follows
        lead, rest = (w_in, w_out) if transposed else (w_out, w_in)
        along = each if transposed else per
        reason = f"{op.where} has a fixed number of channels a group"
        pin_all(atoms, rest, [0], reason)
        inner = pin_all(atoms, [p.reshape(groups, each) for p in x], [1], reason)
        columns = [p.reshape(groups, along) for p in lead]
        if transposed:
            columns = pin_all(atoms, columns, [1], reason)
        meet(inner, columns, (groups, max(p.shape[1] for p in columns) if columns else 1))
        made = columns or inner
        if not transposed and columns:
            return [p.reshape(-1) for p in made]
        return [p.reshape(-1).repeat_interleave(per) for p in made]
    # grouped: the number of groups stays, every group keeps the same of its channels
    reason = f"{op.where} has {groups} groups"
    inner = pin_all(atoms, [p.reshape(groups, each) for p in x], [0], reason)
    if transposed:
        w_in = pin_all(atoms, [p.reshape(groups, each) for p in w_in], [0], reason)
        outs = [p.repeat(groups) for p in w_out]
    else:
        w_in = [p.reshape(1, each) for p in w_in]
        fold = [p.reshape(groups, size_out // groups) for p in w_out]
        outs = [p.expand(groups, -1).reshape(-1) for p in pin_all(atoms, fold, [0], reason)]
    meet(inner, w_in, (1, each))
    for labels in outs:
        atoms.set_role(flat(labels), "producer")
    return outs


def distance(atoms: Atoms, op: Op) -> list[Value]:
    """cdist: how far the rows of one are from those of the other, over their last axis."""
    left, right = op.values[:2]
    shape = (*op.shapes[0], left.shape[-1])
    both = [_beside(left, len(left.shape) - 1), _beside(right, len(right.shape) - 2)]
    kept: list[Tensor] = []
    for part in merge(atoms, both, shape, op.where):
        if part.shape[-1] == 1:
            kept.append(part.squeeze(-1))
            continue
        atoms.mix(flat(part), op.where)
        others = sorted(support(part) - {part.dim() - 1})
        pin_all(atoms, [part], others, f"{op.where} sums over part of the axis")
    return [op.result(kept)]


def _beside(value: Value, axis: int) -> Value:
    """The value with one axis more, of size 1, before `axis`."""
    shape = (*value.shape[:axis], 1, *value.shape[axis:])
    loose = frozenset(a + 1 if a >= axis else a for a in value.loose)
    parts = tuple(part.unsqueeze(axis) for part in value.parts)
    return replace(value, shape=shape, parts=parts, loose=loose)


def invert(atoms: Atoms, op: Op) -> list[Value]:
    """inv, cholesky: rows and columns must stay, for copies of one make the matrix singular."""
    rank = len(op.x.shape)
    return op.results(_whole(atoms, op, op.x, (rank - 2, rank - 1)))


def solve(atoms: Atoms, op: Op) -> list[Value]:
    """solve: as `invert` for the matrix; of the other side, the axis along the unknowns stays."""
    swapped = op.name == "cholesky_solve"  # the right-hand side first, then the matrix
    matrix, side = op.values[1::-1] if swapped else op.values[:2]
    rank = len(matrix.shape)
    _whole(atoms, op, matrix, (rank - 2, rank - 1))
    vectors = len(side.shape) < rank
    unknowns = len(side.shape) - (1 if vectors or not op.args.get("left", True) else 2)
    kept = _whole(atoms, op, side, (unknowns,))
    fits = len(op.shapes[0]) == len(side.shape)
    return [op.result(kept if fits and i == 0 else (), i) for i in range(len(op.shapes))]


def _whole(atoms: Atoms, op: Op, value: Value, axes: Sequence[int]) -> list[Tensor]:
    reason = f"{op.where} solves a system of that size, which copies of one would make singular"
    return pin_all(atoms, value.parts, axes, reason)
