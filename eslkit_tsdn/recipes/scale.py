"""Presets of the reproduction: how large the networks are and how long they are trained.

One dial, the widths of the small TSDN, gives all other networks: the paper's, of 16-32-64-128, or
smaller ones in the same proportions.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from eslkit.errors import InputError
from eslkit_tsdn.budget import Budget
from eslkit_tsdn.recipes.values import Network

__all__ = ["MINI", "PAPER", "PAPER_FAST", "SCALES", "SMOKE", "Scale", "whole_budget"]


class Scale(BaseModel):
    """Everything that a table's numbers depend on, apart from the pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Literal["smoke", "mini", "paper", "paper-fast"]
    """What it is called on the command line."""
    small: tuple[int, ...] = Field(min_length=2)
    """Widths of a stage of the small TSDN."""
    budget: Budget
    """Of every training; for `paper` and `paper-fast` iterations stand for one epoch."""
    epochs: int | None = None
    """Epochs of every training; None where the budget counts iterations."""
    batch_size: int = Field(ge=1)
    """Crops in a batch."""
    crop: int = Field(ge=8)
    """Height and width of a crop, in packed pixels."""
    gain: float | None = None
    """System gain K of synthetic noise in DN per electron; None draws it for every crop."""
    largest: int = 512
    """Test pictures are cut to this many packed pixels a side."""
    seeds: int = Field(default=1, ge=1)
    """Seeds of the rows where the spread counts: Table V and all rows of ESL."""
    other_seeds: int = Field(default=1, ge=1)
    """Seeds of the other rows."""

    @property
    def shrink(self) -> int:
        """By how much the networks are narrower than the paper's."""
        return max(1, 16 // self.small[0])

    @property
    def expanded(self) -> tuple[int, ...]:
        """Widths of an expanded stage: twice the channels and one level more, as U-Net's."""
        return (*(2 * width for width in self.small), 4 * self.small[-1])

    def tsdn(self, *, expanded: bool = False, stages: int = 2) -> Network:
        """The small TSDN, or the expanded one."""
        widths = self.expanded if expanded else self.small
        return Network(kind="tsdn", widths=widths, stages=stages)

    def unet(self, *, factor: float = 1) -> Network:
        """U-Net; SU-Net with a factor of a half, the start of U-Net-ESL with 2."""
        return Network(kind="unet", widths=tuple(int(width * factor) for width in self.expanded))

    def rival(self, kind: Literal["cbdnet", "nbnet", "deamnet"]) -> Network:
        """A rival's network, narrower by the same factor as TSDN."""
        widths = {"cbdnet": (64, 128, 256), "nbnet": (32, 64, 128, 256, 512), "deamnet": (64,)}
        return Network(kind=kind, widths=tuple(width // self.shrink for width in widths[kind]))


SMOKE = Scale(
    name="smoke",
    small=(4, 8, 16),
    budget=Budget(iterations=20, lr=2e-3),
    batch_size=4,
    crop=32,
    gain=4.0,
    largest=64,
)
"""Every table in minutes: shows that all of it runs, and nothing about quality."""

MINI = Scale(
    name="mini",
    small=(8, 16, 32),
    budget=Budget(iterations=2000, lr=1e-3),
    batch_size=16,
    crop=32,
    gain=4.0,
    largest=256,
    seeds=3,
)
"""A night on two cores: small networks, long enough for methods to differ by more than seeds."""

PAPER = Scale(
    name="paper",
    small=(16, 32, 64, 128),
    budget=Budget(iterations=2240, lr=1e-4),
    epochs=300,
    batch_size=1,
    crop=512,
)
"""As printed: 300 epochs a training, batch 1, crops of 512 (facts, sections 1, 6 and 7)."""

PAPER_FAST = Scale(
    name="paper-fast",
    small=(16, 32, 64, 128),
    budget=Budget(
        iterations=140, lr=4e-4, precision="bf16", channels_last=True, compiled=True, fused=True
    ),
    epochs=300,
    batch_size=16,
    crop=512,
)
"""The same samples in batches of 16, as modern GPUs want them; the learning rate is scaled by the
square root of the batch, which the paper does not cover."""

SCALES = {scale.name: scale for scale in (SMOKE, MINI, PAPER, PAPER_FAST)}
"""The presets by name."""


def whole_budget(scale: Scale, *, crops: int | None = None) -> Budget:
    """The budget of one training, with epochs counted out in iterations.

    Args:
        scale: the preset.
        crops: crops in an epoch of the data, where the preset counts epochs.

    Raises:
        InputError: the preset counts epochs, and the data has none.
    """
    if scale.epochs is None:
        return scale.budget
    if crops is None:
        raise InputError(
            f"The preset {scale.name} counts epochs of SID's crops: pass a prepared store with "
            "--data (eslkit-tsdn prepare), or take --preset mini with photographs."
        )
    iterations = scale.epochs * max(1, crops // scale.batch_size)
    return scale.budget.model_copy(update={"iterations": iterations})
