"""What a SID folder holds, before anything is decoded: files, pairs, and what is amiss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eslkit.errors import InputError
from eslkit_tsdn.data.photos import RAW_SUFFIXES
from eslkit_tsdn.data.sid import SidPair, make_pair, parse_name, read_list, split_of
from eslkit_tsdn.data.store import MANIFEST, Role, Skipped

__all__ = ["CameraFile", "Dataset", "Shots", "find_dataset"]

Shots = Literal["all", "first", "none"]
"""Which short exposures to take: all, the first at each exposure time (shot 00), none."""

_LISTS = tuple(f"Sony_{split}_list.txt" for split in ("train", "val", "test"))


@dataclass(frozen=True)
class CameraFile:
    """One file to decode."""

    role: Role
    """Which folder it stands in."""
    path: Path
    """The file."""

    @property
    def key(self) -> str:
        """Folder and name: short/00001_00_0.1s.ARW."""
        return f"{self.role}/{self.path.name}"


@dataclass(frozen=True)
class Dataset:
    """What a folder holds."""

    files: tuple[CameraFile, ...]
    """The files that are there and wanted, short ones first, sorted by name; no short one whose
    long exposure is missing."""
    pairs: tuple[SidPair, ...]
    """The pairs whose files are both there, sorted by name."""
    amiss: tuple[Skipped, ...]
    """Files that are missing, or named in a way that says nothing."""
    lists: tuple[Path, ...]
    """The list files that were read; none where the names alone tell the pairs."""
    num_unlisted: int = 0
    """Camera files that no list names: left out."""


def find_dataset(folder: str | Path, *, shots: Shots = "all") -> Dataset:
    """Looks through a folder of SID's Sony files; opens list files, but no camera file.

    The list files say which pairs there must be, where one of them stands in the folder; else
    the names of the files do. A folder without any short exposure is taken for its long ones,
    for training with drawn noise.

    Args:
        folder: holds `Sony/short` and `Sony/long`, or `short` and `long`.
        shots: which short exposures to take.

    Returns:
        Files, pairs and what is amiss.

    Raises:
        InputError: the folder is absent or not of this form, or a list file is damaged.
    """
    folder = Path(folder)
    base = _base(folder)
    there: dict[Role, dict[str, Path]] = {
        "short": {} if shots == "none" else _camera_files(base / "short"),
        "long": _camera_files(base / "long"),
    }
    if not there["long"]:
        raise InputError(
            f"{base / 'long'} holds no camera file; expected SID's long exposures, such as "
            "00001_00_10s.ARW"
        )
    lists = [path for name in _LISTS for path in _candidates(folder, base, name) if path.is_file()]
    amiss: list[Skipped] = []
    wanted = _listed(lists) if lists else _scanned(there, amiss=amiss)
    if shots == "first":
        wanted = [pair for pair in wanted if pair.shot == "00"]
    longs = {pair.long for pair in wanted} if lists else set(there["long"])
    shorts = {pair.short for pair in wanted} if there["short"] else set[str]()
    named: dict[Role, set[str]] = {"short": shorts, "long": longs}
    amiss += _missing(named, there, why="missing, though a list names it")
    amiss += _twice(named, there)
    bad = {entry.file for entry in amiss}
    files = [
        CameraFile(role, there[role][name])
        for role in ("short", "long")
        for name in sorted(named[role])
        if f"{role}/{name}" not in bad
    ]
    present = {file.key for file in files}
    pairs = [p for p in wanted if f"short/{p.short}" in present and f"long/{p.long}" in present]
    useful = {pair.short for pair in pairs}
    return Dataset(
        files=tuple(file for file in files if file.role == "long" or file.path.name in useful),
        pairs=tuple(sorted(pairs, key=lambda pair: pair.name)),
        amiss=tuple(sorted(amiss, key=lambda entry: entry.file)),
        lists=tuple(lists),
        num_unlisted=_num_unlisted(wanted, there, shots=shots) if lists else 0,
    )


def _num_unlisted(
    wanted: Sequence[SidPair], there: dict[Role, dict[str, Path]], *, shots: Shots
) -> int:
    """Files that are there though no list names them."""
    listed = {pair.short for pair in wanted} | {pair.long for pair in wanted}
    names = [*there["long"], *(there["short"] if shots == "all" else ())]
    return sum(name not in listed for name in names)


def _base(folder: Path) -> Path:
    """The folder that holds `long`, or what to do instead."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}; expected SID's folder, with Sony/short and Sony/long")
    for base in (folder / "Sony", folder):
        if (base / "long").is_dir() and not (base / MANIFEST).is_file():
            return base
    if (folder / MANIFEST).is_file():
        raise InputError(
            f"{folder} is a prepared store already; give the folder with the camera files"
        )
    below = sorted(folder.glob("*/Sony/long")) + sorted(folder.glob("*/long"))
    zips = sorted(folder.glob("*.zip"))
    hint = ""
    if below:
        parent = below[0].parent
        hint = f". Did you mean {parent.parent if parent.name == 'Sony' else parent}?"
    elif zips:
        hint = f". Unpack {zips[0].name} first"
    raise InputError(
        f"{folder} holds neither Sony/long nor long; expected SID's folder as it is unpacked, with "
        f"Sony/short and Sony/long{hint}"
    )


def _candidates(folder: Path, base: Path, name: str) -> Iterable[Path]:
    """Where a list file may stand: beside Sony, or in it; given Sony itself, beside it."""
    beside = folder.parent if folder == base and folder.resolve().name == "Sony" else folder
    return list(dict.fromkeys((beside / name, base / name)))[:2]


def _camera_files(folder: Path) -> dict[str, Path]:
    """Camera files by name; hidden files and others are passed over."""
    if not folder.is_dir():
        return {}
    return {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in RAW_SUFFIXES and not path.name.startswith(".")
    }


def _listed(lists: Sequence[Path]) -> list[SidPair]:
    """The pairs of all lists; no short exposure may stand in two."""
    pairs: dict[str, SidPair] = {}
    for path in lists:
        for pair in read_list(path):
            if pair.short in pairs:
                raise InputError(f"{path}: {pair.short} stands in another list too; keep it in one")
            pairs[pair.short] = pair
    return list(pairs.values())


def _scanned(there: dict[Role, dict[str, Path]], *, amiss: list[Skipped]) -> list[SidPair]:
    """The pairs that the names tell; what they do not tell goes to `amiss`."""
    scenes: dict[str, list[str]] = {}
    pairs: list[SidPair] = []
    for name in there["long"]:
        scene = _scene(f"long/{name}", amiss=amiss)
        if scene:
            scenes.setdefault(scene, []).append(name)
    for names in scenes.values():
        if len(names) > 1:
            reason = f"its scene has {len(names)} long exposures; keep one"
            amiss += [Skipped(file=f"long/{name}", reason=reason) for name in names]
    for name in there["short"]:
        scene = _scene(f"short/{name}", amiss=amiss)
        longs = scenes.get(scene, [])
        if len(longs) == 1:
            try:
                pairs.append(make_pair(name, longs[0]))
            except InputError as error:
                amiss.append(Skipped(file=f"short/{name}", reason=str(error)))
        elif scene and not longs:
            amiss.append(Skipped(file=f"short/{name}", reason="no long exposure of its scene"))
    return pairs


def _scene(key: str, *, amiss: list[Skipped]) -> str:
    """The scene that a name tells; empty, and `amiss` says why, where it tells none."""
    try:
        scene, _, _ = parse_name(key.partition("/")[2])
        split_of(scene)
    except InputError as error:
        amiss.append(Skipped(file=key, reason=str(error)))
        return ""
    return scene


def _missing(
    named: dict[Role, set[str]], there: dict[Role, dict[str, Path]], *, why: str
) -> list[Skipped]:
    return [
        Skipped(file=f"{role}/{name}", reason=why)
        for role, names in named.items()
        for name in sorted(names - set(there[role]))
    ]


def _twice(named: dict[Role, set[str]], there: dict[Role, dict[str, Path]]) -> list[Skipped]:
    """Files that differ in their extension alone would be decoded into one."""
    found: list[Skipped] = []
    for role, names in named.items():
        stems = Counter(there[role][name].stem for name in names if name in there[role])
        found += [
            Skipped(file=f"{role}/{name}", reason="two files of this name, extensions aside")
            for name in sorted(names)
            if name in there[role] and stems[there[role][name].stem] > 1
        ]
    return found
