"""The paper's tables: recipes carried out, measured and laid beside the paper's figures."""

from __future__ import annotations

__all__: list[str] = []
