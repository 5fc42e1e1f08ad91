"""Structural copies of a model: the same classes and attributes, with other tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from eslkit.errors import InputError

__all__ = ["prepare", "skeleton"]

_REGISTRIES = ("_parameters", "_buffers", "_modules")


def skeleton(model: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of `model` in which every tensor `t` is `make(t)`; sharing is kept.

    Raises:
        InputError: the model holds something that cannot be copied.
    """
    memo: dict[int, Any] = {}
    for tensor in _own_tensors(model):
        made = make(tensor)
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = made
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} cannot be copied with copy.deepcopy: {error}. eslkit works on "
            "copies; remove what cannot be copied (locks, open files, generators) from the model."
        ) from error


def _own_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that other code left as plain attributes.

    Those (a weight that weight norm computes, a list of last outputs) cannot all be deep-copied.
    """
    seen: set[int] = set()
    pending: list[Any] = []
    for module in model.modules():
        pending += [vars(module)[name] for name in _REGISTRIES[:2]]
        pending += [value for key, value in vars(module).items() if key not in _REGISTRIES]
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, Mapping):
            pending.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            pending.extend(item)


def prepare(model: nn.Module, *, train: bool) -> None:
    """Set the mode in which a model is traced; the model is changed.

    With `train`, the model's own code is in train mode, so that outputs and heads which only
    training uses are seen; torch's layers are in eval mode all the same (their labels do not
    depend on it, and a batch norm in train mode would refuse maps of one position).
    """
    model.train(train)
    if not train:
        return
    for module in model.modules():
        if type(module).__module__.startswith("torch.nn."):
            module.training = False
