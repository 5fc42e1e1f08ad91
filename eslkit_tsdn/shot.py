"""What a camera wrote down about a photograph, beside its pixels and levels.

LibRaw (through rawpy) tells most of it for every camera. Maker and model come from the file's
first directory where the file is TIFF-like (DNG, ARW, NEF, CR2, ...), and else from the header
that LibRaw puts before the camera's own preview. From a DNG its whole colour profile is taken
over, tag by tag.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import rawpy
import tifffile
from numpy.typing import NDArray
from PIL import Image

from eslkit_tsdn.color import XYZ_FROM_SRGB
from eslkit_tsdn.quiet import native_stderr_off

__all__ = ["DngTag", "Shot", "read_shot"]

DngTag = tuple[int, int, int, Any]
"""A tag taken over from a DNG: code, TIFF type, count, and value as tifffile reads it."""

_MAKE, _MODEL = 271, 272
_ORIENTATIONS = {0: 1, 1: 2, 2: 4, 3: 3, 4: 5, 5: 8, 6: 6, 7: 7}
"""LibRaw's flips (1 = left-right, 2 = up-down, 4 = transposed) as Exif's orientations."""

_COLOR_TAGS = frozenset(
    {
        *(50721, 50722, 50723, 50724, 50727, 50728, 50729),  # matrices, calibration, white
        *(50730, 50731, 50732, 50734, 50739),  # baselines, response limit, shadows
        *(50778, 50779, 50931, 50932, 50936, 50940, 50941, 50942),  # illuminants, profile
        *(50937, 50938, 50939, 50964, 50965, 50981, 50982, 51107, 51108, 51109, 51110),
    }
)
"""Tags of a DNG's first directory that say how its colours are meant."""
_MOSAIC_TAGS = frozenset({50733, 50780, 51009, 51022})
"""Tags of a DNG's mosaic: how far its greens differ, and corrections (shading, lens) to be made
after the levels. Those before the levels (51008: bad pixels) are over when LibRaw has read it."""


@dataclass(frozen=True, eq=False)
class Shot:
    """A photograph's circumstances; None where the file does not tell."""

    make: str | None = None
    """Maker of the camera, as the file writes it."""
    model: str | None = None
    """Model of the camera, as the file writes it."""
    lens: str | None = None
    """Model of the lens."""
    artist: str | None = None
    """Who took it."""
    taken: datetime | None = None
    """When it was taken, by the camera's clock."""
    aperture: float | None = None
    """f-number."""
    focal_length: float | None = None
    """In mm."""
    orientation: int = 1
    """How the sensor's picture is to be turned, as Exif writes it (1 to 8)."""
    camera_from_xyz: NDArray[np.float64] | None = None
    """3x3, CIE XYZ at D65 to the camera's colours."""
    as_shot: tuple[float, float, float] | None = None
    """Gains of R, G, B as the camera set them, G = 1."""
    crop: tuple[int, int, int, int] | None = None
    """Left, top, width and height of the camera's own frame in the visible mosaic."""
    pixel_aspect: float = 1.0
    """Width of a pixel by its height."""
    profile: tuple[DngTag, ...] = ()
    """Colour tags of the file's own, where it is a DNG; they stand for matrix and gains."""


def read_shot(path: str | Path) -> Shot:
    """Reads what a camera wrote down about a photograph.

    Args:
        path: a camera file that `read_raw` reads.

    Returns:
        Camera, lens, time, aperture, orientation, colour matrix, white balance, frame.
    """
    path = Path(path)
    with rawpy.RawPy() as raw, native_stderr_off():
        raw.open_file(str(path))
        other, sizes, lens = raw.other, raw.sizes, raw.lens
        # LibRaw keeps single precision: 0.9194 comes as 0.91939998.
        matrix = np.asarray(raw.rgb_xyz_matrix, dtype=np.float64)[:3].round(6)
        stated = np.asarray(raw.color_matrix, dtype=np.float64)[:, :3]
        gains = [float(gain) for gain in raw.camera_whitebalance[:3]]
        preview_make, preview_model = _names_of_preview(raw)
    make, model, profile = _tiff_tags(path)
    frame = (
        sizes.crop_left_margin - sizes.left_margin,
        sizes.crop_top_margin - sizes.top_margin,
        sizes.crop_width,
        sizes.crop_height,
    )
    return Shot(
        make=make or preview_make,
        model=model or preview_model,
        lens=_text(lens.model),
        artist=_text(other.artist),
        taken=other.timestamp if other.timestamp.timestamp() > 0 else None,
        aperture=_positive(other.aperture),
        focal_length=_positive(other.focal_length),
        orientation=_ORIENTATIONS.get(sizes.flip, 1),
        camera_from_xyz=_colors(matrix, stated),
        as_shot=(gains[0] / gains[1], 1.0, gains[2] / gains[1]) if min(gains) > 0 else None,
        crop=frame if _fits(frame, height=sizes.height, width=sizes.width) else None,
        pixel_aspect=float(sizes.pixel_aspect) if sizes.pixel_aspect > 0 else 1.0,
        profile=profile,
    )


def _colors(known: NDArray[np.float64], stated: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """XYZ to camera: from LibRaw's table, else from what the file states (camera to sRGB)."""
    if np.isfinite(known).all() and known.any():
        return known
    whole = np.isfinite(stated).all() and np.allclose(stated.sum(axis=1), 1.0, atol=1e-3)
    if not whole or abs(np.linalg.det(stated)) < 1e-6:
        return None
    return (np.linalg.inv(stated) @ np.linalg.inv(XYZ_FROM_SRGB)).round(6)


def _text(value: object) -> str | None:
    """A text that says something, in letters that every TIFF reader takes."""
    text = str(value or "").encode("ascii", "replace").decode().strip("\0 ")
    return text or None


def _positive(value: float) -> float | None:
    return float(f"{value:.6g}") if 0 < value < float("inf") else None


def _fits(frame: tuple[int, int, int, int], *, height: int, width: int) -> bool:
    """Whether a frame is one, and lies inside the visible mosaic."""
    left, top, columns, rows = frame
    inside = left >= 0 and top >= 0 and left + columns <= width and top + rows <= height
    return inside and columns > 0 and rows > 0


def _names_of_preview(raw: rawpy.RawPy) -> tuple[str | None, str | None]:
    """Maker and model from the header of the preview: the camera's own, or one by LibRaw."""
    try:
        preview = raw.extract_thumb()
        if preview.format != rawpy.ThumbFormat.JPEG:  # pyright: ignore[reportAttributeAccessIssue]
            return None, None
        with Image.open(io.BytesIO(bytes(preview.data))) as picture:
            tags = picture.getexif()
    except (rawpy.LibRawError, OSError, ValueError, SyntaxError):  # pyright: ignore[reportAttributeAccessIssue]
        return None, None  # a damaged preview does not keep its picture from being used
    return _text(tags.get(_MAKE)), _text(tags.get(_MODEL))


def _tiff_tags(path: Path) -> tuple[str | None, str | None, tuple[DngTag, ...]]:
    """Maker, model and, of a DNG, the colour profile; nothing where the file is no TIFF."""
    try:
        with tifffile.TiffFile(path) as file:
            first = file.pages.first
            tags = first.tags
            make, model = _text(tags.valueof(_MAKE)), _text(tags.valueof(_MODEL))
            if 50706 not in tags:
                return make, model, ()
            profile = [_taken_over(tag) for tag in tags if tag.code in _COLOR_TAGS]
            pages = cast(Iterable[tifffile.TiffPage], first.pages or ())
            for page in (first, *pages):
                if int(page.tags.valueof(262, default=0)) == 32803:
                    profile += [_taken_over(tag) for tag in page.tags if tag.code in _MOSAIC_TAGS]
                    break
    except (tifffile.TiffFileError, OSError, ValueError, LookupError, TypeError, struct.error):
        return None, None, ()
    return make, model, tuple(profile)


def _taken_over(tag: tifffile.TiffTag) -> DngTag:
    return tag.code, int(tag.dtype), tag.count, tag.value
