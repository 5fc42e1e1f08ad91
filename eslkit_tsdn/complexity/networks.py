"""The networks of the paper's Table I, and what it says of their size and cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from eslkit_tsdn.complexity.counting import PACKED
from eslkit_tsdn.models import TSDN, CBDNet, DeamNet, DrawnNBNet, NBNet, SUNet, UNet
from eslkit_tsdn.models.tsdn import EXPANDED

__all__ = ["NETWORKS", "Listed"]


@dataclass(frozen=True)
class Listed:
    """A network, and the paper's figures for it."""

    name: str
    """As the paper calls it."""
    build: Callable[[], nn.Module]
    """Makes it in full size."""
    size: float | None = None
    """The paper's "model size" in MB; None where it gives none."""
    gflops: float | None = None
    """The paper's GFLOPs; None where it gives none."""
    counted_at: tuple[int, ...] = PACKED
    """The input at which the paper counted. Where it is smaller than `PACKED`, the figure that it
    got there, rounded to two digits, was multiplied: 54.11 by 4 for NBNet (facts.md, section 0)."""


NETWORKS: tuple[Listed, ...] = (
    Listed("TSDN", TSDN, size=3.8, gflops=37.31),
    Listed("TSDN1 = U-Net", UNet, size=29.6, gflops=96.77),
    Listed("TSDN2-4", lambda: TSDN(EXPANDED)),
    Listed("ThSDN", lambda: TSDN(EXPANDED, stages=3)),
    Listed("SU-Net", SUNet),
    Listed("CBDNet", CBDNet, size=16.7, gflops=297.63),
    Listed("DeamNet", DeamNet, size=8.6, gflops=429.95),
    Listed("NBNet", NBNet, size=50.8),
    Listed("NBNet as drawn", DrawnNBNet, gflops=216.44, counted_at=(1, 4, 256, 256)),
)
"""In the order of the table that `eslkit-tsdn complexity` prints. TSDN2 to TSDN4 are one network,
trained in three ways; U-Net-ELD is U-Net, trained on synthetic noise."""
