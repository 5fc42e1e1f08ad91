"""Mosaics written as DNG: for rawpy, and for whatever raw converter a photographer works with.

The file holds one uncompressed mosaic of 16 bits with the levels, the phase, the colours and the
circumstances of the camera's file that it came from (Adobe, "Digital Negative Specification",
1.4.0.0; what stands in the Exif directory: CIPA DC-008). It is written by tifffile; the Exif
directory, which tifffile does not write, is put behind.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from eslkit.errors import InputError
from eslkit.files import write_atomically
from eslkit_tsdn.color import XYZ_FROM_SRGB
from eslkit_tsdn.raw import RawImage
from eslkit_tsdn.shot import Shot

__all__ = ["encode_dng", "write_dng"]

_BYTE, _ASCII, _SHORT, _LONG, _RATIONAL, _UNDEFINED, _SRATIONAL = 1, 2, 3, 4, 5, 7, 10
_CFA = 32803
_EXIF_DIRECTORY = 34665
_PLACEHOLDER = 34666
"""Nobody's tag: it keeps the place of the Exif directory's, which tifffile leaves out."""
_BASELINE_EXPOSURE = 50730
_D65 = 21
_MAX_DENOMINATOR = 100_000

Entry = tuple[int, int, int, Any]
"""A tag: code, TIFF type, count, and value as tifffile writes it."""


def write_dng(
    mosaic: NDArray[np.uint16],
    path: str | Path,
    *,
    raw: RawImage,
    shot: Shot,
    brighten: float = 0.0,
) -> None:
    """Writes a mosaic as a DNG in the place of a camera's file.

    Args:
        mosaic: H x W sensor values, black level included, with the phase and the levels of `raw`.
        path: where; the folder is made when it is missing, and the file is there whole or not
            at all.
        raw: the camera's file: its phase, levels, exposure time and ISO are written.
        shot: its circumstances: camera, lens, time, orientation, colours and frame.
        brighten: stops by which a converter is to brighten the picture (BaselineExposure), beside
            what the camera's own file asks for.

    Raises:
        InputError: the mosaic has another size than the camera's file.
        StoreError: the file cannot be written.
    """
    write_atomically(Path(path), encode_dng(mosaic, raw=raw, shot=shot, brighten=brighten))


def encode_dng(
    mosaic: NDArray[np.uint16], *, raw: RawImage, shot: Shot, brighten: float = 0.0
) -> bytes:
    """Makes the bytes that `write_dng` writes.

    Raises:
        InputError: the mosaic has another size than the camera's file.
    """
    if mosaic.shape != raw.mosaic.shape or mosaic.dtype != np.uint16:
        raise InputError(
            f"a mosaic of {mosaic.shape} ({mosaic.dtype}) cannot stand for {raw.path}, whose own "
            f"is {raw.mosaic.shape} (uint16)"
        )
    entries: list[Entry] = [
        *_structure(raw, shot),
        *_circumstances(raw, shot),
        *_colors(shot, brighten=brighten),
        (_PLACEHOLDER, _LONG, 1, 0),
    ]
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, byteorder="<") as file:
        file.write(
            np.ascontiguousarray(mosaic),
            photometric=_CFA,
            subfiletype=0,
            rowsperstrip=mosaic.shape[0],
            software=f"eslkit {version('eslkit')}",
            extratags=[(*entry[:4], True) for entry in sorted(entries)],
            metadata=None,
        )
    return _with_exif(buffer, _exif(raw, shot))


def _structure(raw: RawImage, shot: Shot) -> list[Entry]:
    """What the mosaic is: version, colour filter, levels, frame."""
    height, width = raw.mosaic.shape
    codes = [code if code < 3 else 1 for row in raw.pattern for code in row]
    by_site = [raw.black[code] for row in raw.pattern for code in row]
    left, top, columns, rows = shot.crop or (0, 0, width, height)
    entries: list[Entry] = [
        (33421, _SHORT, 2, (2, 2)),  # CFARepeatPatternDim
        (33422, _BYTE, 4, bytes(codes)),  # CFAPattern
        (50706, _BYTE, 4, bytes([1, 4, 0, 0])),  # DNGVersion
        (50707, _BYTE, 4, bytes([1, 1, 0, 0])),  # DNGBackwardVersion
        (50710, _BYTE, 3, bytes([0, 1, 2])),  # CFAPlaneColor
        (50711, _SHORT, 1, 1),  # CFALayout: rectangular
        (50713, _SHORT, 2, (2, 2)),  # BlackLevelRepeatDim
        (50714, _RATIONAL, 4, _fractions(by_site)),  # BlackLevel
        (50717, _LONG, 1, round(raw.white)),  # WhiteLevel
        (50718, _RATIONAL, 2, _fractions([shot.pixel_aspect, 1.0])),  # DefaultScale
        (50719, _LONG, 2, (left, top)),  # DefaultCropOrigin
        (50720, _LONG, 2, (columns, rows)),  # DefaultCropSize
        (50829, _LONG, 4, (0, 0, height, width)),  # ActiveArea
    ]
    return entries


def _circumstances(raw: RawImage, shot: Shot) -> list[Entry]:
    """Which camera, which file, who, when, and which side is up."""
    make, model = shot.make or "Unknown", shot.model or "Unknown"
    named = model if model.lower().startswith(make.lower()) else f"{make} {model}"
    entries = [
        _text(271, make),
        _text(272, model),
        (274, _SHORT, 1, shot.orientation),
        _text(50708, named),  # UniqueCameraModel
        _text(50827, raw.path.name.encode("ascii", "replace").decode()),  # OriginalRawFileName
    ]
    if shot.taken is not None:
        entries.append(_text(306, f"{shot.taken:%Y:%m:%d %H:%M:%S}"))
    if shot.artist:
        entries.append(_text(315, shot.artist))
    return entries


def _colors(shot: Shot, *, brighten: float) -> list[Entry]:
    """How the colours are meant: the tags of a DNG's own, or matrix and white balance.

    Where neither is known, the camera's colours are called those of sRGB: a file without a
    matrix is refused by some converters, and shown so by the others.
    """
    entries: dict[int, Entry] = {tag[0]: tag for tag in shot.profile}
    if 50721 not in entries:
        matrix = shot.camera_from_xyz
        if matrix is None:
            matrix = np.linalg.inv(XYZ_FROM_SRGB).astype(np.float64)
        entries[50721] = (50721, _SRATIONAL, 9, _fractions(matrix.ravel()))  # ColorMatrix1
        entries[50778] = (50778, _SHORT, 1, _D65)  # CalibrationIlluminant1
    if shot.as_shot is not None and not {50728, 50729} & entries.keys():
        neutral = [1.0 / gain for gain in shot.as_shot]
        entries[50728] = (50728, _RATIONAL, 3, _fractions(neutral))  # AsShotNeutral
    if brighten or _BASELINE_EXPOSURE in entries:
        *_, value = entries.get(_BASELINE_EXPOSURE, (0, 0, 0, (0, 1)))
        stops = value[0] / value[1] + brighten
        entries[_BASELINE_EXPOSURE] = (_BASELINE_EXPOSURE, _SRATIONAL, 1, _fractions([stops]))
    return list(entries.values())


def _exif(raw: RawImage, shot: Shot) -> list[Entry]:
    """The Exif directory: how the picture was exposed."""
    entries: list[Entry] = [(36864, _UNDEFINED, 4, b"0230")]  # ExifVersion
    if raw.exposure is not None:
        entries.append((33434, _RATIONAL, 1, _fractions([raw.exposure])))
    if shot.aperture is not None:
        entries.append((33437, _RATIONAL, 1, _fractions([shot.aperture])))
    if raw.iso is not None:
        entries.append((34855, _SHORT, 1, min(raw.iso, 65535)))
        if raw.iso >= 65535:
            entries += [(34864, _SHORT, 1, 2), (34866, _LONG, 1, raw.iso)]  # its long form
    if shot.taken is not None:
        entries.append(_text(36867, f"{shot.taken:%Y:%m:%d %H:%M:%S}"))
    if shot.focal_length is not None:
        entries.append((37386, _RATIONAL, 1, _fractions([shot.focal_length])))
    if shot.lens:
        entries.append(_text(42036, shot.lens))
    return sorted(entries)


def _text(code: int, text: str) -> Entry:
    return code, _ASCII, len(text) + 1, text


def _fractions(values: Sequence[float] | NDArray[np.float64]) -> tuple[int, ...]:
    """Numerators and denominators, as simple as their precision allows."""
    parts = [Fraction(float(value)).limit_denominator(_MAX_DENOMINATOR) for value in values]
    return tuple(number for part in parts for number in part.as_integer_ratio())


# The Exif directory


def _with_exif(buffer: io.BytesIO, entries: Sequence[Entry]) -> bytes:
    """Puts the Exif directory behind a TIFF file, and its place where the placeholder stands."""
    start = buffer.seek(0, io.SEEK_END)
    start += buffer.write(bytes(start % 2))  # directories begin at even places
    buffer.write(_directory(entries, start=start))
    buffer.seek(0)
    with tifffile.TiffFile(buffer) as file:
        place = file.pages.first.tags[_PLACEHOLDER].offset
    buffer.seek(place)
    buffer.write(struct.pack("<HHII", _EXIF_DIRECTORY, _LONG, 1, start))
    return buffer.getvalue()


def _directory(entries: Sequence[Entry], *, start: int) -> bytes:
    """A TIFF directory and its values, little-endian, for a place in the file."""
    fields, beyond = b"", b""
    behind = start + 2 + 12 * len(entries) + 4
    for code, kind, count, value in entries:
        data = _packed(kind, value)
        if len(data) > 4:
            place = struct.pack("<I", behind + len(beyond))
            beyond += data + bytes(len(data) % 2)
            data = place
        fields += struct.pack("<HHI", code, kind, count) + data.ljust(4, b"\0")
    return struct.pack("<H", len(entries)) + fields + bytes(4) + beyond


def _packed(kind: int, value: Any) -> bytes:
    if kind == _UNDEFINED:
        return bytes(value)
    if kind == _ASCII:
        return value.encode("ascii") + b"\0"
    if kind == _RATIONAL:
        return struct.pack(f"<{len(value)}I", *value)
    return struct.pack("<H" if kind == _SHORT else "<I", value)
