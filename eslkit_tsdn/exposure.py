"""How much a dark photograph is to be amplified before it is denoised."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eslkit.errors import InputError
from eslkit_tsdn.raw import RawImage, pack

__all__ = ["MAX_RATIO", "TARGET_MEAN", "Amplification", "check_ratio", "choose_ratio"]

MAX_RATIO = 300.0
"""The largest ratio, as in SID; networks are trained up to it."""
TARGET_MEAN = 0.18 / 2**0.5
"""Mean that a well exposed picture has, as a part of the sensor's range: 12.7 %, half a stop below
a grey card of 18 %, for highlights (ISO 12232, saturation-based speed)."""

_WORTH_IT = 1.05
"""A ratio below this (a fourteenth of a stop) is left at 1."""
_KEPT = 99.0
"""Percent of the picture that must stay below white."""
_CELL = 8
"""Side of the squares, in packed pixels, whose means are compared: noise does not count."""


class Amplification(NamedTuple):
    """A ratio, and why."""

    ratio: float
    """What the picture is multiplied by, 1 to 300."""
    reason: str
    """What it rests on, in words."""


def choose_ratio(raw: RawImage) -> Amplification:
    """Amplifies a dark picture until it is as bright as one that is well exposed.

    The mean of the greens is brought to `TARGET_MEAN`, but not so far that more than one percent
    of the picture (means of small squares) is cut at white, and never more than `MAX_RATIO`. A
    picture that is bright enough is left as it is.

    Args:
        raw: the camera's file. Its exposure time does not count: what is dark at 10 s is dark.

    Returns:
        The ratio, not below 1, and the reason.
    """
    planes = pack(raw.mosaic, raw.pattern)[[1, 3]].astype(np.float32)
    black = np.array([raw.black[1], raw.black[3]], dtype=np.float32)[:, None, None]
    # Below black stays below: cutting there would make dark pictures brighter than they are.
    green = ((planes - black) / (raw.white - black)).mean(axis=0)
    mean = float(green.mean())
    bright = float(np.percentile(_squares(green), _KEPT))
    if mean <= TARGET_MEAN / MAX_RATIO:
        return Amplification(MAX_RATIO, f"its mean is {mean:.2%} of white; more than that is noise")
    by_mean, by_highlights = TARGET_MEAN / mean, 1.0 / max(bright, 1e-6)
    ratio = float(np.clip(min(by_mean, by_highlights), 1.0, MAX_RATIO))
    if ratio < _WORTH_IT:
        return Amplification(1.0, f"its mean is {mean:.2%} of white: bright enough")
    if by_highlights < by_mean:
        return Amplification(ratio, "so far that 99 % of it stay below white")
    return Amplification(ratio, f"from a mean of {mean:.2%} of white to {TARGET_MEAN:.1%}")


def check_ratio(ratio: float) -> float:
    """Returns a ratio that a user gave.

    Raises:
        InputError: it is not in [1, 300].
    """
    if not 1.0 <= ratio <= MAX_RATIO:
        raise InputError(
            f"ratio={ratio:g}: expected 1 (as it is) to {MAX_RATIO:g} (SID's largest)."
        )
    return float(ratio)


def _squares(plane: np.ndarray) -> np.ndarray:
    """Means of squares; the pixels themselves where the picture is smaller than one."""
    rows, columns = (side // _CELL for side in plane.shape)
    if not rows or not columns:
        return plane
    cut = plane[: rows * _CELL, : columns * _CELL]
    return cut.reshape(rows, _CELL, columns, _CELL).mean(axis=(1, 3))
