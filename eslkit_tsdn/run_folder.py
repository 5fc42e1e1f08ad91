"""The folder of a run of a command: whose it is, and that it stays so."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from eslkit.errors import StoreError
from eslkit.files import check_free_space, write_atomically

__all__ = ["SETTINGS", "claim_folder", "read_settings"]

SETTINGS = "settings.json"
"""The file that says what a folder holds."""

Settings = TypeVar("Settings", bound=BaseModel)


def claim_folder(
    out: Path,
    settings: BaseModel,
    *,
    what: str,
    fresh: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Make the folder of a run, or see to it that the run in it is this one.

    Args:
        out: the folder.
        settings: everything that the run's numbers depend on. A field `photos` is a digest of its
            pictures.
        what: what the run is, for people: "demo".
        fresh: move what `out` holds aside and start over.
        say: is told what was moved where.

    Raises:
        StoreError: it holds a run with other settings, or something else, or cannot be
            written.
    """
    path = out / SETTINGS
    if fresh and out.exists():
        aside = out.with_name(f"{out.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        _move_aside(out, aside)
        say(f"The earlier run is now {aside}.")
    if path.exists():
        differing = _differences(read_settings(path, type(settings), what=what), settings)
        if differing:
            raise StoreError(
                f"{out} holds a {what} with other settings ({differing}). Use those again, choose "
                "another folder with --out, or move the old run aside with --fresh."
            )
        return
    if out.is_dir() and any(file.suffix != ".part" for file in out.iterdir()):
        raise StoreError(
            f"{out} is not empty and holds no {what}. Choose another folder with --out."
        )
    write_atomically(path, settings.model_dump_json(indent=2).encode())
    check_free_space(out, 100 * 2**20)


def read_settings(path: Path, form: type[Settings], *, what: str) -> Settings:
    """The settings of the run in a folder.

    Raises:
        StoreError: they cannot be read.
    """
    try:
        return form.model_validate_json(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise StoreError(
            f"{path} cannot be read as a {what}'s settings ({type(error).__name__}). It was "
            "changed or written by another version; choose another folder with --out, or use "
            "--fresh."
        ) from error


def _move_aside(out: Path, aside: Path) -> None:
    """Rename a folder, or say why it cannot be."""
    try:
        out.rename(aside)
    except OSError as error:
        raise StoreError(f"{out} cannot be moved to {aside} ({error.strerror}).") from error


def _differences(old: BaseModel, new: BaseModel) -> str:
    """The fields in which two settings differ, as `iterations 600, now 300`."""
    before, after = _flat(old.model_dump()), _flat(new.model_dump())
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if names == ["photos"]:
        return "the photographs have changed"
    return "; ".join(f"{n} {before.get(n)}, now {after.get(n)}" for n in names if n != "photos")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings within settings by their own names, where no other has that name."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= {key: each for key, each in _flat(value).items() if key not in settings}
        else:
            flat[name] = value
    return flat
