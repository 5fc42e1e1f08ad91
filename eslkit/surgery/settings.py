"""Settings that a module keeps as a whole: a dictionary, a namespace, a dataclass, a config.

Many networks are made from one object that says everything, and their modules read the widths off
it when they run. Modules share that object; a module that is to have other widths gets its own.
"""

from __future__ import annotations

import copy
import dataclasses
from argparse import Namespace
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import nn

__all__ = ["parts_of", "with_parts"]

_DEEPEST = 4
"""Settings in settings that are looked into."""
_NOT_COMPARED = (torch.Tensor, np.ndarray, nn.Module)
"""Whether two of these are equal has no plain answer, or a slow one."""


def parts_of(value: Any) -> dict[str, Any]:
    """The settings by name; empty where a value is none, or holds what cannot be compared."""
    found = _parts(value)
    return dict(found) if found and _is_comparable(value, _DEEPEST) else {}


def with_parts(value: Any, parts: Mapping[str, Any]) -> Any:
    """A copy of settings in which these are others; the rest is shared with the original."""
    made = copy.copy(value)
    target = made if isinstance(made, dict) else vars(made)  # a frozen dataclass refuses setattr
    for name, part in parts.items():
        target[name] = part
    return made


def _parts(value: Any) -> Mapping[str, Any]:
    if type(value) is dict:
        return value if all(isinstance(key, str) for key in value) else {}
    return vars(value) if _is_record(value) else {}


def _is_record(value: Any) -> bool:
    """An object with named values that is equal to another one of the same values."""
    kind = type(value)
    if isinstance(value, (Namespace, SimpleNamespace)):
        return True
    if (
        isinstance(value, (type, *_NOT_COMPARED))
        or callable(value)
        or not hasattr(value, "__dict__")
    ):
        return False
    own = kind.__module__.partition(".")[0] not in ("torch", "numpy", "builtins")
    return own and (dataclasses.is_dataclass(value) or kind.__eq__ is not object.__eq__)


def _is_comparable(value: Any, depth: int) -> bool:
    if isinstance(value, _NOT_COMPARED):
        return False
    inside = value if isinstance(value, (list, tuple)) else _parts(value).values()
    if isinstance(value, Mapping):  # whatever its keys are
        inside = cast(Mapping[Any, Any], value).values()
    return depth > 0 and all(_is_comparable(part, depth - 1) for part in inside)
