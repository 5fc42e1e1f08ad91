"""Presets of the reproduction: those of `eslkit_tsdn.presets`, and how many seeds they get."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from eslkit_tsdn.presets import PRESETS, Preset
from eslkit_tsdn.recipes.values import Network

__all__ = ["SCALES", "Scale"]


class Scale(BaseModel):
    """Everything that a table's numbers depend on, apart from the pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    preset: Preset
    """Sizes of networks and crops, and the length of every training."""
    seeds: int = Field(default=1, ge=1)
    """Seeds of the rows where the spread counts: Tables II to VI, U-Net, all rows of ESL."""
    other_seeds: int = Field(default=1, ge=1)
    """Seeds of the other rows."""

    def network(self, name: str, *, factor: int = 1) -> Network:
        """A network of the paper in this preset's widths.

        Args:
            name: a key of `eslkit_tsdn.presets.NETWORKS`.
            factor: how many times as wide.
        """
        return Network(name=name, widths=tuple(factor * width for width in self.preset.widths))


SCALES: Mapping[str, Scale] = {
    name: Scale(preset=PRESETS[name], seeds=3 if name == "mini" else 1)
    for name in ("paper", "paper-fast", "mini", "smoke")
}
"""By the names of the presets. Minutes of `smoke` tell nothing, and the trainings of `paper` are
weeks, so only `mini` has several seeds unless more are asked for."""
