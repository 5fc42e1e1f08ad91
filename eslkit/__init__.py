"""Expand-Shrink-Learning for any encoder-decoder in PyTorch."""

from __future__ import annotations

__all__: list[str] = []
