"""Damages camera files and list files at random, and tells what became of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from eslkit.errors import InputError
from eslkit_tsdn.data.decoder import Decoder
from eslkit_tsdn.data.sid_folder import CameraFile

EDGES = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)


def flip_bytes(data: bytearray, rng: random.Random) -> None:
    """Some bytes anywhere."""
    for _ in range(rng.choice((1, 4, 16, 256))):
        data[rng.randrange(len(data))] = rng.randrange(256)


def flip_head(data: bytearray, rng: random.Random) -> None:
    """Some bytes where formats keep their directories."""
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(min(len(data), 600))] = rng.randrange(256)


def edge_words(data: bytearray, rng: random.Random) -> None:
    """Words at the edges of their range, at the head, or at the tail (CRW's directory)."""
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(min(len(data) - 4, 800))
        if rng.random() < 0.4:
            place = len(data) - 4 - place
        order = rng.choice(("little", "big"))
        size = rng.choice((2, 4))
        value = rng.choice(EDGES) & (256**size - 1)
        data[place : place + size] = value.to_bytes(size, order)


def edit_tag(data: bytearray, rng: random.Random) -> None:
    """One entry of the first TIFF directory: its tag, type, count or value."""
    if bytes(data[:4]) not in (b"II*\0", b"MM\0*"):
        edge_words(data, rng)
        return
    order = "little" if data[:1] == b"I" else "big"
    start = int.from_bytes(data[4:8], order)
    count = int.from_bytes(data[start : start + 2], order)
    if not 0 < count < 300:
        return
    for _ in range(rng.randint(1, 3)):
        entry = start + 2 + 12 * rng.randrange(count)
        at, size = rng.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 2)))
        value = rng.choice((*EDGES, rng.randrange(2**32))) & (256**size - 1)
        data[entry + at : entry + at + size] = value.to_bytes(size, order)


def cut_short(data: bytearray, rng: random.Random) -> None:
    """Only the beginning."""
    del data[int(len(data) * rng.random() ** 2) :]


def lose_block(data: bytearray, rng: random.Random) -> None:
    """A block zeroed, taken out, or doubled."""
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice((1, 7, 512, 4096, 65536)))
    kind = rng.randrange(3)
    if kind == 0:
        data[start:stop] = bytes(stop - start)
    elif kind == 1:
        del data[start:stop]
    else:
        data[start:start] = data[start:stop]


MUTATIONS = (flip_bytes, flip_head, edge_words, edit_tag, edit_tag, cut_short, lose_block)


def mutated(seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """One of the seeds, damaged in one to three ways; now and then two spliced."""
    data = bytearray(rng.choice(seeds))
    if rng.random() < 0.05:
        other = rng.choice(seeds)
        data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]
    for _ in range(rng.randint(1, 3)):
        if len(data) > 16:
            rng.choice(MUTATIONS)(data, rng)
    return bytes(data)


def made_dngs(folder: Path) -> list[bytes]:
    """DNGs of several layouts, all of which can be read: phases, strips, tiles, 8 and 16 bit."""
    rng = np.random.default_rng(0)
    layouts: list[dict] = [{}, {"rowsperstrip": 8}, {"tile": (32, 32)}]
    made: list[bytes] = []
    for layout in layouts:
        for cfa in ((0, 1, 1, 2), (1, 2, 0, 1)):
            for top, kind in ((255, np.uint8), (16383, np.uint16)):
                mosaic = rng.integers(0, top, (64, 96)).astype(kind)
                tags = [*camera_tags(), *dng_tags(cfa, black=top // 32, white=top)]
                path = folder / "made.dng"
                tifffile.imwrite(
                    path, mosaic, photometric=32803, metadata=None, extratags=tags, **layout
                )
                made.append(path.read_bytes())
    return made


CODINGS = (7, 8, 32767, 32769, 32770, 34713, 34892, 65000, 65535)
"""TIFF compressions of camera makers; LibRaw picks its decoder by them and by the maker."""


def made_raws(folder: Path) -> list[bytes]:
    """TIFFs that call themselves files of many makers: noise for LibRaw's own decoders."""
    rng = np.random.default_rng(1)
    made: list[bytes] = []
    cameras = ("SONY ILCE-7SM2", "NIKON CORPORATION NIKON D850", "PENTAX PENTAX K-3")
    cameras += ("OLYMPUS E-M5", "SAMSUNG NX1", "Panasonic DMC-GH4", "Canon Canon EOS 70D")
    for camera in cameras:
        make, _, model = camera.partition(" ")
        for coding in CODINGS:
            mosaic = rng.integers(0, 16383, (64, 96)).astype(np.uint16)
            path = folder / "made.tif"
            tags = [*camera_tags(make, model), *dng_tags((0, 1, 1, 2), black=9, white=16383)[:2]]
            tifffile.imwrite(path, mosaic, photometric=32803, metadata=None, extratags=tags)
            with tifffile.TiffFile(path, mode="r+b") as file:
                file.pages[0].tags[259].overwrite(coding)
            made.append(path.read_bytes())
    return made


def camera_tags(make: str = "SONY", model: str = "ILCE-7SM2") -> list[tuple]:
    """Maker, model, exposure time and ISO."""
    return [
        (271, "s", 0, make, False),
        (272, "s", 0, model, False),
        (33434, "2I", 1, (1, 10), False),
        (34855, "H", 1, 800, False),
    ]


def dng_tags(cfa: tuple[int, ...], *, black: int, white: int) -> list[tuple]:
    """The tags that LibRaw needs to take a TIFF for a camera's file."""
    return [
        (33421, "H", 2, (2, 2), False),
        (33422, "B", 4, bytes(cfa), False),
        (50706, "B", 4, bytes([1, 4, 0, 0]), False),
        (50707, "B", 4, bytes([1, 1, 0, 0]), False),
        (50708, "s", 0, "SONY ILCE-7SM2", False),
        (50713, "H", 2, (2, 2), False),
        (50714, "H", 4, (black,) * 4, False),
        (50717, "I", 1, white, False),
        (50728, "2I", 3, (1, 2, 1, 1, 2, 5), False),
    ]


def outcome(decoder: Decoder, path: Path) -> str:
    """What became of one camera file: read, refused, or how it broke the decoder."""
    try:
        decoder.decode(CameraFile("short", path))
    except InputError as error:
        text = str(error)
        for broken in ("makes the decoder crash", "makes the decoder fail", "took longer"):
            if broken in text:
                return text.removeprefix(f"{path} ")[:120]
        if str(path) not in text:
            return f"names no file: {text[:100]}"
        return "refused"
    return "read"


LINES = (
    "./Sony/short/{0}_{1:02d}_0.04s.ARW ./Sony/long/{0}_00_10s.ARW ISO200 F8",
    "{0}_{1:02d}_0.1s.ARW {0}_00_10s.ARW 100",
)


def list_file(rng: random.Random) -> bytes:
    """A list of some pairs, mostly damaged."""
    form = rng.choice(LINES)
    scenes = [f"{rng.randrange(3)}{rng.randrange(9999):04d}" for _ in range(rng.randint(1, 9))]
    data = bytearray("\n".join(form.format(s, i) for i, s in enumerate(scenes)).encode())
    for _ in range(rng.randint(0, 4)):
        if len(data) > 8:
            rng.choice((flip_bytes, cut_short, lose_block, flip_head))(data, rng)
    return bytes(data)
