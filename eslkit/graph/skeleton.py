"""Structural copies of a model: the same classes and attributes, with other tensors."""

from __future__ import annotations

import copy
import copyreg
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eslkit.errors import InputError

__all__ = ["prepare", "skeleton", "with_memory", "without_memory"]

_REGISTRIES = ("_parameters", "_buffers", "_modules")
_ATOMIC = frozenset({type(None), bool, int, float, complex, str, bytes})
_EMPTY = frozenset({dict, OrderedDict, set, list})


def skeleton(model: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of `model` in which every tensor `t` is `make(t)`; sharing is kept.

    Raises:
        InputError: the model holds something that cannot be copied.
    """
    memo: dict[int, Any] = {}
    modules = list(nn.Module.modules(model))
    held = _held(modules)
    for tensor in (item for item in held if isinstance(item, Tensor)):
        made = make(tensor)
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = made
    closures = _twins_of_closures(held, memo)
    try:
        _copy_modules(modules, memo)
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


def _held(modules: Sequence[nn.Module]) -> list[Any]:
    """Parameters, buffers, and what the modules hold as plain attributes, containers opened.

    Tensors that other code left there (a weight that weight norm computes, a list of last
    outputs) cannot all be deep-copied.
    """
    values: list[Any] = []
    for module in modules:
        for key, value in vars(module).items():
            if key != "_modules" and type(value) not in _ATOMIC and not _is_empty(value):
                values.append(value)
    return list(_items(values))


def _copy_modules(modules: Sequence[nn.Module], memo: dict[int, Any]) -> None:
    """Put copies of the modules into `memo`, as `copy.deepcopy` would make them.

    It asks every attribute of every module how it wants to be copied, and that is most of what
    tracing a model of many layers took. Modules that say something about it are left to it.
    """
    kinds = {kind: _is_plain(kind) for kind in dict.fromkeys(map(type, modules))}
    plain = [m for m in modules if kinds[type(m)] and "__deepcopy__" not in vars(m)]
    for module in plain:
        memo[id(module)] = object.__new__(type(module))
    for module in reversed(plain):  # a module after those that it holds
        state = {key: _copied(value, memo) for key, value in module.__getstate__().items()}
        memo[id(module)].__setstate__(state)


def _is_plain(kind: Any) -> bool:
    """Whether copying a module of this class is copying what it holds."""
    return (
        getattr(kind, "__deepcopy__", None) is None
        and kind.__new__ is object.__new__
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind.__getstate__ is nn.Module.__getstate__
        and kind.__setstate__.__module__.startswith("torch.nn.modules.")
        and kind not in copyreg.dispatch_table
        and not any("__slots__" in vars(base) for base in kind.__mro__)
    )


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """`copy.deepcopy`, with a short way for what most attributes of modules are."""
    kind = type(value)
    if kind in _ATOMIC:
        return value
    known = memo.get(id(value), memo)
    if known is not memo:
        return known
    if _is_empty(value):
        made = memo[id(value)] = kind()
        return made
    if kind is dict and all(type(key) is str for key in value):
        made = memo[id(value)] = dict[str, Any]()
        made.update((key, _copied(item, memo)) for key, item in value.items())
        return made
    if kind is tuple and all(type(item) in _ATOMIC for item in value):
        return value
    return copy.deepcopy(value, memo)


def _is_empty(value: Any) -> bool:
    return type(value) in _EMPTY and not value


def without_memory(model: nn.Module) -> nn.Module:
    """A copy of `model` whose tensors are on `meta`: only their forms are left."""
    return skeleton(model, lambda tensor: torch.empty_like(tensor.detach(), device="meta"))


def with_memory(model: nn.Module) -> nn.Module:
    """A copy of `model` with zeros for what has no values: for code that looks at them."""

    def make(tensor: Tensor) -> Tensor:
        data = tensor.detach()
        return torch.zeros(data.shape, dtype=data.dtype) if data.is_meta else data.clone()

    return skeleton(model, make)


def prepare(model: nn.Module, *, train: bool) -> None:
    """Set the mode in which a model is traced; the model is changed.

    With `train`, the model's own code is in train mode, so that outputs and heads which only
    training uses are seen; torch's layers are in eval mode all the same (their labels do not
    depend on it, and a batch norm in train mode would refuse maps of one position).
    """
    model.train(train)
    if not train:
        return
    for module in nn.Module.modules(model):
        if type(module).__module__.startswith("torch.nn."):
            module.training = False


def _twins_of_closures(
    held: Sequence[Any], memo: dict[int, Any]
) -> list[tuple[types.FunctionType, types.FunctionType]]:
    """Functions on modules that hold modules or tensors in their closure, and empty twins of them.

    `copy.deepcopy` takes a function over as it is; a copy whose forward is such a function would
    go on using the layers of the original.
    """
    twins: list[tuple[types.FunctionType, types.FunctionType]] = []
    for item in held:
        if isinstance(item, types.FunctionType) and id(item) not in memo:
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
