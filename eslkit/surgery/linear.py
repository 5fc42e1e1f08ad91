"""Linear expansion: a layer learns as a sum of itself and a product, and is multiplied out again.

A convolution or linear layer with weight W, seen as a matrix with a row for each output, learns
as `W + left @ right` with many more columns between `left` and `right` than it has channels.
Nothing nonlinear lies between the two, so the layer computes what one weight of W's shape does,
and in the end it is that weight: nothing is lost when it collapses. What differs is the way that
gradient descent takes. After "ExpandNets: Linear Over-parameterization to Train Compact
Convolutional Networks" (Guo, Alvarez, Salzmann, NeurIPS 2020) and the collapsible blocks of
"Collapsible Linear Blocks for Super-Efficient Super Resolution" (Bhardwaj et al., MLSys 2022),
which multiplies weights instead of running two layers.
"""

from __future__ import annotations

from collections import Counter
from typing import cast

import torch
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from eslkit.errors import InputError

__all__ = [
    "LinearExpansion",
    "check_linear",
    "check_times",
    "collapse",
    "expand_linearly",
    "expandable_layers",
    "product_macs",
]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)


class LinearExpansion(nn.Module):
    """A weight as `own + left @ right`, in every group of a convolution.

    Args:
        groups: of the convolution.
        transposed: whether the weight has its inputs first.
        times: so many times as many columns as the group has inputs or outputs.
        generator: draws what `left` and `right` begin with.
        order: names of the layer's parameters as they were, to put them back.
    """

    def __init__(
        self,
        *,
        groups: int,
        transposed: bool,
        times: int,
        generator: torch.Generator | None,
        order: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.groups, self.transposed, self.times, self.order = groups, transposed, times, order
        self._generator = generator
        self.held: list[Tensor] = []
        """While its layer runs: the weight."""
        self.hooks: list[RemovableHandle] = []
        """Of its layer."""

    def forward(self, own: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """The weight.

        Args:
            own: of the weight's shape.
            left: (groups, outputs of a group, inner).
            right: (groups, inner, inputs of a group times the kernel's positions).
        """
        return self.held[0] if self.held else self._made(own, left, right)

    def _made(self, own: Tensor, left: Tensor, right: Tensor) -> Tensor:
        kind = own.device.type
        if is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self._sum(own, left, right)
        return self._sum(own, left, right)

    def _sum(self, own: Tensor, left: Tensor, right: Tensor) -> Tensor:
        # One operation: networks that stay small spend their time on the number of operations.
        return self._weight(torch.baddbmm(self._matrix(own), left, right), own)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three tensors that make the weight: the product begins as zero, its factors do not.

        The columns of `left` are orthonormal, and what `right` has there is taken out of it.
        """
        matrix = self._matrix(weight).detach()
        groups, outputs, columns = matrix.shape
        inner = self._inner(weight)
        basis = torch.linalg.qr(self._drawn(groups, inner, outputs))[0]
        noise = self._drawn(groups, inner, columns)
        noise -= basis @ (basis.mT @ noise)
        spread = matrix.double().std(correction=0).cpu()
        self._generator = None  # a generator can be neither copied nor pickled
        left, right = basis.mT.contiguous(), noise * spread
        return weight.detach().clone(), left.to(weight), right.to(weight)

    def _drawn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def macs(self, weight: Tensor) -> int:
        """Multiply-accumulates of the product that makes a weight of this shape."""
        return weight.numel() * self._inner(weight)

    def _inner(self, weight: Tensor) -> int:
        """Columns between the factors."""
        sides = weight.shape[0] // self.groups, weight.shape[1]
        return self.times * max(sides)

    def _matrix(self, weight: Tensor) -> Tensor:
        """(groups, outputs of a group, everything else)."""
        grouped = weight.unflatten(0, (self.groups, -1))
        return (grouped.transpose(1, 2) if self.transposed else grouped).flatten(2)

    def _weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        if not self.transposed:
            return matrix.reshape(like.shape)
        inputs = like.shape[0] // self.groups
        rows = matrix.unflatten(2, (inputs, *like.shape[2:])).transpose(1, 2)
        return rows.reshape(like.shape)


def expandable_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that can be expanded linearly.

    Convolutions, transposed ones and linear layers of torch, what is derived from them, and layers
    that a network writes anew with a `weight` of rows and columns (a kernel that they hand to
    `F.conv2d`, say), whose weight is trained, is theirs alone, and is not parametrized otherwise.
    """
    uses = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )
    names: list[str] = []
    for name, module in model.named_modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if (
            weight is not None
            and not is_lazy(weight)
            and (isinstance(module, _LAYERS) or _is_written_anew(module, weight))
            and weight.requires_grad
            and weight.is_floating_point()
            and uses[id(weight)] == 1
            and weight.numel()
            and weight.dim() > 1
            and len(weight) % _groups(module) == 0
        ):
            names.append(name)
    return tuple(names)


def _is_written_anew(module: nn.Module, weight: Tensor) -> bool:
    """Whether a layer owes torch nothing but `nn.Module`, and its weight can be a matrix.

    That keeps out torch's norms and embeddings, and scales of whatever class: (C,), (1, C, 1, 1).
    A sum with a product can be any weight, however its numbers lie, so what its axes mean need not
    be known: of a kernel that has its inputs first, the product mixes those.
    """
    own = all(c in (nn.Module, object) or not _of_torch(c) for c in type(module).__mro__)
    return own and weight.dim() > 1 and 1 < len(weight) < weight.numel()


def _of_torch(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "torch"


def expand_linearly(model: nn.Module, times: int = 4, *, seed: int = 0) -> tuple[str, ...]:
    """Let every convolution and linear layer of a model learn as a sum of itself and a product.

    The model is changed in place and computes what it computed before, up to rounding; it is still
    of its class, but for three parameters in place of each weight. `collapse` is the way back.
    Make the optimizer afterwards.

    Args:
        model: any module.
        times: how many times as many columns the factors have as their layer has inputs or outputs,
            whichever are more. An update costs about `times * channels` more multiplications for
            each number of a weight, once whatever the batch: nothing beside the thousands of
            positions that a convolution usually has.
        seed: of what the factors begin with; torch's own generators are not touched.

    Returns:
        The names of the layers; others are left alone, see `expandable_layers`.

    Raises:
        InputError: `times` is no whole number from 1.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from eslkit.surgery.linear import collapse, expand_linearly
        >>> model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.rand(1, 3, 8, 8)
        >>> before = model(x)
        >>> expand_linearly(model)
        ('0',)
        >>> bool(torch.allclose(model(x), before, atol=1e-6))
        True
        >>> collapse(model)
        ('0',)
        >>> list(model.state_dict())
        ['0.weight', '0.bias']
    """
    check_times(times, least=1)
    generator = torch.Generator().manual_seed(seed)
    names = expandable_layers(model)
    for name in names:
        layer = model.get_submodule(name)
        parametrize.register_parametrization(layer, "weight", _of(layer, times, generator))
        if not _is_torchs_forward(layer):
            _expansion(layer).hooks = [
                layer.register_forward_pre_hook(_hold),
                layer.register_forward_hook(_let_go, always_call=True),
            ]
    return names


def _is_torchs_forward(layer: nn.Module) -> bool:
    """Whether a layer runs code that is known to ask for its weight once, and not to write it."""
    return any(type(layer).forward is kind.forward for kind in _LAYERS)


def _hold(layer: nn.Module, _inputs: object) -> None:
    """Let a layer find the same weight whenever it asks while it runs.

    A masked convolution, say, writes zeros into its weight and then convolves with it. The weight
    is made here, and not when the layer first asks, which may be where no gradients are wanted.
    """
    expansion = _expansion(layer)
    expansion.held = []
    expansion.held = [cast(Tensor, layer.weight)]


def _let_go(layer: nn.Module, _inputs: object, _output: object) -> None:
    _expansion(layer).held = []


def _expansion(layer: nn.Module) -> LinearExpansion:
    (*_, last) = cast(parametrize.ParametrizationList, layer.parametrizations["weight"])  # type: ignore[index]
    return cast(LinearExpansion, last)


def product_macs(model: nn.Module, times: int = 4) -> int:
    """Multiply-accumulates that the products of linear expansion add to an update's forward pass.

    They do not depend on the batch: for their share, divide by what a batch takes, as
    `eslkit.cost(model, example_inputs=batch).macs` says.

    Args:
        model: the model without expansion.
        times: as for `expand_linearly`.
    """
    layers = [model.get_submodule(name) for name in expandable_layers(model)]
    return sum(_of(layer, times).macs(cast(Tensor, layer.weight)) for layer in layers)


def _of(layer: nn.Module, times: int, generator: torch.Generator | None = None) -> LinearExpansion:
    return LinearExpansion(
        groups=_groups(layer),
        transposed=isinstance(layer, _TRANSPOSED),
        times=times,
        generator=generator,
        order=tuple(name for name, _ in layer.named_parameters(recurse=False)),
    )


def _groups(layer: nn.Module) -> int:
    is_torchs = isinstance(layer, _LAYERS) and not isinstance(layer, nn.Linear)
    return cast(nn.Conv2d, layer).groups if is_torchs else 1


def collapse(model: nn.Module) -> tuple[str, ...]:
    """Multiply out what `expand_linearly` has made of a model, in place.

    Args:
        model: any module; other parametrizations stay.

    Returns:
        The names of the layers, whose weights are single parameters again.
    """
    names: list[str] = []
    for name, layer in list(model.named_modules()):
        # by its children: a wrapper may answer getattr for what is inside of it
        kept = dict(layer.named_children()).get("parametrizations")
        if not isinstance(kept, nn.ModuleDict) or "weight" not in kept:
            continue
        (*_, last) = cast(parametrize.ParametrizationList, kept["weight"])
        if not isinstance(last, LinearExpansion):
            continue
        for hook in last.hooks:
            hook.remove()
        _own_class(layer)
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        parameters = dict(layer.named_parameters(recurse=False))
        for key in last.order:
            delattr(layer, key)
            layer.register_parameter(key, parameters[key])
        names.append(name)
    return tuple(names)


def _own_class(layer: nn.Module) -> None:
    """A class of its own: torch takes the weight off the class, which copies of a layer share."""
    shared = type(layer)
    kept = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    layer.__class__ = cast(type[nn.Module], type(shared.__name__, shared.__bases__, kept))


def check_linear(model: nn.Module, times: int) -> None:
    """Raise unless the layers of a model can be expanded so; 0 times is for not at all.

    Raises:
        InputError: it is no whole number from 0, or there is no such layer.
    """
    check_times(times)
    if times and not expandable_layers(model):
        raise InputError(
            f"linear={times}: {type(model).__name__} has no convolution or linear layer whose "
            "weight is trained and its own, so that there is nothing to expand inside of layers. "
            "Leave linear= out, or pass recipe='thrifty'."
        )


def check_times(times: object, *, least: int = 0) -> None:
    """Raise unless it is a whole number from `least`.

    Raises:
        InputError: it is not.
    """
    if not isinstance(times, int) or isinstance(times, bool) or times < least:
        raise InputError(
            f"linear={times!r}: expected a whole number from {least}, such as 4: how many times as "
            "many channels lie inside of a layer as at its ends."
        )
