"""The Sony part of SID (See-in-the-Dark): its file names, lists, pairs and named splits.

Chen et al., "Learning to See in the Dark", CVPR 2018. A folder as it is unpacked:

    Sony/short/00001_00_0.04s.ARW     scene, shot, exposure time
    Sony/long/00001_00_10s.ARW        the scene's one long exposure
    Sony_train_list.txt, Sony_val_list.txt, Sony_test_list.txt

The first digit of a scene tells its split: 0 training, 1 test, 2 validation. The list files are
read where they are there (SID's form, or ELD's); else the names alone tell everything. Which
pairs ELD and PMN evaluate on is carried here (facts.md section 9).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from eslkit.errors import InputError

__all__ = [
    "ELD_SCENES",
    "MAX_RATIO",
    "MISALIGNED_SCENES",
    "SPLIT_SIZES",
    "SidPair",
    "make_pair",
    "parse_name",
    "read_list",
    "select",
    "split_of",
]

MAX_RATIO = 300.0
"""Exposure ratios are capped here, as in SID's own code."""

MISALIGNED_SCENES = ("10034", "10045", "10172")
"""Test scenes whose short and long exposures do not lie on one another: SID's authors leave them
out of their figures."""

ELD_SCENES = (
    *("10185", "10187", "10191", "10193", "10198", "10213", "10217", "10226", "10227", "10228"),
    *("20188", "20201", "20208", "20210", "20211"),
)
"""The 15 indoor scenes of ELD's evaluation, which the paper follows; 10 s long, at three ratios."""

_SPLITS = {"0": "train", "1": "test", "2": "val"}
_NAME = re.compile(r"(\d{5})_(\d{2})_(\d{1,6}(?:\.\d{1,9})?)s\.[A-Za-z0-9]{1,8}", re.ASCII)
_MAX_LIST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class SidPair:
    """A short exposure and the long one of the same scene."""

    scene: str
    """Five digits; the first tells the split."""
    shot: str
    """Two digits, number of the short exposure; 00 is the first."""
    short: str
    """File name of the short exposure."""
    long: str
    """File name of the long exposure."""
    short_exposure: float
    """Exposure time that the name states, in seconds."""
    long_exposure: float
    """Exposure time that the name states, in seconds."""

    @property
    def ratio(self) -> float:
        """The short exposure is amplified by this: long over short exposure time, 300 at most."""
        return min(self.long_exposure / self.short_exposure, MAX_RATIO)

    @property
    def name(self) -> str:
        """The short exposure's file name without its extension: 10003_00_0.04s."""
        return self.short.rpartition(".")[0]


SPLIT_SIZES = {
    "train": 1865,
    "val": 234,
    "test": 598,
    "train-first": 280,
    "val-first": 36,
    "test-first": 93,
    "sid129": 129,
    "eld15": 45,
}
"""How many pairs of the whole dataset each named split has. `train`, `val`, `test`: all short
exposures; `...-first`: only the first at each exposure time (shot 00), which ELD and the paper
train and test on; `sid129`: those of val and test (PMN's and PNNP's tables); `eld15`: ELD's 15
scenes."""

_CHOOSERS: dict[str, Callable[[SidPair], bool]] = {
    "train": lambda pair: split_of(pair.scene) == "train",
    "val": lambda pair: split_of(pair.scene) == "val",
    "test": lambda pair: split_of(pair.scene) == "test",
    "train-first": lambda pair: pair.shot == "00" and split_of(pair.scene) == "train",
    "val-first": lambda pair: pair.shot == "00" and split_of(pair.scene) == "val",
    "test-first": lambda pair: pair.shot == "00" and split_of(pair.scene) == "test",
    "sid129": lambda pair: pair.shot == "00" and split_of(pair.scene) != "train",
    "eld15": lambda pair: pair.shot == "00" and pair.scene in ELD_SCENES,
}


def parse_name(name: str) -> tuple[str, str, float]:
    """Takes a file name apart.

    Args:
        name: such as 00001_00_0.04s.ARW; any extension.

    Returns:
        Scene, shot, and exposure time in seconds.

    Raises:
        InputError: another form, or an exposure time of 0.
    """
    found = _NAME.fullmatch(name)
    if found is None or float(found[3]) <= 0:
        raise InputError(
            f"the file name {name[:80]!r} is not one of SID's; expected scene_shot_seconds, such "
            "as 00001_00_0.04s.ARW"
        )
    return found[1], found[2], float(found[3])


def make_pair(short: str, long: str) -> SidPair:
    """Makes a pair of two file names.

    Args:
        short: of the short exposure.
        long: of the long exposure.

    Raises:
        InputError: names of another form, of two scenes, or the long exposure is not longer.
    """
    scene, shot, short_exposure = parse_name(short)
    long_scene, _, long_exposure = parse_name(long)
    if scene != long_scene:
        raise InputError(f"{short} and {long} show different scenes; a pair shows one")
    if short_exposure >= long_exposure:
        raise InputError(f"{short} is not shorter than {long}; expected the short exposure first")
    return SidPair(scene, shot, short, long, short_exposure, long_exposure)


def split_of(scene: str) -> str:
    """Tells `train`, `val` or `test` by a scene's first digit.

    Raises:
        InputError: another digit than 0, 1 or 2.
    """
    if scene[:1] not in _SPLITS:
        raise InputError(
            f"the scene {scene} belongs to no split; expected a first digit of 0 (train), 1 (test) "
            "or 2 (val)"
        )
    return _SPLITS[scene[:1]]


def read_list(path: str | Path) -> tuple[SidPair, ...]:
    """Reads a list of pairs: SID's (`short long ISO aperture`) or ELD's (`short long [ratio]`).

    Only the file names count, not the folders before them: a list cannot point out of the
    dataset. A ratio that stands there is not used; it follows from the names.

    Args:
        path: the list file.

    Returns:
        The pairs in the list's order.

    Raises:
        InputError: the file cannot be read, is no such list, or names a short exposure twice; the
            message tells the line.
    """
    path = Path(path)
    pairs: dict[str, SidPair] = {}
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            pair = _pair_of_line(words)
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        if pair.short in pairs:
            raise InputError(
                f"{path}, line {number}: {pair.short} stands there twice; take one line out"
            )
        pairs[pair.short] = pair
    if not pairs:
        raise InputError(f"{path} is empty; expected one pair of file names a line")
    return tuple(pairs.values())


def select(
    pairs: Iterable[SidPair], split: str, *, drop_misaligned: bool = False
) -> tuple[SidPair, ...]:
    """Takes the pairs of a named split.

    Args:
        pairs: those that are there.
        split: a name in `SPLIT_SIZES`.
        drop_misaligned: leave out SID's three misaligned test scenes, as its authors do.

    Returns:
        The split's pairs in the order of `pairs`; fewer than `SPLIT_SIZES` tells where not all of
        the dataset is there.

    Raises:
        InputError: no split of that name, or `pairs` holds none of its pairs.
    """
    if split not in _CHOOSERS:
        raise InputError(f"there is no split {split!r}; expected one of {', '.join(SPLIT_SIZES)}")
    left_out = MISALIGNED_SCENES if drop_misaligned else ()
    chosen = tuple(pair for pair in pairs if _CHOOSERS[split](pair) and pair.scene not in left_out)
    if not chosen:
        raise InputError(
            f"no pair of the split {split} is there ({SPLIT_SIZES[split]} in the whole of SID); "
            "prepare a dataset that has them, or choose another split"
        )
    return chosen


def _pair_of_line(words: Sequence[str]) -> SidPair:
    if not 2 <= len(words) <= 4:
        raise InputError(
            f"{' '.join(words)[:80]!r} has {len(words)} words; expected the paths of a short and a "
            "long exposure, then at most ISO and aperture"
        )
    short, long = (PurePosixPath(word.replace("\\", "/")).name for word in words[:2])
    pair = make_pair(short, long)
    split_of(pair.scene)
    return pair


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_LIST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_LIST_BYTES:
        raise InputError(f"{path} is larger than {_MAX_LIST_BYTES >> 20} MiB, too large for a list")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file; expected a list of file names") from error
