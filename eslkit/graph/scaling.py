"""What scales with its producers: how copies can be made up for in a product of activations.

Where queries meet keys, channels of two activations are multiplied and summed over. A network
with every channel doubled then needs its keys halved. That is possible where the keys scale with
what produced them: from the weight (and bias) on, only operations `f` with `f(s x) = s f(x)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eslkit.graph.atoms import Atoms, IntArray, Product
from eslkit.graph.ops import Op
from eslkit.graph.values import Value

__all__ = ["ADDED", "MATRIX", "SCALED", "THROUGH", "Divided", "divide", "result_scales"]

ADDED = {"add", "sub"}
SCALED = {"mul", "div"}
MATRIX = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "convolution"}
_NORMS = {"native_batch_norm", "native_group_norm", "native_layer_norm"} | {
    "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit",
}
THROUGH = set(
    """view _unsafe_view reshape permute transpose t squeeze unsqueeze expand flip roll repeat clone
    pixel_shuffle pixel_unshuffle channel_shuffle alias detach slice split split_with_sizes narrow
    select unbind chunk contiguous unfold im2col as_strided neg relu leaky_relu _prelu_kernel
    avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d max_pool2d
    max_pool2d_with_indices max_pool3d_with_indices upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d upsample_linear1d
    _to_copy native_dropout copy lift_fresh""".split()
)


def result_scales(op: Op) -> bool:
    """Whether an operation's results scale with what their labels name."""
    name = op.target.overloadpacket.__name__
    values = op.values
    if name in THROUGH:
        return values[0].scales
    if name in ("cat", "stack"):
        return all(value.scales or not value.parts for value in values)
    if name in ADDED:
        numbers = [a for n, a in op.args.items() if n != "alpha" and isinstance(a, (int, float))]
        return not numbers and all(value.scales for value in values)
    if name in SCALED:
        return _factor_scales(values)
    if name in MATRIX:
        return _contraction_scales(values)
    if name in _NORMS:
        affine = [op.args.get("weight"), op.args.get("bias")]
        return all(isinstance(value, Value) and value.scales for value in affine)
    return False


def _factor_scales(values: list[Value]) -> bool:
    """A product with numbers, constants and parameters scales with its one activation."""
    moving = [value for value in values if not value.weight]
    if len(moving) > 1:
        return False  # both may come from the same producers
    first = moving[0] if moving else values[0]
    others = (value for value in values if value is not first)
    return first.scales and all(value.constant or value.scales for value in others)


def _contraction_scales(values: list[Value]) -> bool:
    weights = [value for value in values if value.weight]
    if len(weights) == len(values):
        return all(value.scales for value in weights)
    return len(values) - len(weights) == 1 and all(value.scales for value in weights)


@dataclass(frozen=True)
class Divided:
    """Which atoms are divided by the number of copies, and which products that does not mend."""

    atoms: npt.NDArray[np.bool_]
    by_product: dict[object, IntArray]
    """The operation that multiplies -> the atoms that are divided for it."""
    unmended: tuple[Product, ...]


def divide(atoms: Atoms) -> Divided:
    """Choose for each product of activations the side whose producers make up for copies."""
    size = len(atoms.parent)
    plain = _with_sums(atoms, _mask(size, atoms.plain))
    chosen: list[tuple[Product, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]] = []
    unmended: list[Product] = []
    for product in atoms.products:
        for side in (1, 0):
            mine = _with_sums(atoms, _mask(size, [product.sides[side]]))
            other = _with_sums(atoms, _mask(size, [product.sides[1 - side]]))
            if product.scales[side] and not (mine & (plain | other)).any():
                chosen.append((product, mine, other))
                break
        else:
            unmended.append(product)
    total = np.zeros(size, bool)
    by_product: dict[object, IntArray] = {}
    for product, mine, _ in chosen:
        if any((mine & other).any() for _, _, other in chosen):
            unmended.append(product)
        else:
            total |= mine
            by_product[product.node] = np.flatnonzero(mine)
    return Divided(total, by_product, tuple(unmended))


def _mask(size: int, labels: list[IntArray]) -> npt.NDArray[np.bool_]:
    found = np.zeros(size, bool)
    for part in labels:
        found[part[part >= 0]] = True
    return found


def _with_sums(atoms: Atoms, found: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """These atoms, and those that were added to what they name."""
    for first, second in reversed(atoms.sums):
        both = (first >= 0) & (second >= 0)
        found[second[both][found[first[both]]]] = True
    return found
