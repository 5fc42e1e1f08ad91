"""Clean pictures from a user's folder: photographs, unprocessed to raw, and camera files.

A photograph is cleaner data the more it was scaled down: compression and the camera's own noise go.
So pictures are averaged down (in linear light) until they fit, and once more where JPEG's blocks
show.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from eslkit.errors import InputError
from eslkit_tsdn.data.photos import (
    RAW_SUFFIXES,
    SONY_A7S2_MATRIX,
    WHITE_BALANCES,
    Photo,
    area_average,
    evenly,
    raw_photo,
    unprocess_unit,
)

__all__ = ["PICTURE_SUFFIXES", "blockiness", "folder_photos", "split_by_folder"]

PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Extensions of pictures that are not camera files."""

VISIBLE_BLOCKS = 1.08
"""Above this, steps between JPEG's blocks are taken to show (see `blockiness`)."""

UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError)
"""What Pillow raises on damaged pictures."""

SMALLEST = 64
"""A picture of fewer pixels a side is not scaled down further, and left out below it."""


def folder_photos(
    folder: str | Path, *, max_photos: int = 400, max_side: int = 1024, max_iso: int = 800
) -> tuple[Photo, ...]:
    """Reads the photographs and the camera files of a folder, and of all folders in it.

    A photograph's white balance depends on its name alone, as that of the packaged ones. Camera
    files that state an ISO above `max_iso` are left out: their own noise would be learnt.

    Args:
        folder: where to look.
        max_photos: how many pictures to read at most; evenly spaced ones in the order of names.
        max_side: photographs are scaled down, camera files cut to their centre, until no side
            has more packed pixels.
        max_iso: the highest ISO that counts as clean.

    Returns:
        The pictures, sorted by name (their path below the folder).

    Raises:
        InputError: the folder is absent or holds no picture; a file cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one with photographs or camera files")
    suffixes = (*RAW_SUFFIXES, *PICTURE_SUFFIXES)
    files = sorted(path for path in _files(folder) if path.suffix.lower() in suffixes)
    found: list[Photo] = []
    for index in evenly(len(files), max_photos):
        path = files[index]
        if path.suffix.lower() in RAW_SUFFIXES:
            photo = raw_photo(path, folder=folder, max_side=max_side, max_iso=max_iso)
        else:
            photo = _picture(path, folder=folder, max_side=max_side)
        if photo is not None:
            found.append(photo)
    if not found:
        raise InputError(
            f"{folder} holds no picture that can be used; expected photographs "
            f"({', '.join(PICTURE_SUFFIXES)}) of {SMALLEST} pixels a side or more, or camera files "
            f"with a Bayer filter taken at ISO {max_iso} or below"
        )
    return tuple(found)


def split_by_folder(
    photos: Sequence[Photo], *, max_test: int = 12
) -> tuple[tuple[Photo, ...], tuple[Photo, ...]]:
    """Divides pictures into training and test pictures, so that both are of all kinds.

    The last quarter of every folder, in the order of names, is not trained on, so that a burst of
    one scene is hardly ever spread over both.

    Args:
        photos: pictures of different names.
        max_test: of what is not trained on, so many evenly spaced ones are tested on.

    Returns:
        Training and test pictures, each sorted by name, neither empty.

    Raises:
        InputError: there are too few.
    """
    ordered = sorted(photos, key=lambda photo: photo.name)
    train: list[Photo] = []
    held: list[Photo] = []
    for _, group in groupby(ordered, key=lambda photo: photo.name.rpartition("/")[0]):
        members = list(group)
        cut = len(members) - (len(members) // 4 if len(members) > 1 else 0)
        train.extend(members[:cut])
        held.extend(members[cut:])
    if not held and len(train) > 1:
        held.append(train.pop())
    if not train or not held:
        raise InputError(
            f"expected two or more pictures, to train and to test on, got {len(ordered)}"
        )
    return tuple(train), tuple(held[index] for index in evenly(len(held), max_test))


def blockiness(rgb: NDArray[np.uint8]) -> float:
    """How much larger steps are at every eighth column and row than elsewhere; 1 for no blocks.

    Args:
        rgb: H x W x 3.

    Returns:
        The larger of the ratios of both directions; 1 where a side has fewer than 24 pixels.
    """
    grey = rgb.astype(np.float64).mean(axis=2)
    ratios = [1.0]
    for picture in (grey, grey.T):
        steps = np.abs(np.diff(picture, axis=1)).mean(axis=0)
        if len(steps) < 23:
            continue
        at = np.arange(len(steps)) % 8 == 7
        ratios.append(float(steps[at].mean() / max(steps[~at].mean(), 1e-9)))
    return max(ratios)


def _files(folder: Path) -> list[Path]:
    """All files below a folder; links to folders are followed nowhere, so that this ends."""
    return [Path(place) / name for place, _, names in os.walk(folder) for name in names]


def _picture(path: Path, *, folder: Path, max_side: int) -> Photo | None:
    """Unprocesses one photograph; None where it is too small."""
    try:
        with Image.open(path) as image:
            rgb = np.asarray(image.convert("RGB"))
            jpeg = image.format == "JPEG"
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path} is no picture that can be read ({error}); take it out of the folder"
        ) from error
    if min(rgb.shape[:2]) < SMALLEST:
        return None
    factor = -(-max(rgb.shape[:2]) // (2 * max_side))
    roomy = min(rgb.shape[:2]) >= 2 * SMALLEST
    if jpeg and factor == 1 and roomy and blockiness(rgb) > VISIBLE_BLOCKS:
        factor = 2
    name = path.relative_to(folder).as_posix()
    balance = WHITE_BALANCES[hashlib.sha256(name.encode()).digest()[0] % len(WHITE_BALANCES)]
    scaled = area_average(rgb / 255.0, factor)
    packed = unprocess_unit(scaled, balance, SONY_A7S2_MATRIX)
    return Photo(name, packed, balance, SONY_A7S2_MATRIX)
