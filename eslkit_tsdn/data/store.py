"""A prepared store: camera files decoded once, as memory-mapped mosaics of uint16.

    STORE/manifest.json      what is there: levels, gains, hashes, pairs
    STORE/short/....npy      one visible mosaic each, H x W uint16 (little-endian), black included
    STORE/long/....npy

Mosaics are kept, not packed planes: a crop is then half as many pieces to read, and it can be
mirrored without moving its Bayer phase. Any numpy reads the files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from eslkit.errors import InputError, StoreError
from eslkit.files import sha256_file
from eslkit_tsdn.data.sid import SidPair, make_pair
from eslkit_tsdn.raw import Pattern

__all__ = ["MANIFEST", "Frame", "Role", "Skipped", "Store", "StoreManifest", "verify_store"]

MANIFEST = "manifest.json"
"""Name of the file that tells what a store holds."""

Role = Literal["short", "long"]
"""Which of the dataset's two folders a file stands in."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Frame(_Frozen):
    """One decoded camera file."""

    name: str
    """File name of the camera file."""
    role: Role
    """Which folder it stood in."""
    source_size: int
    """Bytes of the camera file, to notice another one."""
    source_mtime_ns: int
    """Time of its last change, nanoseconds."""
    size: int
    """Bytes of the decoded file."""
    sha256: str
    """SHA-256 of the decoded file."""
    height: int
    """Rows of the visible mosaic."""
    width: int
    """Columns of the visible mosaic."""
    low: int
    """Smallest value in it, DN."""
    high: int
    """Largest value in it, DN."""
    pattern: Pattern
    """Colour codes of the first 2x2 pixels (see `eslkit_tsdn.raw`)."""
    black: tuple[float, float, float, float]
    """Black level of R, G1, B, G2, DN."""
    white: float
    """White level, DN."""
    white_balance: tuple[float, float, float]
    """Gains of R, G, B as the camera set them, G = 1."""
    color_matrix: tuple[tuple[float, float, float], ...] | None
    """3x3, white-balanced camera colours to linear sRGB; None where unknown."""
    exposure: float | None
    """Exposure time that the file states, seconds."""
    iso: int | None
    """ISO speed."""
    camera: str | None
    """Maker and model that the file states."""

    @property
    def key(self) -> str:
        """Folder and name, unique in a store: short/00001_00_0.1s.ARW."""
        return f"{self.role}/{self.name}"

    @property
    def path(self) -> str:
        """Path of the decoded file inside the store."""
        return str(PurePosixPath(self.role, self.name).with_suffix(".npy"))

    @property
    def header_size(self) -> int:
        """Bytes before the pixels in the decoded file."""
        return self.size - 2 * self.height * self.width

    @model_validator(mode="after")
    def _check(self) -> Frame:
        if PurePosixPath(self.name).name != self.name or self.name in ("", ".", ".."):
            raise ValueError(f"the name {self.name!r} is not a plain file name")
        if min(self.height, self.width) < 2:
            raise ValueError(f"{self.name}: {self.height}x{self.width} pixels are no picture")
        if not 0 < self.header_size < 4096:
            raise ValueError(f"{self.name}: {self.size} bytes for {self.height}x{self.width}")
        if not max(self.black) < self.white:
            raise ValueError(f"{self.name}: white level {self.white} not above {max(self.black)}")
        return self


class Skipped(_Frozen):
    """A camera file that the store is without."""

    file: str
    """Folder and name."""
    reason: str
    """What is wrong with it."""


class StoreManifest(_Frozen):
    """What a store holds."""

    version: Literal[1] = 1
    """Version of this form."""
    frames: tuple[Frame, ...]
    """All decoded files, short ones first, sorted by name."""
    pairs: tuple[tuple[str, str], ...]
    """File names of short and long exposures that belong together."""
    skipped: tuple[Skipped, ...] = ()
    """What --skip-bad left out."""
    seal: str = ""
    """SHA-256 over all the rest, so that an edit is noticed."""

    def sealed(self) -> StoreManifest:
        """The same manifest with its seal."""
        return self.model_copy(update={"seal": self.expected_seal()})

    def expected_seal(self) -> str:
        """The seal that belongs to this content."""
        content = self.model_dump(mode="json", exclude={"seal"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Store:
    """A prepared store, opened for reading.

    Args:
        path: its folder.

    Raises:
        StoreError: the folder is not a store, is not finished, or its manifest is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.frames: Mapping[str, Frame] = {frame.key: frame for frame in self.manifest.frames}

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}: {len(self.frames)} frames, {len(self.pairs)} pairs)"

    @cached_property
    def pairs(self) -> tuple[SidPair, ...]:
        """All pairs of a short and a long exposure, sorted by name."""
        return tuple(make_pair(short, long) for short, long in self.manifest.pairs)

    @cached_property
    def longs(self) -> tuple[Frame, ...]:
        """The long exposures, sorted by name."""
        return tuple(frame for frame in self.manifest.frames if frame.role == "long")

    def frame(self, name: str, *, role: Role) -> Frame:
        """What is known about a camera file.

        Raises:
            InputError: the store is without it.
        """
        try:
            return self.frames[f"{role}/{name}"]
        except KeyError:
            raise InputError(f"the store {self.path} is without {role}/{name}") from None

    def mosaic(self, frame: Frame) -> NDArray[np.uint16]:
        """The mosaic of a camera file, memory-mapped: H x W, read-only.

        Nothing is kept open, so that thousands of files need no more descriptors than one.

        Raises:
            StoreError: the file is gone, or not what the manifest says.
        """
        path, shape = self.path / frame.path, (frame.height, frame.width)
        try:
            size = path.stat().st_size
            if size != frame.size:
                raise ValueError(f"it has {size} bytes, the manifest says {frame.size}")
            # Without numpy's reading of the header, which takes a tenth of a crop's time.
            return np.memmap(path, "<u2", "r", offset=frame.header_size, shape=shape)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path} cannot be read ({error}). Check the store with `eslkit-tsdn verify "
                f"{self.path}`, and mend it by preparing it again."
            ) from error


def read_manifest(store: Path) -> StoreManifest:
    """Reads and checks a store's manifest.

    Raises:
        StoreError: it is absent, damaged, or was edited.
    """
    path = store / MANIFEST
    if not store.is_dir():
        raise StoreError(
            f"{store} is not a folder; expected a store made by `eslkit-tsdn prepare`."
        )
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise StoreError(
            f"{store} has no {MANIFEST}: it is no store, or preparing it has not finished. Run "
            f"`eslkit-tsdn prepare DATASET --out {store}`."
        ) from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        manifest = StoreManifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise StoreError(
            f"{path} is damaged ({'.'.join(map(str, first['loc']))}: {first['msg']}). Delete it "
            "and prepare the store again; what is decoded is kept."
        ) from error
    if manifest.seal != manifest.expected_seal():
        raise StoreError(
            f"{path} was changed after it was written. Delete it and prepare the store again; "
            "what is decoded is kept."
        )
    return manifest


def verify_store(
    store: Store, *, progress: Callable[[Frame], Any] = lambda frame: None
) -> tuple[Skipped, ...]:
    """Reads every file of a store again and compares it with the manifest.

    Args:
        store: an opened store.
        progress: is called with every frame that has been checked.

    Returns:
        What is wrong, file by file: empty where the store is sound.
    """
    wrong: list[Skipped] = []
    for frame in store.frames.values():
        reason = _fault(store, frame)
        if reason:
            wrong.append(Skipped(file=frame.path, reason=reason))
        progress(frame)
    known = {frame.path for frame in store.frames.values()}
    for folder in ("short", "long"):
        found = sorted(path.name for path in (store.path / folder).glob("*.npy"))
        wrong += [
            Skipped(file=f"{folder}/{name}", reason="the manifest does not know it")
            for name in found
            if f"{folder}/{name}" not in known
        ]
    return tuple(wrong)


def _fault(store: Store, frame: Frame) -> str:
    """What is wrong with one file; empty where nothing is."""
    path = store.path / frame.path
    try:
        size = path.stat().st_size
        if size != frame.size:
            return f"{size} bytes, the manifest says {frame.size}"
        if sha256_file(path) != frame.sha256:
            return "its bytes have changed (SHA-256)"
        mosaic = store.mosaic(frame)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except StoreError as error:
        return str(error)
    low, high = int(mosaic.min()), int(mosaic.max())
    if (low, high) != (frame.low, frame.high):
        return f"values from {low} to {high} DN, the manifest says {frame.low} to {frame.high}"
    return ""
