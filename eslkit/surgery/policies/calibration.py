"""Running a model on calibration batches, and seeing where its weights meet activations.

A convolution or a product is seen where ATen runs it, whatever module, function or operator of the
model's code asked for it, so nothing depends on how the model is written.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from eslkit.graph.trace import example_arguments

__all__ = ["Use", "uses_of", "weights_in_order"]

_ATEN: Any = torch.ops.aten
_WEIGHT_AT: dict[Any, tuple[int, ...]] = {
    _ATEN.convolution.default: (1,),
    _ATEN.mm.default: (0, 1),
    _ATEN.bmm.default: (0, 1),
    _ATEN.mv.default: (0,),
    _ATEN.addmm.default: (1, 2),
    _ATEN.baddbmm.default: (1, 2),
    _ATEN.addmv.default: (1,),
}
"""Operation -> which of its arguments may be the weight; all are linear in it."""
_BIAS_AT = {
    _ATEN.convolution.default: 2,
    _ATEN.addmm.default: 0,
    _ATEN.baddbmm.default: 0,
    _ATEN.addmv.default: 0,
}
_GROUPS_AT = 8


@dataclass(frozen=True)
class Use:
    """One operation in which a weight meets activations."""

    weight: str
    """Qualified name of the parameter."""
    bias: str | None
    """The bias that the operation adds, where that is a parameter."""
    target: Any
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    weight_at: int
    axes: tuple[int, ...]
    """The weight's axes longer than 1, in the order in which the operation has them."""

    def run(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The operation with another weight, another bias or none, on the same activations."""
        arguments = list(self.arguments)
        form: Sequence[int] = arguments[self.weight_at].shape
        rest = [axis for axis in range(weight.dim()) if axis not in self.axes]
        sizes = iter([weight.shape[axis] for axis in self.axes])
        shape = [1 if n == 1 else next(sizes) for n in form]
        arguments[self.weight_at] = weight.permute(*self.axes, *rest).reshape(shape)
        place = _BIAS_AT.get(self.target)
        if place is not None and (bias is not None or place > 0):
            arguments[place] = bias
        elif place is not None:  # addmm and the like want something to add
            arguments[place] = weight.new_zeros(())
        return self.target(*arguments, **self.keywords)

    def copied(self) -> Use:
        """The same, safe from operations in place that follow."""
        arguments = tuple(a.clone() if isinstance(a, Tensor) else a for a in self.arguments)
        return replace(self, arguments=arguments)

    def to(self, dtype: torch.dtype) -> Use:
        """The same operation in another precision."""
        arguments = tuple(
            a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a
            for a in self.arguments
        )
        return replace(self, arguments=arguments)


class _Found(Exception):  # noqa: N818  no error: the rest of the forward pass is not needed
    """All uses that were looked for have been seen."""


class _Watch(TorchDispatchMode):
    """Tells `see` about each use of a weight while the model runs."""

    def __init__(self, model: nn.Module, see: Callable[[Use], None]) -> None:
        super().__init__()
        self._see = see
        self._names = {_place(p): (n, p) for n, p in model.named_parameters() if p.numel()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        use = self._use(func, args, kwargs or {})
        if use is not None:
            self._see(use)
        return func(*args, **(kwargs or {}))

    def _use(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Use | None:
        if func is _ATEN.convolution.default and args[_GROUPS_AT] != 1:
            return None
        for at in _WEIGHT_AT.get(func, ()):
            name, parameter = self._names.get(_place(args[at]), ("", None))
            axes = None if parameter is None else _axes(parameter, args[at])
            if axes is None:
                continue
            place = _BIAS_AT.get(func)
            bias = None if place is None else self._whole(args[place])
            if place == 0 and bias is None:
                return None  # something else than a bias is added
            return Use(name, bias, func, args, kwargs, at, axes)
        return None

    def _whole(self, tensor: Tensor | None) -> str | None:
        """The parameter that this tensor is, all of it."""
        if tensor is None:
            return None
        name, parameter = self._names.get(_place(tensor), (None, None))
        return name if parameter is not None and parameter.shape == tensor.shape else None


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())


def _axes(parameter: Tensor, seen: Tensor) -> tuple[int, ...] | None:
    """Which axes of the parameter (none of size 1) the seen tensor has, in its order."""
    own = {parameter.stride(axis): axis for axis, size in enumerate(parameter.shape) if size > 1}
    there = [axis for axis, size in enumerate(seen.shape) if size > 1]
    axes = tuple(own.get(seen.stride(axis), -1) for axis in there)
    whole = len(set(axes)) == len(own) == len(axes) and -1 not in axes
    if not whole or [seen.shape[a] for a in there] != [parameter.shape[a] for a in axes]:
        return None
    return axes


def uses_of(model: nn.Module, batch: Any, weight: str, *, count: int) -> list[Use]:
    """The first operations of a forward pass in which a weight meets activations.

    Args:
        model: in the mode in which it is to run.
        batch: what the model is called with: a tensor, a tuple of positional arguments, or a
            mapping of keyword arguments.
        weight: qualified name.
        count: the forward pass ends at this use.
    """
    uses: list[Use] = []

    def see(use: Use) -> None:
        if use.weight != weight:
            return
        uses.append(use if count == 1 else use.copied())
        if len(uses) == count:
            raise _Found

    with suppress(_Found):
        _run(model, batch, see)
    return uses


def weights_in_order(model: nn.Module, batch: Any) -> dict[str, int]:
    """Weights in the order in which the forward pass first uses them -> how often it does."""
    counts: dict[str, int] = {}

    def see(use: Use) -> None:
        counts[use.weight] = counts.get(use.weight, 0) + 1

    _run(model, batch, see)
    return counts


def _run(model: nn.Module, batch: Any, see: Callable[[Use], None]) -> None:
    inputs, keywords = example_arguments(batch)
    like = next(nn.Module.parameters(model), torch.zeros(()))

    def move(leaf: Any) -> Any:
        return leaf.to(like.device) if isinstance(leaf, Tensor) else leaf

    inputs, keywords = pytree.tree_map(move, (inputs, keywords))
    with _plain(), _Watch(model, see):
        model(*inputs, **keywords)


@contextmanager
def _plain() -> Generator[None]:
    """No gradients, and attention as the products that it is made of; all is put back."""
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.backends.mha.set_fastpath_enabled(False)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
