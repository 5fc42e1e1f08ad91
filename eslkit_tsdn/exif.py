"""Exposure time, ISO and camera out of TIFF-like raw files (DNG, ARW, NEF, CR2, PEF, ...).

LibRaw reports the first two for most cameras; this reader serves the files for which it does not
(a DNG that keeps its ISO in the first directory) and the releases of rawpy that do not hand them
on. It reads a few hundred bytes, follows no pointer out of the file and never raises on a file's
contents: a damaged directory is an empty one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["plausible", "read_camera", "read_exposure"]

_EXPOSURE_TIME = 33434
_ISO = 34855
_EXIF_DIRECTORY = 34665
_MAKER, _MODEL = 271, 272
_ASCII = 2
_MAX_ENTRIES = 512
_MAX_TEXT = 256
_MAX_SECONDS, _MAX_ISO = 1e6, 1e9
_FORMATS = {1: "B", 3: "H", 4: "I", 5: "II", 9: "i", 10: "ii", 11: "f", 12: "d"}
"""TIFF field types that hold numbers; two letters stand for a fraction."""


def read_exposure(path: Path) -> tuple[float | None, int | None]:
    """Reads the exposure time and the ISO of a TIFF-like file.

    Args:
        path: the file.

    Returns:
        Exposure time in seconds and ISO; None for each that the file does not tell.
    """
    tags: dict[int, float] = {}
    with path.open("rb") as file:
        head = file.read(8)
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
        if order is None or len(head) < 8:
            return None, None
        tags.update(_directory(file, offset=struct.unpack(order + "I", head[4:])[0], order=order))
        if _EXIF_DIRECTORY in tags:
            tags.update(_directory(file, offset=int(tags[_EXIF_DIRECTORY]), order=order))
    return plausible(tags.get(_EXPOSURE_TIME, 0.0), tags.get(_ISO, 0.0))


def plausible(exposure: float, iso: float) -> tuple[float | None, int | None]:
    """Keeps exposure time (s) and ISO where a camera can have them; None for what it cannot.

    Cameras store 0 for what they do not know, and damaged files anything, infinity included.
    """
    return (
        exposure if 0 < exposure < _MAX_SECONDS else None,
        round(iso) if 1 <= iso < _MAX_ISO else None,
    )


def read_camera(path: Path) -> str | None:
    """Reads maker and model of a TIFF-like file.

    Args:
        path: the file.

    Returns:
        Such as "SONY ILCE-7SM2"; a maker that the model repeats stands there once. None where the
        file does not tell.
    """
    words: dict[int, str] = {}
    with path.open("rb") as file:
        head = file.read(8)
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
        if order is None or len(head) < 8:
            return None
        for tag, kind, num_values, field in _entries(
            file, offset=struct.unpack(order + "I", head[4:])[0], order=order
        ):
            if tag in (_MAKER, _MODEL) and kind == _ASCII and num_values <= _MAX_TEXT:
                words[tag] = _text(file, num_values, field=field, order=order)
    maker, model = words.get(_MAKER, ""), words.get(_MODEL, "")
    if maker and model.upper().startswith(maker.upper()):
        maker = ""
    return f"{maker} {model}".strip() or None


def _directory(file: BinaryIO, *, offset: int, order: str) -> Iterator[tuple[int, float]]:
    """Yields tag and first value of a directory's entries that hold numbers."""
    for tag, kind, num_values, field in _entries(file, offset=offset, order=order):
        if tag not in (_EXPOSURE_TIME, _ISO, _EXIF_DIRECTORY) or kind not in _FORMATS:
            continue
        value = _first_value(file, kind, num_values, field=field, order=order)
        if value is not None:
            yield tag, value


def _entries(file: BinaryIO, *, offset: int, order: str) -> Iterator[tuple[int, int, int, bytes]]:
    """Yields tag, type, number of values and the last four bytes of a directory's entries."""
    file.seek(offset)
    count = file.read(2)
    num_entries = struct.unpack(order + "H", count)[0] if len(count) == 2 else 0
    block = file.read(12 * min(num_entries, _MAX_ENTRIES))
    for start in range(0, len(block) - 11, 12):
        tag, kind, num_values = struct.unpack(order + "HHI", block[start : start + 8])
        yield tag, kind, num_values, block[start + 8 : start + 12]


def _text(file: BinaryIO, num_bytes: int, *, field: bytes, order: str) -> str:
    """Returns an entry's text up to its first 0, what is not ASCII left out."""
    if num_bytes > 4:
        file.seek(struct.unpack(order + "I", field)[0])
        field = file.read(num_bytes)
    text = field[:num_bytes].partition(b"\0")[0].decode("ascii", errors="ignore")
    return " ".join("".join(filter(str.isprintable, text)).split())


def _first_value(
    file: BinaryIO, kind: int, num_values: int, *, field: bytes, order: str
) -> float | None:
    """Returns an entry's first number, from the entry itself or from where it points."""
    layout = order + _FORMATS[kind]
    size = struct.calcsize(layout)
    if size * num_values > 4:
        file.seek(struct.unpack(order + "I", field)[0])
        field = file.read(size)
    if num_values < 1 or len(field) < size:
        return None
    numbers = struct.unpack(layout, field[:size])
    if len(numbers) == 1:
        return float(numbers[0])
    return numbers[0] / numbers[1] if numbers[1] else None
