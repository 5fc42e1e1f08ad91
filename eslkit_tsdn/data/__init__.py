"""Where clean pictures come from, and how they are cut for training."""

from __future__ import annotations

__all__: list[str] = []
