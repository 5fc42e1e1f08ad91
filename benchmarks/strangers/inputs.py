"""What a stranger is, and the inputs that strangers get."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Stranger", "Table", "noise", "read", "wave"]

Stranger = tuple[str, Callable[[], nn.Module], Any]
"""Name, factory, example inputs as `eslkit.trace` takes them."""


def noise(*shape: int) -> Tensor:
    """Uniform numbers of that shape, always the same."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def wave(*shape: int) -> Tensor:
    """Normal numbers of that shape, always the same: sound."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


Table = Mapping[str, tuple[Any, ...]]
"""Name -> `module:class`, arguments (a mapping), inputs (those of the table where left out)."""


def read(word: str, table: Table, inputs: Any) -> Iterator[Stranger]:
    """The networks of a table, named `word/name`."""
    for name, (where, arguments, *own) in table.items():

        def make(where: str = where, arguments: Mapping[str, Any] = arguments) -> nn.Module:
            module, _, kind = where.partition(":")
            return getattr(importlib.import_module(module), kind)(**arguments)

        yield f"{word}/{name}", make, own[0] if own else inputs
