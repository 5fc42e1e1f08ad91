"""Linear layers in the place of one convolution, and the one convolution that they are.

A stretch of convolutions without anything between them is a convolution. With zero padding
(and every other kind) it is that everywhere, borders included, as long as all padding is done
before the first of them: padding between them would cut off what the layers before made there.
(facts, section 5; Guo et al., "ExpandNets", NeurIPS 2020.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ExpandedConv", "ExpandedTranspose", "compose", "compose_transposed"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)

Kernel = tuple[Tensor, Tensor | None]
"""Weight and bias of a convolution."""


class ExpandedConv(nn.Module):
    """Several convolutions, all padding before the first, that are one when contracted.

    Args:
        layers: convolutions without padding, the output of each the input of the next.
        original: the convolution in whose place they stand; its padding is taken over.
    """

    def __init__(self, layers: Sequence[nn.Module], original: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.settings = _settings(original)
        kind: str = self.settings["padding_mode"]
        self.padding_mode = "constant" if kind == "zeros" else kind
        self.padding = _padding_of(original)

    def forward(self, x: Tensor) -> Tensor:
        """What the one convolution gives for (batch, channels, ...)."""
        if any(self.padding):
            x = F.pad(x, self.padding, mode=self.padding_mode)
        for layer in self.layers:
            x = layer(x)
        return x

    def contracted(self) -> Kernel:
        """Weight and bias of the one convolution, in the layers' own dtype."""
        parts = self.parts()
        kernel = _kernel(parts[0])
        for layer in parts[1:]:
            kernel = compose(kernel, _kernel(layer), groups=layer.groups)
        return _as(kernel, parts[0].weight)

    def parts(self) -> tuple[nn.Conv2d, ...]:
        """The layers, in order; of as many dimensions as the original."""
        return tuple(cast(nn.Conv2d, layer) for layer in self.layers)

    def spread(self, weight: Tensor) -> Tensor:
        """What to add to the inner of three layers so that the contracted weight gets `weight`.

        The outer two are orthonormal along their narrow sides.
        """
        first, inner, last = self.parts()
        a, b = (_blocks(layer) for layer in (first, last))
        added = weight.flatten(2).reshape(inner.groups, -1, *weight.flatten(2).shape[1:])
        return torch.einsum("gpi,goik,goq->gqpk", a, added, b).reshape(inner.weight.shape)

    def original(self) -> nn.Module:
        """A layer like the one that was expanded, with weights still to be filled in."""
        return _original(self.settings, self.parts()[0].weight)


class ExpandedTranspose(nn.Module):
    """A 1x1 without bias, a transposed convolution, and a 1x1: contracted, one transposed.

    The first 1x1 has no bias, because each position of the output is reached by another number
    of kernel elements, so that its bias would come out differently at each.

    Args:
        before: 1x1, no bias.
        transposed: with stride, padding, output padding and dilation of the original.
        after: 1x1.
        original: the transposed convolution in whose place they stand.
    """

    def __init__(
        self, before: nn.Module, transposed: nn.Module, after: nn.Module, original: nn.Module
    ) -> None:
        super().__init__()
        self.before, self.transposed, self.after = before, transposed, after
        self.settings = _settings(original)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """What the one transposed convolution gives for (batch, channels, ...)."""
        sizes = () if output_size is None else (output_size,)
        return self.after(self.transposed(self.before(x), *sizes))

    def contracted(self) -> Kernel:
        """Weight and bias of the one transposed convolution, in the layers' own dtype."""
        before, middle, after = self.parts()
        kernel = compose_transposed(
            before.weight.double(), _kernel(middle), _kernel(after), groups=middle.groups
        )
        return _as(kernel, before.weight)

    def parts(self) -> tuple[nn.Conv2d, ...]:
        """The layers, in order; of as many dimensions as the original."""
        return tuple(cast(nn.Conv2d, x) for x in (self.before, self.transposed, self.after))

    def spread(self, weight: Tensor) -> Tensor:
        """What to add to the inner of three layers so that the contracted weight gets `weight`."""
        first, inner, last = self.parts()
        a, b = (_blocks(layer) for layer in (first, last))
        added = weight.flatten(2).reshape(inner.groups, -1, *weight.flatten(2).shape[1:])
        return torch.einsum("gpi,giok,goq->gpqk", a, added, b).reshape(inner.weight.shape)

    def original(self) -> nn.Module:
        """A layer like the one that was expanded, with weights still to be filled in."""
        return _original(self.settings, self.parts()[0].weight)


def compose(first: Kernel, then: Kernel, *, groups: int = 1) -> Kernel:
    """The convolution that two in a row are.

    Args:
        first: weight (p, i / groups, ...) and bias (p,) or None.
        then: weight (o, p / groups, ...) and bias (o,) or None; applied to the first's output.
        groups: of both.

    Returns:
        Weight (o, i / groups, ...), each side k1 + k2 - 1, and bias (o,), or None where neither
        has one. A dilation that both share stays; a stride of either stays.
    """
    (w1, b1), (w2, b2) = first, then
    dims = w1.ndim - 2
    full = [side - 1 for side in w1.shape[2:]]
    parts: list[Tensor] = []
    for a, b in zip(w1.chunk(groups), w2.chunk(groups), strict=True):
        # Full convolution of the kernels, channels of the first's input as the batch.
        flipped = a.transpose(0, 1).flip(tuple(range(2, 2 + dims)))
        parts.append(_CONVOLVE[dims - 1](_pad_sides(b, full), flipped))
    weight = torch.cat(parts)
    if b1 is None:
        return weight, b2
    per_group = b1.reshape(groups, -1)
    through = w2.flatten(2).sum(2).reshape(groups, -1, per_group.shape[1])
    bias = torch.einsum("gop,gp->go", through, per_group).reshape(-1)
    return weight, bias if b2 is None else bias + b2


def compose_transposed(before: Tensor, middle: Kernel, after: Kernel, *, groups: int = 1) -> Kernel:
    """The transposed convolution that 1x1, transposed and 1x1 in a row are.

    Args:
        before: (p, i / groups, 1, ...); no bias.
        middle: weight (p, q / groups, ...) and bias (q,) or None.
        after: weight (o, q / groups, 1, ...) and bias (o,) or None.
        groups: of all three.

    Returns:
        Weight (i, o / groups, ...) and bias (o,), or None where no layer has one.
    """
    (w2, b2), (w3, b3) = middle, after
    one = before.flatten(1).reshape(groups, -1, before.shape[1])  # g, p, i
    two = w2.flatten(2).reshape(groups, -1, w2.shape[1], w2[0, 0].numel())  # g, p, q, kernel
    three = w3.flatten(1).reshape(groups, -1, w3.shape[1])  # g, o, q
    weight = torch.einsum("gpi,gpqk,goq->giok", one, two, three)
    weight = weight.reshape(-1, weight.shape[2], *w2.shape[2:])
    if b2 is None:
        return weight, b3
    bias = torch.einsum("goq,gq->go", three, b2.reshape(groups, -1)).reshape(-1)
    return weight, bias if b3 is None else bias + b3


def _pad_sides(x: Tensor, sides: Sequence[int]) -> Tensor:
    return F.pad(x, [pad for side in reversed(sides) for pad in (side, side)])


def _settings(layer: nn.Module) -> dict[str, Any]:
    """What makes a layer of the same kind and size."""
    names = ["in_channels", "out_channels", "kernel_size", "stride", "padding"]
    names += ["dilation", "groups", "padding_mode"]
    if isinstance(layer, _TRANSPOSED):
        names += ["output_padding"]
    settings = {name: getattr(layer, name) for name in names}
    return {**settings, "bias": getattr(layer, "bias", None) is not None, "kind": type(layer)}


def _original(settings: dict[str, Any], like: Tensor) -> nn.Module:
    arguments = {name: value for name, value in settings.items() if name != "kind"}
    with torch.device("meta"):  # no random numbers are drawn for what is filled in anyway
        layer: nn.Module = settings["kind"](**arguments, dtype=like.dtype)
    return layer.to_empty(device=like.device)


def _padding_of(layer: nn.Module) -> list[int]:
    """What F.pad takes, from the last axis to the first; torch works it out for `same` as well."""
    twice: Any = layer._reversed_padding_repeated_twice
    return list(twice)


def _kernel(layer: nn.Conv2d) -> Kernel:
    return layer.weight.double(), None if layer.bias is None else layer.bias.double()


def _blocks(layer: nn.Conv2d) -> Tensor:
    """A 1x1's weight, group by group: (groups, out / groups, in / groups)."""
    weight = layer.weight.double().flatten(1)
    return weight.reshape(layer.groups, -1, weight.shape[1])


def _as(kernel: Kernel, like: Tensor) -> Kernel:
    weight, bias = kernel
    return weight.to(like.dtype), None if bias is None else bias.to(like.dtype)
