"""eslkit_tsdn: raw low-light denoising, the application that Expand-Shrink-Learning came from."""

from __future__ import annotations

__all__: list[str] = []
