"""ExpandNets' expansion and contraction: more linear layers while training, exactly one after it.

Guo, Alvarez, Salzmann, "ExpandNets: Linear Over-parameterization to Train Compact Convolutional
Networks", NeurIPS 2020 (facts, section 5). Every convolution becomes several without anything
between them. That adds nothing to what the network can be, only to how it is trained.

`CL`: k×k from m to n becomes 1×1 from m to r·m, k×k from r·m to r·n, 1×1 from r·n to n.
`CK`: k×k of odd k above 3 becomes (k - 1) / 2 convolutions 3×3, through r·m and then r·n channels.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from eslkit.errors import InputError, UnsupportedError
from eslkit.seeding import seeded
from eslkit_tsdn.rivals.expanded import ExpandedConv, ExpandedTranspose

__all__ = ["Expansion", "Start", "contract", "expand_convolutions", "expandable"]

Expansion = Literal["CL", "CK"]
"""1×1, k×k, 1×1, or k×k as several 3×3."""
Start = Literal["default", "same"]
"""Weights drawn as torch does, or such that the contracted network is the given one."""

_FORWARD = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def expandable(
    model: nn.Module, *, expansion: Expansion = "CL", transposed: bool = False
) -> tuple[str, ...]:
    """The convolutions that an expansion takes, by name.

    Left out are 1×1 convolutions (three of them would be expanded into three of them), frozen
    ones, subclasses of torch's (whose code is not known), and those whose weight is computed or
    shared with another layer.

    Args:
        model: any module.
        expansion: "CL" takes every kernel, "CK" odd square ones above 3.
        transposed: whether transposed convolutions are taken too, by CL.
    """
    kinds = (*_FORWARD, *_TRANSPOSED) if transposed and expansion == "CL" else _FORWARD
    holders = Counter(id(p) for each in model.modules() for p in each.parameters(recurse=False))
    return tuple(
        name
        for name, layer in model.named_modules()
        if type(layer) in kinds and _is_plain(cast(nn.Conv2d, layer), expansion, holders)
    )


def _is_plain(layer: nn.Conv2d, expansion: Expansion, holders: Counter[int]) -> bool:
    own = layer.weight if isinstance(layer.weight, nn.Parameter) else None
    if own is None or holders[id(own)] > 1 or not own.requires_grad:
        return False
    sides = set(layer.kernel_size)
    if expansion == "CK":
        return len(sides) == 1 and min(sides) > 3 and min(sides) % 2 == 1
    return max(sides) > 1


def expand_convolutions(
    model: nn.Module,
    *,
    rate: int = 4,
    expansion: Expansion = "CL",
    init: Start = "default",
    transposed: bool = False,
    slim: Collection[str] = (),
    layers: Collection[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    """A network with more linear layers, which `contract` makes the given one again.

    Args:
        model: any module; it is not touched.
        rate: r, how many times as many channels there are in between; 4 in the paper.
        expansion: "CL" for every kernel, "CK" for odd ones above 3.
        init: "default" draws all layers as torch does, as the paper; "same" draws the outer ones
            orthogonal and solves for the inner one, so that the contracted network is `model`,
            weights included (CL only).
        transposed: expand transposed convolutions too (CL).
        slim: layers whose first 1×1 keeps its number of channels. ExpandNets does so for the layer
            that reads the image (3 to 3).
        layers: which convolutions; all that `expandable` finds if left out.
        seed: of the new weights.

    Returns:
        A network of the model's class, with `ExpandedConv` and `ExpandedTranspose` inside.

    Raises:
        InputError: a rate below 1, or a layer that cannot be expanded.
        UnsupportedError: the model has no such convolution.
    """
    if rate < 1:
        raise InputError(f"rate={rate}: an expansion takes 1 or more times as many channels.")
    if expansion == "CK" and init == "same":
        raise InputError('init="same" solves for the k×k of CL; for CK pass init="default".')
    chosen = _chosen(model, expansion, layers, slim, transposed=transposed)
    made = copy.deepcopy(model)
    with seeded(seed):
        for name in chosen:
            layer = made.get_submodule(name)
            expanded = _expanded(layer, expansion, rate, slim=name in slim)
            expanded.to(cast(nn.Conv2d, layer).weight).train(layer.training)
            if init == "same":
                _reproduce(expanded, cast(nn.Conv2d, layer))
            made = _put(made, layer, expanded)
    return made


def contract(network: nn.Module) -> nn.Module:
    """The network with one convolution for each expanded one.

    Args:
        network: what `expand_convolutions` made, trained or not; it is not touched.

    Returns:
        The class, keys, shapes and dtype of the model that was expanded. In float64 its output
        differs by rounding only, borders included.
    """
    made = copy.deepcopy(network)
    for expanded in [m for m in made.modules() if isinstance(m, ExpandedConv | ExpandedTranspose)]:
        plain = cast(nn.Conv2d, expanded.original())
        weight, bias = expanded.contracted()
        with torch.no_grad():
            plain.weight.copy_(weight)
            if bias is not None:
                cast(Tensor, plain.bias).copy_(bias)
        plain.train(expanded.training)
        made = _put(made, expanded, plain)
    return made


def _chosen(
    model: nn.Module,
    expansion: Expansion,
    layers: Collection[str] | None,
    slim: Collection[str],
    *,
    transposed: bool,
) -> tuple[str, ...]:
    kind = type(model).__name__
    can = expandable(model, expansion=expansion, transposed=transposed)
    for argument, names in (("layers", layers or ()), ("slim", slim)):
        for name in names:
            if name not in can:
                raise InputError(
                    f"{argument}={name!r} is no convolution of the {kind} that {expansion} can "
                    f"expand; it can expand {_some(can)}."
                )
    chosen = can if layers is None else tuple(name for name in can if name in layers)
    if not chosen:
        sizes = "odd square kernels above 3" if expansion == "CK" else "kernels above 1"
        raise UnsupportedError(
            f"The {kind} has no convolution to expand by {expansion}, which takes {sizes}, with "
            "weights of their own that are trained. Try another expansion or method."
        )
    return chosen


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "none"


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """The model with `new` wherever `old` is called by name."""
    if model is old:
        return new
    for parent in list(model.modules()):
        # named_children() would tell a layer with two names once.
        for name, child in list(vars(parent)["_modules"].items()):
            if child is old:
                setattr(parent, name, new)
    return model


def _expanded(
    layer: nn.Module, expansion: Expansion, rate: int, *, slim: bool
) -> ExpandedConv | ExpandedTranspose:
    if isinstance(layer, _TRANSPOSED):
        return _transposed(cast(nn.ConvTranspose2d, layer), rate, slim=slim)
    conv = cast(nn.Conv2d, layer)
    parts = _small_kernels(conv, rate) if expansion == "CK" else _one_by_one(conv, rate, slim=slim)
    return ExpandedConv(list(parts), conv)


def _one_by_one(conv: nn.Conv2d, rate: int, *, slim: bool) -> Iterator[nn.Module]:
    """CL. The stride is the k×k's: what follows it is 1×1."""
    make, groups = cast(Any, type(conv)), conv.groups
    before = conv.in_channels * (1 if slim else rate)
    after, biased = conv.out_channels * rate, conv.bias is not None
    yield make(conv.in_channels, before, 1, groups=groups, bias=biased)
    yield make(
        before,
        after,
        conv.kernel_size,
        stride=conv.stride,
        dilation=conv.dilation,
        groups=groups,
        bias=biased,
    )
    yield make(after, conv.out_channels, 1, groups=groups, bias=biased)


def _small_kernels(conv: nn.Conv2d, rate: int) -> Iterator[nn.Module]:
    """CK. The stride is the last one's: before it every position counts."""
    make, num = cast(Any, type(conv)), (conv.kernel_size[0] - 1) // 2
    wide = [rate * conv.in_channels, *[rate * conv.out_channels] * (num - 2)]
    widths = [conv.in_channels, *wide, conv.out_channels]
    for i in range(num):
        yield make(
            widths[i],
            widths[i + 1],
            3,
            stride=conv.stride if i == num - 1 else 1,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
        )


def _transposed(layer: nn.ConvTranspose2d, rate: int, *, slim: bool) -> ExpandedTranspose:
    flat = cast(Any, _FORWARD[len(layer.kernel_size) - 1])
    groups, biased = layer.groups, layer.bias is not None
    before, after = layer.in_channels * (1 if slim else rate), layer.out_channels * rate
    middle = cast(Any, type(layer))(
        before,
        after,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        output_padding=layer.output_padding,
        dilation=layer.dilation,
        groups=groups,
        bias=biased,
    )
    return ExpandedTranspose(
        flat(layer.in_channels, before, 1, groups=groups, bias=False),
        middle,
        flat(after, layer.out_channels, 1, groups=groups, bias=biased),
        layer,
    )


def _reproduce(expanded: ExpandedConv | ExpandedTranspose, layer: nn.Conv2d) -> None:
    """Draw the outer 1×1 orthogonal and change the inner layer so that all three are `layer`.

    With A and B the outer ones, orthonormal on the narrow side, and M the inner one as drawn:
    M - Bᵀ(B M A)Aᵀ + Bᵀ W Aᵀ contracts to W, and M shows wherever W does not.
    """
    parts = expanded.parts()
    first, inner, last = parts
    with torch.no_grad():
        for outer in (first, last):
            for block in outer.weight.chunk(layer.groups):
                block.copy_(_orthonormal(block))
        for part in parts:
            if part.bias is not None:
                part.bias.zero_()
        if layer.bias is not None:
            cast(Tensor, last.bias).copy_(layer.bias)
        missing = layer.weight.double() - expanded.contracted()[0].double()
        inner.weight += expanded.spread(missing).to(inner.weight)


def _orthonormal(like: Tensor) -> Tensor:
    """(rows, columns, 1, ...): orthonormal along the shorter side."""
    rows, columns = like.shape[:2]
    q, _ = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), dtype=torch.float64))
    return (q if rows >= columns else q.T).reshape(like.shape).to(like)
