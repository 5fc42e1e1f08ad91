"""The commands of `eslkit-tsdn`, one file each; `eslkit_tsdn.cli` puts them together."""

from __future__ import annotations

__all__: list[str] = []
