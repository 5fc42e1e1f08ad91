"""What operations give on tensors without memory, found out once for each form of their arguments.

On `meta` only forms count: shapes, strides, types. Torch finds some of them in Python, which takes
half a millisecond for an activation, and a schedule meets the same few operations in every network.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["RememberForms", "call"]

_MOST = 1 << 14
_SIMPLE = frozenset({type(None), str, torch.dtype, torch.layout, torch.device, torch.memory_format})
_NUMBERS = frozenset({bool, int, float, complex})

_known: dict[Any, tuple[type, tuple[Any, ...]] | None] = {}
"""Operation and forms of its arguments -> kind of result and forms; None where that is not all."""


def call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `func(*args, **kwargs)` gives.

    Args:
        func: an operation as a dispatch mode meets it.
        args: positional arguments.
        kwargs: keyword arguments.
    """
    key = _key(func, args, kwargs) if _is_pure(func) else None
    if key is None:
        return func(*args, **kwargs)
    known = _known.get(key)
    if known is not None:
        kind, forms = known
        made = [_empty(form) for form in forms]
        return made[0] if kind is Tensor else kind(made)
    result = func(*args, **kwargs)
    if key not in _known:
        if len(_known) >= _MOST:
            _known.clear()
        _known[key] = _forms(result, pytree.tree_leaves((args, kwargs)))
    return result


class RememberForms(TorchDispatchMode):
    """Operations are asked for what they give once for each form of their arguments."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return call(func, args, kwargs or {})


@functools.cache
def _is_pure(func: Any) -> bool:
    """Whether an operation of torch's own makes tensors that share memory with nothing."""
    schema = func._schema
    return (
        func.namespace in ("aten", "prims")
        and not schema.is_mutable
        and bool(schema.returns)
        and all(result.alias_info is None for result in schema.returns)
    )


def _key(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the result's form hangs on; None where an argument is not on `meta`, or unknown."""
    found: list[Any] = []
    if not all(_note(arg, found) for arg in args):
        return None
    for name, arg in kwargs.items():
        found.append(name)
        if not _note(arg, found):
            return None
    if Tensor not in found:
        return None  # what it makes may lie anywhere
    return (func, torch.get_default_dtype(), len(args), *found)


def _note(arg: Any, found: list[Any]) -> bool:
    """Append what tells an argument's form from others; False where that is not known."""
    kind = type(arg)
    if kind is Tensor or kind is nn.Parameter:
        if not _is_simple(arg):
            return False
        found += (Tensor, _form(arg))
    elif kind in _SIMPLE:
        found.append(arg)
    elif kind in _NUMBERS:
        found += (kind, arg)
    elif kind is list or kind is tuple:
        found += (list, len(arg))
        return all(_note(item, found) for item in arg)
    else:
        return False
    return True


def _is_simple(tensor: Tensor) -> bool:
    return (
        tensor.is_meta
        and tensor.layout is torch.strided
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype


def _empty(form: tuple[Any, ...]) -> Tensor:
    shape, strides, _, dtype = form
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def _forms(result: Any, given: list[Any]) -> tuple[type, tuple[Any, ...]] | None:
    """The forms of new tensors of their own; None where a result is anything else."""
    kind = type(result)
    items = result if kind in (list, tuple) else (result,)
    taken = {_storage(item) for item in given if isinstance(item, Tensor)}
    for item in items:
        if type(item) is not Tensor or not _is_simple(item) or item.storage_offset():
            return None
        size = item.untyped_storage().nbytes()
        if _storage(item) in taken or _empty(_form(item)).untyped_storage().nbytes() != size:
            return None
    return kind, tuple(map(_form, items))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
