"""What the paper prints, where it is on record here.

Sizes and costs of Table I, and the row of BM3D (facts, sections 0 and 3). The PSNR and SSIM of its
other rows are not on record: a table says so instead of leaving the column out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PRINTED", "Printed"]


@dataclass(frozen=True)
class Printed:
    """What the paper prints in a row; None for what is not on record here."""

    megabytes: float | None = None
    """Size of the model, as printed."""
    gflops: float | None = None
    """Cost, in the paper's own counting."""
    psnr: tuple[float, float, float] | None = None
    """At x100, x250 and x300, in dB."""
    ssim: tuple[float, float, float] | None = None


PRINTED: Mapping[tuple[str, str], Printed] = {
    ("table1", "BM3D"): Printed(psnr=(32.92, 29.56, 28.88), ssim=(0.758, 0.686, 0.674)),
    ("table1", "CBDNet"): Printed(megabytes=16.7, gflops=297.63),
    ("table1", "NBNet"): Printed(megabytes=50.8, gflops=216.44),
    ("table1", "DeamNet"): Printed(megabytes=8.6, gflops=429.95),
    ("table1", "U-Net"): Printed(megabytes=29.6, gflops=96.77),
    ("table1", "TSDN"): Printed(megabytes=3.8, gflops=37.31),
    ("table5", "U-Net"): Printed(megabytes=29.6, gflops=96.77),
}
"""(table, row) -> what the paper prints."""
