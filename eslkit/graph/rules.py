"""Which rule an ATen operation follows: one for each family of operations.

A rule takes the atoms and an `Op` (the operation's arguments by name, labels in place of tensors)
and returns the labels of the results. An operation without a rule protects what it touches.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from eslkit.graph.atoms import Atoms
from eslkit.graph.contractions import convolution, distance, invert, matrix, solve
from eslkit.graph.mixing import (
    gated,
    loss,
    norm_channels,
    norm_last,
    norm_weight,
    order,
    recurrent,
    reduce,
    scan,
)
from eslkit.graph.moves import (
    MOVES,
    concatenate,
    move,
    pad,
    pick,
    scatter_slice,
    write,
)
from eslkit.graph.ops import Op, Rule, dims_of, protect
from eslkit.graph.scaling import ADDED
from eslkit.graph.scattering import gather, index_into, scatter, top
from eslkit.graph.sliding import slide
from eslkit.graph.values import Value, merge, pin_all, tidy

__all__ = ["rule_for"]


def pointwise(atoms: Atoms, op: Op) -> list[Value]:
    """Labels that meet at an element are united."""
    values = op.values
    if not values:
        return factory(atoms, op)
    added = op.target.overloadpacket.__name__ in ADDED
    parts = merge(atoms, values, op.shapes[0], op.where, added=added)
    free = all(value.free or not value.shape for value in values)
    return [op.result(parts, i, free=free) for i in range(len(op.shapes))]


def pointwise_beside(atoms: Atoms, op: Op) -> list[Value]:
    """The same, with a second result that only the backward pass reads."""
    return op.results(merge(atoms, op.values, op.shapes[0], op.where))


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


def spatial(atoms: Atoms, op: Op) -> list[Value]:
    """Pooling, resizing, reflection padding, grid sampling: labels stay on batch and channels."""
    name = op.target.overloadpacket.__name__
    digits = re.search(r"(\d)d", name)
    x = op.x
    first = len(x.shape) - (int(digits[1]) if digits else len(x.shape) - 2)
    slid: list[Tensor] = []
    rest = list(x.parts)
    if "kernel_size" in op.args:
        window = op.args["kernel_size"]
        slid, rest = slide(atoms, op, rest, [*window] * ((len(x.shape) - first) // len(window)))
    over = range(first, len(x.shape))
    if name.startswith(("upsample_", "_upsample_")):  # the same, where no longer
        over = [axis for axis in over if x.shape[axis] != op.shapes[0][axis]]
    parts = pin_all(atoms, rest, over, f"{op.where} is over positions")
    for other in op.values[1:]:
        if name.startswith("max_unpool"):
            merged = merge(atoms, [x, other], x.shape, op.where)
            parts = pin_all(atoms, merged, range(first, len(x.shape)), op.where)
        else:
            pin_all(atoms, other.parts, range(len(other.shape)), f"{op.where} reads positions")
    return [op.result([*parts, *slid], i) for i in range(len(op.shapes))]


def stack(atoms: Atoms, op: Op) -> list[Value]:
    """stack: tensors of one form side by side along a new axis, which stays as long as it is."""
    axis = dims_of(op, len(op.shapes[0]))[0]
    shape = tuple(size for i, size in enumerate(op.shapes[0]) if i != axis)
    parts = merge(atoms, op.values, shape, op.where)
    free = all(value.free for value in op.values)
    return [op.result([part.unsqueeze(axis) for part in parts], free=free)]


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


def _table() -> dict[str, Rule]:
    families: list[tuple[Rule, str]] = [
        (move, " ".join(MOVES)),
        (concatenate, "cat concat"),
        (stack, "stack"),
        (pick, "embedding index_select index _unsafe_index"),
        (gather, "gather"),
        (scatter, "scatter scatter_add scatter_reduce"),
        (index_into, "index_add index_copy index_fill"),
        (scatter_slice, "slice_scatter select_scatter"),
        (pad, "constant_pad_nd"),
        (write, "index_put"),
        (like, "zeros_like ones_like empty_like full_like rand_like randn_like"),
        (fill, "fill zero"),
        (copy_into, "copy"),
        (factory, "new_zeros new_ones new_full new_empty new_empty_strided"),
        (matrix, "mm bmm addmm baddbmm mv addmv dot vdot"),
        (distance, "_euclidean_dist _cdist_forward"),
        (invert, "linalg_inv_ex inverse linalg_cholesky_ex cholesky cholesky_inverse"),
        (solve, "_linalg_solve_ex linalg_solve_triangular cholesky_solve"),
        (convolution, "convolution"),
        (
            norm_channels,
            "native_batch_norm _native_batch_norm_legit_no_training native_group_norm "
            "_native_batch_norm_legit _batch_norm_no_update cudnn_batch_norm",
        ),
        (gated, "glu"),
        (
            loss,
            "mse_loss smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy "
            "binary_cross_entropy_with_logits",
        ),
        (pointwise_beside, "log_sigmoid_forward"),
        (norm_weight, "_weight_norm_interface"),
        (norm_last, "native_layer_norm _fused_rms_norm rms_norm"),
        (
            reduce,
            "mean sum amax amin var std var_mean std_mean linalg_vector_norm norm max min argmax "
            "argmin aminmax kthvalue mode logsumexp prod any all nansum median count_nonzero",
        ),
        (
            scan,
            "_softmax _log_softmax _safe_softmax softmax log_softmax cumsum cumprod logcumsumexp "
            "cummax",
        ),
        (recurrent, "mkldnn_rnn_layer"),
        (order, "sort argsort"),
        (top, "topk"),
        (unfold, "im2col"),
        (fold, "col2im"),
        (transform, "_fft_r2c _fft_c2c _fft_c2r"),
        (complex_axis, "view_as_real view_as_complex"),
        (
            pointwise,
            "_to_copy to _prelu_kernel complex polar real imag _conj conj resolve_conj "
            "native_dropout bernoulli exponential rrelu_with_noise hardswish uniform "
            "normal_functional where masked_fill addcmul addcdiv lerp arange_like rsub view_dtype",
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
    name = name if name in _RULES else name.rstrip("_")
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
