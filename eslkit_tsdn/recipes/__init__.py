"""Every row of the paper's tables as a recipe: what is trained, on what, for how long."""

from __future__ import annotations

__all__: list[str] = []
