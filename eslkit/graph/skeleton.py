"""Structural copies of a model: the same classes and attributes, with other tensors."""

from __future__ import annotations

import copy
import types
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
    closures = _twins_of_closures(model, memo)
    try:
        made = copy.deepcopy(model, memo)
        for old, new in closures:
            for cell, twin in zip(old.__closure__ or (), new.__closure__ or (), strict=True):
                if _is_filled(cell):
                    twin.cell_contents = copy.deepcopy(cell.cell_contents, memo)
        return made
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} cannot be copied with copy.deepcopy: {error}. eslkit works on "
            "copies; remove what cannot be copied (locks, open files, generators) from the model."
        ) from error


def _own_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that other code left as plain attributes.

    Those (a weight that weight norm computes, a list of last outputs) cannot all be deep-copied.
    """
    held: list[Any] = []
    for module in model.modules():
        held += [vars(module)[name] for name in _REGISTRIES[:2]]
        held += [value for key, value in vars(module).items() if key not in _REGISTRIES]
    yield from (item for item in _items(held) if isinstance(item, Tensor))


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


def _twins_of_closures(
    model: nn.Module, memo: dict[int, Any]
) -> list[tuple[types.FunctionType, types.FunctionType]]:
    """Functions on modules that hold modules or tensors in their closure, and empty twins of them.

    `copy.deepcopy` takes a function over as it is; a copy whose forward is such a function would
    go on using the layers of the original.
    """
    twins: list[tuple[types.FunctionType, types.FunctionType]] = []
    for module in model.modules():
        for item in _items(
            [value for key, value in vars(module).items() if key not in _REGISTRIES]
        ):
            if not isinstance(item, types.FunctionType) or id(item) in memo:
                continue
            cells = [c.cell_contents for c in item.__closure__ or () if _is_filled(c)]
            if any(isinstance(held, (nn.Module, Tensor)) for held in _items(cells)):
                twin = types.FunctionType(
                    item.__code__,
                    item.__globals__,
                    item.__name__,
                    item.__defaults__,
                    tuple(types.CellType() for _ in item.__closure__ or ()),
                )
                twin.__kwdefaults__ = item.__kwdefaults__
                vars(twin).update(vars(item))
                memo[id(item)] = twin
                twins.append((item, twin))
    return twins


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _items(values: list[Any]) -> Iterator[Any]:
    """The values, and what lies in the containers among them."""
    pending, seen = list(values), set[int]()
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Mapping):
            pending.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            pending.extend(item)
        else:
            yield item
