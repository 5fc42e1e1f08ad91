"""Writes small DNG files with the tags that cameras write, for LibRaw to read (facts, 12)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

RGGB = (0, 1, 1, 2)
PHASES = {"RGGB": RGGB, "GRBG": (1, 0, 2, 1), "GBRG": (1, 2, 0, 1), "BGGR": (2, 1, 1, 0)}
SONY_XYZ = (0.5838, -0.1430, -0.0246, -0.3497, 1.1477, 0.2297, -0.0748, 0.1885, 0.5778)


def write_dng(
    path: Path,
    mosaic: np.ndarray,
    *,
    cfa: Sequence[int] = RGGB,
    period: tuple[int, int] = (2, 2),
    black: Sequence[int] = (512,) * 4,
    white: int = 16383,
    neutral: tuple[float, float, float] = (0.5, 1.0, 0.4),
    exposure: tuple[int, int] = (1, 10),
    iso: int = 800,
    photometric: int = 32803,
    num_frames: int = 1,
    extra: Sequence[tuple[Any, ...]] = (),
) -> Path:
    """Write `mosaic` (H x W, or H x W x 3 for photometric 34892) and return its path."""
    tags = [
        (33421, "H", 2, period, False),
        (33422, "B", len(cfa), bytes(cfa), False),
        (50706, "B", 4, bytes([1, 4, 0, 0]), False),
        (50707, "B", 4, bytes([1, 1, 0, 0]), False),
        (50708, "s", 0, "SONY ILCE-7SM2", False),
        (271, "s", 0, "SONY", False),
        (272, "s", 0, "ILCE-7SM2", False),
        (50713, "H", 2, period, False),
        (50714, "H", len(black), tuple(black), False),
        (50717, "I", 1, white, False),
        (50721, "2i", 9, _fractions(SONY_XYZ), False),
        (50728, "2I", 3, _fractions(neutral), False),
        (50778, "H", 1, 21, False),
        (33434, "2I", 1, exposure, False),
        (34855, "H", 1, iso, False),
        *extra,
    ]
    with tifffile.TiffWriter(path) as file:
        for _ in range(num_frames):
            file.write(
                mosaic, photometric=photometric, extratags=tags, metadata=None, subfiletype=0
            )
    return path


def _fractions(values: Sequence[float]) -> list[int]:
    return [part for value in values for part in (round(value * 10000), 10000)]
