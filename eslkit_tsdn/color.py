"""From camera colours to sRGB and back: the matrix of a camera and the curve of a screen."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["XYZ_FROM_SRGB", "camera_to_srgb", "srgb_decode", "srgb_encode"]

XYZ_FROM_SRGB: NDArray[np.float64] = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
"""Linear sRGB to CIE XYZ at D65 (ITU-R BT.709), the figures that LibRaw uses."""


def camera_to_srgb(camera_from_xyz: ArrayLike) -> NDArray[np.float64] | None:
    """Returns the matrix that takes white-balanced camera colours to linear sRGB.

    The rows of XYZ -> camera, applied to sRGB's primaries, are scaled to sum to one, so that
    white stays white, and the result is inverted (as dcraw and LibRaw do).

    Args:
        camera_from_xyz: 3x3 or 4x3 matrix XYZ -> camera; rows beyond the third are not used.

    Returns:
        3x3 matrix whose rows sum to one, or None where the camera's matrix is not known (all
        zeros) or cannot be inverted.
    """
    camera_from_srgb = np.asarray(camera_from_xyz, dtype=np.float64)[:3] @ XYZ_FROM_SRGB
    sums = camera_from_srgb.sum(axis=1, keepdims=True)
    if not np.isfinite(camera_from_srgb).all() or (sums <= 1e-6).any():
        return None
    camera_from_srgb /= sums
    if abs(np.linalg.det(camera_from_srgb)) < 1e-6:
        return None
    return np.linalg.inv(camera_from_srgb)


def srgb_encode(linear: ArrayLike) -> NDArray[np.float64]:
    """Applies the sRGB curve (IEC 61966-2-1) to linear light in [0, 1]; clips to that range."""
    x = np.clip(np.asarray(linear, dtype=np.float64), 0.0, 1.0)
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.power(x, 1 / 2.4) - 0.055)


def srgb_decode(encoded: ArrayLike) -> NDArray[np.float64]:
    """Undoes `srgb_encode`: sRGB values in [0, 1] to linear light in [0, 1]."""
    y = np.clip(np.asarray(encoded, dtype=np.float64), 0.0, 1.0)
    return np.where(y <= 0.04045, y / 12.92, np.power((y + 0.055) / 1.055, 2.4))
