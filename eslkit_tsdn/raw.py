"""Camera files with a Bayer filter, read and packed to R, G1, B, G2 planes.

LibRaw (through rawpy) decodes the file. What is not a single Bayer picture is refused with a
sentence that names the file and says what it is. Colour codes follow LibRaw: 0 = R, 1 = the
green of the red rows (G1), 2 = B, 3 = the green of the blue rows (G2), in all four phases.

Axes: H, W = mosaic rows and columns; h = H // 2, w = W // 2.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rawpy
from numpy.typing import ArrayLike, NDArray

from eslkit.errors import InputError
from eslkit_tsdn.color import camera_to_srgb, srgb_encode
from eslkit_tsdn.exif import plausible, read_camera, read_exposure
from eslkit_tsdn.quiet import native_stderr_off

__all__ = [
    "Pattern",
    "RawImage",
    "normalize",
    "normalize_planes",
    "pack",
    "read_raw",
    "render",
    "unpack",
]

Pattern = tuple[tuple[int, int], tuple[int, int]]
"""Colour codes of the mosaic's first 2x2 pixels, row by row."""

_PHASES: frozenset[Pattern] = frozenset(
    {((0, 1), (3, 2)), ((1, 0), (2, 3)), ((3, 2), (0, 1)), ((2, 3), (1, 0))}
)
_RAW_HEADS = (b"II", b"MM", b"FUJIFILM", b"\0MRM")
_MAX_HEADERLESS = 2**28
_OTHER_HEADS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"BM": "a BMP picture",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"FOVb": "a Foveon file (X3F), whose pixels have no Bayer filter",
}


@dataclass(frozen=True, eq=False)
class RawImage:
    """A camera file's visible mosaic and what is needed to interpret it."""

    mosaic: NDArray[np.uint16]
    """H x W sensor values, black level included."""
    pattern: Pattern
    """Colour codes of the first 2x2 pixels."""
    black: tuple[float, float, float, float]
    """Black level of R, G1, B, G2, in DN."""
    white: float
    """White level, in DN."""
    white_balance: tuple[float, float, float]
    """Gains of R, G, B as the camera set them, G = 1; all 1 where the file tells none."""
    color_matrix: NDArray[np.float64] | None
    """3x3, white-balanced camera colours to linear sRGB; None where unknown."""
    exposure: float | None
    """Exposure time in seconds."""
    iso: int | None
    """ISO speed."""
    path: Path
    """The file."""
    camera: str | None = None
    """Maker and model, where the file is TIFF-like (DNG, ARW, NEF, CR2, ...) and states them."""


def read_raw(path: str | Path) -> RawImage:
    """Reads a camera file with a Bayer filter.

    Args:
        path: any Bayer file that rawpy opens; its extension does not matter.

    Returns:
        The visible mosaic with its levels, gains, matrix, exposure time and ISO.

    Raises:
        InputError: the file is absent, is not a raw file, is damaged or cut short, has another
            colour filter than Bayer's or none (X-Trans, Foveon, CMYG, monochrome, linear DNG),
            holds several frames, or has levels that make no sense.
    """
    path = Path(path)
    head = _read_head(path)
    if not head.startswith(_RAW_HEADS) and head[4:8] != b"ftyp" and _guessed_by_size(path, head):
        raise _refuse(path, _name_kind(head))
    try:
        with rawpy.RawPy() as raw, native_stderr_off():
            _open(raw, path)
            return _interpret(raw, path)
    except rawpy.LibRawFileUnsupportedError as error:  # pyright: ignore[reportAttributeAccessIssue]
        raise _refuse(path, _name_kind(head)) from error
    except rawpy.LibRawError as error:  # pyright: ignore[reportAttributeAccessIssue]
        reason = str(error.args[0].decode() if isinstance(error.args[0], bytes) else error)
        raise _refuse(path, f"a raw file that is damaged or cut short ({reason})") from error


def pack(mosaic: NDArray[Any], pattern: Pattern) -> NDArray[Any]:
    """Splits a mosaic into its four colour planes.

    Args:
        mosaic: ... x H x W; an odd last row or column is left out, which keeps the phase.
        pattern: colour codes of the first 2x2 pixels, any of the four Bayer phases.

    Returns:
        ... x 4 x h x w in the order R, G1, B, G2, of the same type.

    Raises:
        InputError: the pattern is not a Bayer phase, or the mosaic is smaller than 2x2.
    """
    sites = _sites(pattern)
    rows, columns = mosaic.shape[-2] // 2 * 2, mosaic.shape[-1] // 2 * 2
    if rows < 2 or columns < 2:
        raise InputError(
            f"a mosaic of {mosaic.shape[-2]}x{mosaic.shape[-1]} pixels has no full 2x2 Bayer cell"
        )
    return np.stack([mosaic[..., i:rows:2, j:columns:2] for i, j in sites], axis=-3)


def unpack(planes: NDArray[Any], pattern: Pattern) -> NDArray[Any]:
    """Puts four colour planes back into a mosaic: the inverse of `pack`.

    Args:
        planes: ... x 4 x h x w in the order R, G1, B, G2.
        pattern: colour codes of the mosaic's first 2x2 pixels.

    Returns:
        ... x 2h x 2w mosaic of the same type.

    Raises:
        InputError: the pattern is not a Bayer phase, or there are not four planes.
    """
    sites = _sites(pattern)
    if planes.ndim < 3 or planes.shape[-3] != 4:
        raise InputError(f"expected planes of shape (..., 4, h, w), got {planes.shape}")
    *lead, _, h, w = planes.shape
    mosaic = np.empty((*lead, 2 * h, 2 * w), dtype=planes.dtype)
    for plane, (i, j) in enumerate(sites):
        mosaic[..., i::2, j::2] = planes[..., plane, :, :]
    return mosaic


def normalize(raw: RawImage) -> NDArray[np.float32]:
    """Packs a camera file and scales it so that black is 0 and white is 1.

    Values below black or above white are clipped, as in ELD's protocol (facts.md section 11.2:
    before any amplification).

    Returns:
        4 x h x w in [0, 1], order R, G1, B, G2.
    """
    return normalize_planes(pack(raw.mosaic, raw.pattern), black=raw.black, white=raw.white)


def normalize_planes(
    planes: NDArray[np.uint16], *, black: Sequence[float], white: float
) -> NDArray[np.float32]:
    """Scales packed sensor values so that black is 0 and white is 1; values beyond are clipped.

    Args:
        planes: ... x 4 x h x w.
        black: black level of each plane, in DN.
        white: white level, in DN.

    Returns:
        A new array of the same shape in [0, 1].
    """
    scaled = planes.astype(np.float32)
    level = np.array(black, dtype=np.float32)
    scaled -= level[:, None, None]
    scaled /= (np.float32(white) - level)[:, None, None]
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def render(
    packed: ArrayLike,
    *,
    white_balance: tuple[float, float, float],
    color_matrix: ArrayLike | None,
) -> NDArray[np.uint8]:
    """Makes a picture to look at, at half the mosaic's size: one pixel per Bayer cell.

    White balance, clipping at white, the camera's matrix, the sRGB curve; no demosaicing, no
    other tone curve, so that differences between pictures stay differences of the data.

    Args:
        packed: 4 x h x w in [0, 1], order R, G1, B, G2; an array, or a tensor on the CPU.
        white_balance: gains of R, G, B.
        color_matrix: 3x3, camera colours to linear sRGB; None keeps the camera's colours.

    Returns:
        h x w x 3 sRGB.

    Raises:
        InputError: there are not four planes.
    """
    planes = np.asarray(packed, dtype=np.float32)
    if planes.ndim != 3 or planes.shape[0] != 4:
        raise InputError(f"expected packed planes of shape (4, h, w), got {planes.shape}")
    rgb = np.stack([planes[0], (planes[1] + planes[3]) / 2, planes[2]], axis=-1)
    rgb = np.clip(rgb * np.asarray(white_balance, dtype=np.float32), 0.0, 1.0)
    if color_matrix is not None:
        rgb = rgb @ np.asarray(color_matrix, dtype=np.float32).T
    return np.round(srgb_encode(rgb) * 255).astype(np.uint8)


def _sites(pattern: Pattern) -> list[tuple[int, int]]:
    """Returns the row and column in the 2x2 cell of R, G1, B, G2."""
    if tuple(map(tuple, pattern)) not in _PHASES:
        raise InputError(
            f"{pattern} is no Bayer phase; expected one of {sorted(_PHASES)} "
            "(0 = R, 1 = G of the red rows, 2 = B, 3 = G of the blue rows)"
        )
    where = {pattern[i][j]: (i, j) for i in (0, 1) for j in (0, 1)}
    return [where[code] for code in range(4)]


def _refuse(path: Path, kind: str) -> InputError:
    return InputError(f"{path} is {kind}; expected a camera's raw file with a Bayer filter")


def _read_head(path: Path) -> bytes:
    """Reads the first bytes, or says why the file cannot be read."""
    if path.is_dir():
        raise _refuse(path, "a folder")
    if path.exists() and not path.is_file():
        raise _refuse(path, "a device or a pipe")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; expected a camera's raw file") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise _refuse(path, "an empty file")
    return head


def _name_kind(head: bytes) -> str:
    """Says in words what a file is that LibRaw does not take, from its first bytes."""
    for signature, kind in _OTHER_HEADS.items():
        if head.startswith(signature):
            return kind
    if head.startswith(_RAW_HEADS) or head[4:8] == b"ftyp":
        return "damaged, cut short, or a picture without raw data"
    printable = sum(32 <= byte < 127 or byte in b"\t\n\r" for byte in head)
    if printable > 0.95 * len(head):
        return "a text file"
    return "not a raw file that can be recognised (a dump without a header, or damaged)"


def _guessed_by_size(path: Path, head: bytes) -> bool:
    """Tells whether LibRaw would take the file for some camera's only because of its length.

    LibRaw knows a few headerless formats by their exact number of bytes, and takes any file of
    that length for one of them, a text included. Such a file is no longer accepted when one byte
    is added to it.
    """
    if any(head.startswith(signature) for signature in _OTHER_HEADS):
        return False
    if path.stat().st_size > _MAX_HEADERLESS:
        return True
    with rawpy.RawPy() as raw:
        try:
            raw.open_buffer(io.BytesIO(path.read_bytes() + b"\0"))
        except rawpy.LibRawError:  # pyright: ignore[reportAttributeAccessIssue]
            return True
    return False


def _open(raw: rawpy.RawPy, path: Path) -> None:
    """Opens and decodes a file; refuses one that holds a second frame."""
    raw.open_file(str(path))
    raw.set_unpack_params(shot_select=1)
    try:
        raw.unpack()
    except rawpy.LibRawRequestForNonexistentImageError:  # pyright: ignore[reportAttributeAccessIssue]
        pass
    else:
        raise _refuse(path, "a file of several frames")
    raw.set_unpack_params(shot_select=0)
    raw.unpack()


def _interpret(raw: rawpy.RawPy, path: Path) -> RawImage:
    """Makes a RawImage of a decoded file, or says why it is not one Bayer picture."""
    pattern = _bayer_pattern(raw, path)
    mosaic = raw.raw_image_visible
    if min(mosaic.shape) < 2:
        raise _refuse(path, f"a file of only {mosaic.shape[0]}x{mosaic.shape[1]} pixels")
    levels = [float(level) for level in raw.black_level_per_channel]
    white = float(raw.white_level)
    if white <= max(levels):
        raise InputError(
            f"{path} states a white level of {white:g}, not above its black level of "
            f"{max(levels):g}; the file is damaged"
        )
    exposure, iso = _exposure(raw, path)
    return RawImage(
        mosaic=mosaic.astype(np.uint16, copy=True),
        pattern=pattern,
        black=(levels[0], levels[1], levels[2], levels[3]),
        white=white,
        white_balance=_gains(raw),
        color_matrix=_matrix(raw),
        exposure=exposure,
        iso=iso,
        path=path,
        camera=read_camera(path),
    )


def _bayer_pattern(raw: rawpy.RawPy, path: Path) -> Pattern:
    """Returns the phase of the visible mosaic."""
    if raw.raw_type != rawpy.RawType.Flat:  # pyright: ignore[reportAttributeAccessIssue]
        raise _refuse(path, "a file with several colours at every pixel (Foveon, linear DNG)")
    pattern = raw.raw_pattern
    if pattern is None:
        raise _refuse(path, "a file without a colour filter (monochrome)")
    if pattern.shape == (6, 6):
        raise _refuse(path, "an X-Trans file")
    colors = raw.color_desc.decode("ascii", errors="replace")
    if pattern.shape == (2, 2) and colors == "RGBG":
        (a, b), (c, d) = pattern.tolist()
        if ((a, b), (c, d)) in _PHASES:
            return ((a, b), (c, d))
    raise _refuse(path, f"a file with the colour filter {colors} {pattern.tolist()}")


def _matrix(raw: rawpy.RawPy) -> NDArray[np.float64] | None:
    """The camera's colours to sRGB, from LibRaw's table of cameras, else as the file states them.

    A DNG of a camera that LibRaw does not know states its own.
    """
    known = camera_to_srgb(raw.rgb_xyz_matrix)
    if known is not None:
        return known
    stated = np.asarray(raw.color_matrix, dtype=np.float64)[:, :3]
    # Rows of a matrix for white-balanced colours sum to one; else it means something else.
    whole = np.isfinite(stated).all() and np.allclose(stated.sum(axis=1), 1.0, atol=1e-3)
    return stated if whole else None


def _gains(raw: rawpy.RawPy) -> tuple[float, float, float]:
    """Returns the camera's white balance, else daylight's, else none.

    The gain of G2 is often stored as 0, which means that of G1: G1's stands for both.
    """
    for gains in (raw.camera_whitebalance, raw.daylight_whitebalance):
        red, green, blue = (float(gain) for gain in gains[:3])
        if min(red, green, blue) > 0 and np.isfinite([red, green, blue]).all():
            return (red / green, 1.0, blue / green)
    return (1.0, 1.0, 1.0)


def _exposure(raw: rawpy.RawPy, path: Path) -> tuple[float | None, int | None]:
    """Returns exposure time (s) and ISO, from LibRaw or else from the file's own directory."""
    other = getattr(raw, "other", None)  # rawpy < 0.27 has none
    # LibRaw keeps single precision: 0.1 s comes as 0.10000000149.
    exposure = float(f"{other.shutter_speed:.6g}") if other is not None else 0.0
    iso = float(other.iso_speed) if other is not None else 0.0
    known = plausible(exposure, iso)
    found = (None, None) if None not in known else read_exposure(path)
    return known[0] or found[0], known[1] or found[1]
