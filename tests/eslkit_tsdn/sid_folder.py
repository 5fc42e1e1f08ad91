"""Makes a small SID folder with real names: DNGs that the real decoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from eslkit_tsdn.data.sid import parse_name
from tests.eslkit_tsdn.dng import write_dng

SHOTS = (
    "00001_00_0.04s 00001_00_0.1s 00001_01_0.04s 00001_01_0.1s 00002_00_0.033s 00002_00_0.1s "
    "10034_00_0.1s 10185_00_0.033s 10185_00_0.04s 10185_00_0.1s 20005_00_0.1s 20188_00_0.1s"
).split()
LONGS = "00001_00_10s 00002_00_10s 10034_00_30s 10185_00_10s 20005_00_10s 20188_00_10s".split()
SIZE = (52, 84)  # 26 x 42 packed


def mosaic_of(name: str, *, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Drawn from the name: short ones dark, long ones bright."""
    rng = np.random.default_rng(list(name.encode()))
    top = 16383 if name.count("_") and parse_name(name)[2] > 1 else 700
    return rng.integers(480, top, size).astype(np.uint16)


def write_camera_file(folder: Path, stem: str, **dng: object) -> Path:
    """One file with a real name, its exposure time in its tags."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.ARW"
    exposure = Fraction(parse_name(path.name)[2]).limit_denominator(1000)
    chosen: dict = {"exposure": (exposure.numerator, exposure.denominator), "iso": 200, **dng}
    return write_dng(path, chosen.pop("mosaic", mosaic_of(path.name)), **chosen)


def make_sid(
    root: Path,
    *,
    shots: Sequence[str] = SHOTS,
    longs: Sequence[str] = LONGS,
    lists: bool = True,
) -> Path:
    """A folder with Sony/short, Sony/long and, if asked for, the three list files."""
    for stem in shots:
        write_camera_file(root / "Sony" / "short", stem)
    for stem in longs:
        write_camera_file(root / "Sony" / "long", stem)
    scenes = {stem[:5]: stem for stem in longs}
    if lists:
        for digit, split in (("0", "train"), ("1", "test"), ("2", "val")):
            lines = [
                f"./Sony/short/{stem}.ARW ./Sony/long/{scenes[stem[:5]]}.ARW ISO200 F8\n"
                for stem in shots
                if stem.startswith(digit)
            ]
            (root / f"Sony_{split}_list.txt").write_text("".join(lines))
    return root
