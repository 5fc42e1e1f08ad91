"""One rule per family of ATen operation: how it carries channel labels.

A rule takes the atoms and an `Op` (the operation's arguments by name, labels in place of tensors)
and returns the labels of the results. An operation without a rule protects what it touches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eslkit.graph.atoms import WILD, Atoms, Divisor
from eslkit.graph.values import Value, compact, flat, merge, pin_all, support, tidy

__all__ = ["Op", "Rule", "rule_for"]

Parts = Sequence[Tensor]


@dataclass(frozen=True)
class Op:
    """One operation of the graph, with labels in place of tensors."""

    target: Any
    args: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the results; of a result that is no tensor, the empty shape."""
    where: str

    @property
    def values(self) -> list[Value]:
        """All tensors among the arguments, in order."""
        found: list[Value] = []
        for arg in self.args.values():
            items: Sequence[Any] = arg if isinstance(arg, (list, tuple)) else (arg,)
            found.extend(item for item in items if isinstance(item, Value))
        return found

    @property
    def x(self) -> Value:
        """The first tensor."""
        return self.values[0]

    @property
    def weight(self) -> bool:
        """Whether the results depend on parameters alone."""
        return all(value.weight for value in self.values)

    def result(self, parts: Parts, index: int = 0, *, free: bool = False) -> Value:
        """The value of result number `index`."""
        given = any(value.given for value in self.values) and not parts
        return Value(self.shapes[index], tuple(parts), free, self.weight, given)

    def results(self, parts: Parts) -> list[Value]:
        """The same parts for every result that has their shape, and none for the others."""
        return [
            self.result(parts if shape == self.shapes[0] else (), i)
            for i, shape in enumerate(self.shapes)
        ]


Rule = Callable[[Atoms, Op], list[Value]]


def dims_of(op: Op, rank: int, name: str = "dim") -> tuple[int, ...]:
    """The axes named by an argument, as non-negative numbers; all where it is absent or None."""
    given = op.args.get(name)
    if given is None or given == []:
        return tuple(range(rank))
    axes: Sequence[int] = given if isinstance(given, (list, tuple)) else (given,)
    return tuple(axis % rank for axis in axes) if rank else ()


# --- operations that only move data: executed on the labels themselves ---------------------------

_AS_RESHAPE = {"view", "_unsafe_view", "reshape"}


def execute(op: Op, part: Tensor) -> list[Tensor]:
    """Run the operation on a part in place of its first tensor; index tensors become zeros."""
    call = dict(op.args)
    first = next(name for name, arg in call.items() if isinstance(arg, Value))
    for name, arg in call.items():
        if isinstance(arg, Value):
            call[name] = torch.zeros(arg.shape, dtype=torch.int64)
    call[first] = part.expand(op.args[first].shape)
    target = op.target
    if target.overloadpacket.__name__ in _AS_RESHAPE:
        return [call[first].reshape(call["size" if "size" in call else "shape"])]
    made = target(**call)
    return [made] if isinstance(made, Tensor) else list(made)


def move(atoms: Atoms, op: Op) -> list[Value]:
    """view, permute, slice, split, roll, pixel_shuffle ...: the labels move as the data do."""
    outs: list[list[Tensor]] = [[] for _ in op.shapes]
    for part in op.x.parts:
        before = support(part)
        moved = execute(op, part)
        _note_cuts(atoms, op, part, moved)
        for out, piece in zip(outs, moved, strict=False):
            out.extend(tidy(atoms, [piece], op.where))
            if len(before) < len(support(out[-1]) if out else ()):
                atoms.splits.append(out[-1])
                rows = _rows(out[-1])
                atoms.partitions.append(rows)
    return [op.result(parts, i, free=op.x.free) for i, parts in enumerate(outs)]


def _rows(part: Tensor) -> Any:
    axis = min(support(part))
    return part.movedim(axis, 0).reshape(part.shape[axis], -1).numpy()


def _note_cuts(atoms: Atoms, op: Op, part: Tensor, moved: Parts) -> None:
    """A part of an axis that the code takes apart from the rest keeps its own count."""
    axis = op.args.get("dim")
    if not isinstance(axis, int) or op.target.overloadpacket.__name__ not in _CUTS:
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
_MOVES = (
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


def index_along(atoms: Atoms, op: Op) -> list[Value]:
    """gather, embedding, index_select: rows picked by index along an axis that cannot resize."""
    name = op.target.overloadpacket.__name__
    for part in (p for value in op.values[1:] for p in value.parts):
        atoms.fix(flat(part), f"{op.where} uses it as an index")
    axis = 0 if name == "embedding" else dims_of(op, len(op.x.shape))[0]
    parts = pin_all(atoms, op.x.parts, [axis], f"{op.where} picks positions by index")
    if name == "gather":
        return [op.result([p.expand(op.x.shape).narrow(axis, 0, 1) for p in parts])]
    return [op.result(tidy(atoms, [execute(op, part)[0] for part in parts], op.where))]


def index_tensor(atoms: Atoms, op: Op) -> list[Value]:
    """x[i, j]: the indexed axes cannot resize, the others carry their labels."""
    x, indices = op.x, op.args["indices"]
    for part in (p for index in indices if isinstance(index, Value) for p in index.parts):
        atoms.fix(flat(part), f"{op.where} uses it as an index")
    axes = [axis for axis, index in enumerate(indices) if isinstance(index, Value)]
    parts = pin_all(atoms, x.parts, axes, f"{op.where} picks positions by index")
    zeros = [
        torch.zeros(index.shape, dtype=torch.int64) if isinstance(index, Value) else None
        for index in indices
    ]
    moved = [torch.ops.aten.index.Tensor(part.expand(x.shape), zeros) for part in parts]
    return [op.result(tidy(atoms, moved, op.where))]


def concatenate(atoms: Atoms, op: Op) -> list[Value]:
    """cat: labels side by side; a tensor without labels adds channels that must stay."""
    values = [value for value in op.args["tensors"] if value.shape != (0,)]
    rank = len(op.shapes[0])
    axis = dims_of(op, rank)[0]
    others: list[Value] = []
    for value in values:
        keep = tuple(p for p in value.parts if axis not in support(p))
        shape = tuple(1 if i == axis else size for i, size in enumerate(value.shape))
        others.append(Value(shape, keep, free=value.free))
    shape = tuple(1 if i == axis else size for i, size in enumerate(op.shapes[0]))
    result = list(merge(atoms, others, shape, op.where))
    along = [[p for p in v.parts if axis in support(p)] for v in values]
    if any(len(parts) > 1 for parts in along):
        for part in (p for parts in along for p in parts):
            atoms.fix(flat(part), f"{op.where} joins axes that are labelled apart")
    elif any(along):
        axes = set[int]().union(*(support(p) for parts in along for p in parts))
        pieces: list[Tensor] = []
        for value, parts in zip(values, along, strict=True):
            want = [value.shape[i] if i in axes else 1 for i in range(rank)]
            pieces.append(parts[0].expand(want) if parts else _constant(atoms, value, axis, want))
        result.extend(tidy(atoms, [torch.cat(pieces, axis)], op.where))
    return [op.result(result)]


def _constant(atoms: Atoms, value: Value, axis: int, want: Sequence[int]) -> Tensor:
    """Labels for a piece of an axis that has a fixed size."""
    size = value.shape[axis]
    first = atoms.new(size)
    labels = torch.arange(first, first + size)
    atoms.fix(labels.numpy(), "concatenated with a tensor of fixed size")
    view = [size if i == axis else 1 for i in range(len(want))]
    return labels.reshape(view).expand(list(want))


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


def pad(atoms: Atoms, op: Op) -> list[Value]:
    """Zero padding: new channels fit any; new positions carry the labels of the old."""
    amounts: list[int] = list(op.args["pad"])
    rank = len(op.x.shape)
    padded = {rank - 1 - i // 2 for i, amount in enumerate(amounts) if amount}
    parts: list[Tensor] = []
    for part in op.x.parts:
        if padded & support(part):
            wide = part.expand(op.x.shape)
            part = torch.constant_pad_nd(wide, amounts, WILD)
        parts.append(part)
    return [op.result(tidy(atoms, parts, op.where))]


# --- element by element --------------------------------------------------------------------------


def pointwise(atoms: Atoms, op: Op) -> list[Value]:
    """Labels that meet at an element are united."""
    values = op.values
    if not values:
        return factory(atoms, op)
    parts = merge(atoms, values, op.shapes[0], op.where)
    free = all(value.free or not value.shape for value in values)
    return [op.result(parts, i, free=free) for i in range(len(op.shapes))]


def factory(atoms: Atoms, op: Op) -> list[Value]:
    """zeros, arange, ...: sizes chosen by the code, which is proved when it is run resized."""
    return [op.result((), i, free=True) for i in range(len(op.shapes))]


def like(atoms: Atoms, op: Op) -> list[Value]:
    """zeros_like and its kin have the labels of the tensor they resemble."""
    return [op.result(op.x.parts, free=True)]


def fill(atoms: Atoms, op: Op) -> list[Value]:
    """x.fill_(number): labels of the place that is filled."""
    return [op.result(op.args["self"].parts, free=op.args["self"].free)]


def copy_into(atoms: Atoms, op: Op) -> list[Value]:
    """x.copy_(y): the labels of y, at the size of x."""
    return [op.result(merge(atoms, [op.args["src"]], op.shapes[0], op.where))]


# --- contractions --------------------------------------------------------------------------------


def batched(value: Value, axes: Sequence[int]) -> Value:
    """The value with its axes as (batch, row, column); -1 inserts an axis of size 1."""
    shape = tuple(1 if a < 0 else value.shape[a] for a in axes)
    parts = tuple(p.reshape([1 if a < 0 else p.shape[a] for a in axes]) for p in value.parts)
    return Value(shape, parts, value.free, value.weight, value.given)


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
    _set_roles(atoms, a, b, k_left, k_right, rows, columns)
    batch = (max(a.shape[0], b.shape[0]), 1, 1)
    outer = [
        Value((v.shape[0], 1, 1), tuple(p for p in ps if support(p) == {0}), v.free)
        for v, ps in ((a, left), (b, right))
    ]
    return [*rows, *columns, *merge(atoms, outer, batch, where)]


def _set_roles(
    atoms: Atoms, a: Value, b: Value, k_a: Parts, k_b: Parts, rows: Parts, columns: Parts
) -> None:
    if a.weight == b.weight:
        for part in (*k_a, *k_b):
            atoms.set_role(flat(part), "dot")
        return
    consumed, produced = (k_a, rows) if a.weight else (k_b, columns)
    for part in consumed:
        atoms.set_role(flat(part), "consumer")
    for part in produced:
        atoms.set_role(flat(part), "producer")


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
        return [op.result(merge(atoms, [product, bias], shape, op.where))]
    return [op.result(product.parts)]


def convolution(atoms: Atoms, op: Op) -> list[Value]:
    """Convolutions of any dimension, transposed, grouped and depthwise."""
    x, w, groups = op.args["input"], op.args["weight"], int(op.args["groups"])
    rank = len(x.shape)
    spatial = range(2, rank)
    where = f"{op.where} keeps positions and batch as they are"
    joint = [p for p in x.parts if 1 in support(p)]
    kept = [p for p in pin_all(atoms, x.parts, spatial, where) if support(p) == {0}]
    channels = [p for p in pin_all(atoms, joint, (0, *spatial), where) if 1 in support(p)]
    weights = pin_all(atoms, w.parts, spatial, "positions of a kernel")
    transposed = bool(op.args["transposed"])
    ins, outs = (0, 1) if transposed else (1, 0)
    incoming = [p.reshape(-1) for p in channels]
    w_in = [p.reshape(-1) for p in weights if support(p) == {ins}]
    w_out = [p.reshape(-1) for p in weights if support(p) == {outs}]
    sizes = (x.shape[1], w.shape[outs])
    made = _grouped(atoms, op, incoming, w_in, w_out, sizes, groups, transposed=transposed)
    for labels in w_in if not (groups > 1 and groups == x.shape[1]) else []:
        atoms.set_role(flat(labels), "consumer")
    bias = op.args.get("bias")
    width = op.shapes[0][1]
    flat_values = [Value((width,), tuple(made))]
    if isinstance(bias, Value):
        flat_values.append(bias)
    merged = merge(atoms, flat_values, (width,), op.where)
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
        incoming = Value(shape, tuple(left), op.args["input"].free, given=op.args["input"].given)
        merge(atoms, [incoming, Value(shape, tuple(right))], shape, op.where)

    if groups == 1:
        meet(x, w_in, (channels,))
        for labels in w_out:
            atoms.set_role(flat(labels), "producer")
        return list(w_out)
    each = channels // groups
    if each == 1:  # depthwise: whole groups come and go, the number of groups follows
        per = size_out if transposed else size_out // groups
        lead, rest = (w_in, w_out) if transposed else (w_out, w_in)
        pin_all(atoms, rest, [0], f"{op.where} has a fixed number of outputs a channel")
        lead_axis = 1 if transposed else per
        columns = [p.reshape(groups, lead_axis) for p in lead]
        meet([p.reshape(groups, 1) for p in x], columns, (groups, lead_axis))
        return [p.repeat_interleave(per) for p in lead] if transposed else list(lead)
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


# --- norms, reductions, scans --------------------------------------------------------------------


def along_channels(value: Any, rank: int) -> list[Value]:
    """A vector of per-channel parameters placed along axis 1 (nothing for None)."""
    if not isinstance(value, Value):
        return []
    shape = (1, *value.shape, *(1,) * (rank - 2)) if rank > 1 else value.shape
    parts = tuple(p.reshape(shape if support(p) else (1,) * len(shape)) for p in value.parts)
    return [Value(shape, parts, value.free)]


def norm_channels(atoms: Atoms, op: Op) -> list[Value]:
    """Batch norm and group norm: parameters and statistics meet the channel axis."""
    x = op.x
    names = ("weight", "bias", "running_mean", "running_var")
    extra = [v for n in names for v in along_channels(op.args.get(n), len(x.shape))]
    parts = merge(atoms, [x, *extra], op.shapes[0], op.where)
    number = op.args.get("group")
    if isinstance(number, int):
        for part in parts:
            if part.shape[1] > 1:
                atoms.divisors.append(Divisor(flat(part), number, op.where))
                if number < x.shape[1]:
                    atoms.mix(flat(part), op.where)
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
    extra = [op.args[n] for n in ("weight", "bias") if isinstance(op.args.get(n), Value)]
    parts = merge(atoms, [op.x, *extra], op.shapes[0], op.where)
    over = len(op.args["normalized_shape"])
    for part in parts:
        if any(axis >= part.dim() - over for axis in support(part)):
            atoms.mix(flat(part), op.where)
    return op.results(parts)


def reduce(atoms: Atoms, op: Op) -> list[Value]:
    """mean, sum, var, max ...: labels along the reduced axes end here."""
    rank = len(op.x.shape)
    axes = dims_of(op, rank)
    keepdim = bool(op.args.get("keepdim", False))
    parts: list[Tensor] = []
    for part in op.x.parts:
        over = support(part) & set(axes)
        if over:
            atoms.mix(flat(part), op.where)
            rest = sorted(support(part) - over)
            pin_all(atoms, [part], rest, f"{op.where} reduces over part of the axis")
            continue
        kept = [s for i, s in enumerate(part.shape) if i not in axes or keepdim]
        parts.append(part.reshape(kept))
    return op.results(parts)


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


# --- positions -----------------------------------------------------------------------------------


def spatial(atoms: Atoms, op: Op) -> list[Value]:
    """Pooling, resizing, reflection padding, grid sampling: labels stay on batch and channels."""
    name = op.target.overloadpacket.__name__
    digits = re.search(r"(\d)d", name)
    x = op.x
    first = len(x.shape) - (int(digits[1]) if digits else len(x.shape) - 2)
    parts = pin_all(atoms, x.parts, range(first, len(x.shape)), f"{op.where} is over positions")
    for other in op.values[1:]:
        if name.startswith("max_unpool"):
            merged = merge(atoms, [x, other], x.shape, op.where)
            parts = pin_all(atoms, merged, range(first, len(x.shape)), op.where)
        else:
            pin_all(atoms, other.parts, range(len(other.shape)), f"{op.where} reads positions")
    return [op.result(parts, i) for i in range(len(op.shapes))]


def unfold(atoms: Atoms, op: Op) -> list[Value]:
    """im2col: every channel becomes one channel for each position of the window."""
    kept = pin_all(atoms, op.x.parts, (2, 3), f"{op.where} is over positions")
    ratio = op.shapes[0][1] // op.x.shape[1]
    parts = [p.reshape(*p.shape[:2], 1).repeat_interleave(ratio, 1) for p in kept]
    return [op.result(tidy(atoms, parts, op.where))]


def fold(atoms: Atoms, op: Op) -> list[Value]:
    """col2im: the channels of a window's positions come together again."""
    batch, channels = op.shapes[0][0], op.shapes[0][1]
    kept = pin_all(atoms, op.x.parts, (2,), f"{op.where} is over positions")
    parts: list[Tensor] = []
    for part in kept:
        wide = part.expand(batch, op.x.shape[1], 1).reshape(batch, channels, -1)
        parts += pin_all(atoms, [wide], (2,), f"{op.where} sums the positions of a window")
    return [op.result([p.reshape(*p.shape[:2], 1, 1) for p in parts])]


def transform(atoms: Atoms, op: Op) -> list[Value]:
    """Fourier transforms mix positions; labels on the other axes stay."""
    axes = dims_of(op, len(op.x.shape))
    return [op.result(pin_all(atoms, op.x.parts, axes, f"{op.where} transforms the axis"))]


def complex_axis(atoms: Atoms, op: Op) -> list[Value]:
    """view_as_real adds a last axis of two, view_as_complex takes it away."""
    rank = len(op.shapes[0])
    if rank > len(op.x.shape):
        return [op.result([p.unsqueeze(-1) for p in op.x.parts])]
    kept = pin_all(atoms, op.x.parts, [rank], f"{op.where} pairs two numbers")
    return [op.result([p.squeeze(-1) for p in kept])]


def protect(atoms: Atoms, op: Op) -> list[Value]:
    """No rule: whatever goes in must stay as it is."""
    for value in op.values:
        for part in value.parts:
            atoms.fix(flat(part), f"no rule for {op.where}")
    return [op.result((), i) for i in range(len(op.shapes))]


# --- which rule ----------------------------------------------------------------------------------


def _table() -> dict[str, Rule]:
    families: list[tuple[Rule, str]] = [
        (move, " ".join(_MOVES)),
        (concatenate, "cat concat"),
        (index_along, "gather embedding index_select"),
        (index_tensor, "index _unsafe_index"),
        (scatter_slice, "slice_scatter select_scatter"),
        (pad, "constant_pad_nd"),
        (like, "zeros_like ones_like empty_like full_like rand_like randn_like"),
        (fill, "fill zero"),
        (copy_into, "copy"),
        (factory, "new_zeros new_ones new_full new_empty new_empty_strided"),
        (matrix, "mm bmm addmm baddbmm mv addmv dot vdot"),
        (convolution, "convolution"),
        (
            norm_channels,
            "native_batch_norm _native_batch_norm_legit_no_training native_group_norm "
            "_native_batch_norm_legit _batch_norm_no_update cudnn_batch_norm",
        ),
        (gated, "glu"),
        (norm_weight, "_weight_norm_interface"),
        (norm_last, "native_layer_norm _fused_rms_norm rms_norm"),
        (
            reduce,
            "mean sum amax amin var std var_mean std_mean linalg_vector_norm norm max min argmax "
            "argmin logsumexp prod any all nansum median count_nonzero",
        ),
        (
            scan,
            "_softmax _log_softmax _safe_softmax softmax log_softmax cumsum cumprod logcumsumexp "
            "cummax",
        ),
        (order, "sort topk argsort kthvalue"),
        (unfold, "im2col"),
        (fold, "col2im"),
        (transform, "_fft_r2c _fft_c2c _fft_c2r"),
        (complex_axis, "view_as_real view_as_complex"),
        (
            pointwise,
            "_to_copy to _prelu_kernel complex polar real imag _conj conj resolve_conj "
            "native_dropout bernoulli where masked_fill addcmul addcdiv lerp arange_like rsub "
            "view_dtype",
        ),
    ]
    return {name: rule for rule, names in families for name in names.split()}


_RULES = _table()
_SPATIAL = re.compile(
    r"^_?(adaptive_)?(avg|max|lp|fractional_max)_(un)?pool\dd|^_?upsample_|grid_sampler_\dd|"
    r"(reflection|replication)_pad\dd"
)


def rule_for(target: Any) -> Rule:
    """The rule for an ATen operation; `protect` where there is none."""
    name = target.overloadpacket.__name__
    if name in _RULES:
        rule = _RULES[name]
        both = rule is reduce and "other" in {a.name for a in target._schema.arguments}
        return pointwise if both else rule
    if _SPATIAL.search(name):
        return spatial
    if torch.Tag.pointwise in target.tags:
        return pointwise
    if not any("Tensor" in str(a.type) for a in target._schema.arguments):
        return factory
    return protect
