"""What a reproduction was asked for: enough for a second process to do the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from eslkit.errors import InputError
from eslkit_tsdn.recipes.estimate import shard
from eslkit_tsdn.recipes.rows import TABLES, Table, tables
from eslkit_tsdn.recipes.scale import SCALES, Scale
from eslkit_tsdn.recipes.values import Recipe, in_order
from eslkit_tsdn.recipes.walks import Planner
from eslkit_tsdn.tables.pictures import Pictures

__all__ = ["Reproduction", "asked_for", "planner_of", "recipes_of", "tables_of"]


class Reproduction(BaseModel):
    """One call of `eslkit-tsdn reproduce`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tables: tuple[str, ...] = Field(min_length=1)
    """Names of the tables, in their order."""
    scale: Scale
    """The preset."""
    data: str | None = None
    """Folder of pictures, or a prepared store; None for the packaged photographs."""
    shard: tuple[int, int] = (1, 1)
    """Which part of the work this is, and of how many."""


def asked_for(
    names: Sequence[str],
    *,
    preset: str = "smoke",
    data: Path | None = None,
    seeds: int | None = None,
    iterations: int | None = None,
    shard: str = "1/1",
) -> Reproduction:
    """What was asked for in words.

    Args:
        names: of tables; `all` for all of them.
        preset: a name in `SCALES`.
        data: folder of pictures or prepared store; None for the packaged photographs.
        seeds: in place of the preset's number, for the rows where the spread counts.
        iterations: updates of a training in place of the preset's length.
        shard: `i/n`.

    Raises:
        InputError: a word cannot be understood.
    """
    if preset not in SCALES:
        raise InputError(f"There is no preset {preset!r}; there are {', '.join(SCALES)}.")
    scale = SCALES[preset]
    if seeds is not None:
        if seeds < 1:
            raise InputError(f"seeds={seeds}: expected 1 or more.")
        scale = scale.model_copy(update={"seeds": seeds})
    if iterations is not None:
        if iterations < 1:
            raise InputError(f"iterations={iterations}: expected 1 or more.")
        length = {"iterations": iterations, "epochs": None}
        preset_so = scale.preset.model_copy(update=length)
        scale = scale.model_copy(update={"preset": preset_so})
    unknown = [name for name in names if name != "all" and name not in TABLES]
    if unknown:
        raise InputError(f"There is no table {unknown[0]!r}; there are {', '.join(TABLES)}, all.")
    whole = list(TABLES) if "all" in names else [name for name in TABLES if name in names]
    return Reproduction(
        tables=tuple(whole),
        scale=scale,
        data=None if data is None else str(data.resolve()),
        shard=_shard(shard),
    )


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise InputError(f"shard={text!r}: expected i/n with i from 1 to n, as 2/4.")
    return int(index), int(count)


def planner_of(out: Path) -> Planner:
    """The planner of a reproduction's folder."""
    return Planner(out / "plans")


def tables_of(asked: Reproduction, pictures: Pictures, *, planner: Planner) -> tuple[Table, ...]:
    """The tables that were asked for.

    Args:
        asked: what was asked for.
        pictures: what is learnt from.
        planner: makes the schedules.

    Raises:
        InputError: the preset does not go with the pictures.
    """
    preset = asked.scale.preset
    crops = pictures.dataset.num_crops(crop=preset.crop) if preset.epochs else 1
    made = tables(
        asked.scale,
        data=pictures.real,
        budget=preset.budget(num_crops=crops),
        synthetic=pictures.synthetic,
        planner=planner,
        names=asked.tables,
    )
    return tuple(made.values())


def recipes_of(
    made: Sequence[Table], asked: Reproduction, *, planner: Planner
) -> tuple[Recipe, ...]:
    """Everything that has to be trained for the tables, this shard's part of it."""
    whole = in_order(r for table in made for row in table.rows for r in row.trainings)
    index, count = asked.shard
    if count == 1:
        return whole
    return shard(whole, index=index, count=count, planner=planner)
