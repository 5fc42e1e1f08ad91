"""What a stranger is, and the inputs that strangers get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Stranger", "noise", "wave"]

Stranger = tuple[str, Callable[[], nn.Module], Any]
"""Name, factory, example inputs as `eslkit.trace` takes them."""


def noise(*shape: int) -> Tensor:
    """Uniform numbers of that shape, always the same."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def wave(*shape: int) -> Tensor:
    """Normal numbers of that shape, always the same: sound."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
