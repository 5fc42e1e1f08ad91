"""What came out of a reproduction: every row with mean and spread, and the runs behind it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from eslkit_tsdn.recipes.rows import Row, Table
from eslkit_tsdn.recipes.scale import Scale
from eslkit_tsdn.recipes.values import Recipe, in_order
from eslkit_tsdn.tables.runs import Record, RunsFolder

__all__ = ["Cell", "Results", "RowResult", "TableResult", "collect"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Cell(_Frozen):
    """One measure of one row, over its seeds."""

    values: tuple[float, ...]
    """One for each seed, in the order of the seeds."""

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return math.fsum(self.values) / len(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation of the sample over the seeds; None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


class RowResult(_Frozen):
    """One row of a table."""

    name: str
    """As the paper prints it."""
    what: str
    """In words."""
    runs: tuple[str, ...]
    """The runs that the figures come from, one for each seed; their folders have these names."""
    missing: int = 0
    """Seeds whose training is not finished, or failed."""
    parameters: int | None = None
    """Of the network."""
    macs: int | None = None
    """Multiply-accumulates of one image of 1x4x512x512."""
    trainings: int = 0
    """How many trainings lead to the network, for one seed."""
    iterations: int = 0
    """Optimizer updates of all of them."""
    training_flops: float = 0.0
    """FLOPs of all of them."""
    metrics: dict[str, Cell] = {}
    """By measure: `psnr_x100` in dB, `ssim_x100`, and the noise that is left."""


class TableResult(_Frozen):
    """One table."""

    name: str
    """`table1` to `table6`, or `controls`."""
    title: str
    """In words."""
    rows: tuple[RowResult, ...]

    def row(self, name: str) -> RowResult:
        """The row of a name."""
        return next(row for row in self.rows if row.name == name)


class Results(_Frozen):
    """Everything that the pages say."""

    version: Literal[1] = 1
    """Version of this form."""
    scale: Scale
    """The preset."""
    pictures: str
    """What was learnt from and tested on, in words."""
    real: bool
    """Whether the pictures are SID's own pairs; otherwise they stand in for them."""
    noisy: dict[str, float]
    """The measures of the noisy input."""
    machine: dict[str, str]
    """Hardware and versions of the last training."""
    command: str
    """What was called."""
    finished: str
    """When the last training finished, UTC, ISO 8601."""
    tables: tuple[TableResult, ...]


def collect(tables: Sequence[Table], runs: RunsFolder) -> tuple[TableResult, ...]:
    """Read what is finished.

    Args:
        tables: which rows there are.
        runs: where their trainings are.

    Raises:
        StoreError: a record is damaged.
    """
    return tuple(
        TableResult(
            name=table.name, title=table.title, rows=tuple(_row(row, runs) for row in table.rows)
        )
        for table in tables
    )


def _row(row: Row, runs: RunsFolder) -> RowResult:
    done = [recipe for recipe in row.trainings if runs.is_finished(recipe)]
    missing = len(row.trainings) - len(done)
    if not done:
        return RowResult(name=row.name, what=row.what, runs=(), missing=missing)
    records = [runs.record(recipe) for recipe in done]
    chain = [runs.record(recipe) for recipe in in_order(done[:1])]
    return RowResult(
        name=row.name,
        what=row.what,
        runs=tuple(recipe.id for recipe in done),
        missing=missing,
        parameters=records[0].parameters or None,
        macs=records[0].macs or None,
        trainings=_trained(in_order(done[:1])),
        iterations=sum(record.iterations for record in chain),
        training_flops=math.fsum(record.training_flops for record in chain),
        metrics=_cells(records),
    )


def _trained(recipes: Iterable[Recipe]) -> int:
    return sum(recipe.network is not None for recipe in recipes)


def _cells(records: Sequence[Record]) -> dict[str, Cell]:
    names = [name for name in records[0].metrics if all(name in r.metrics for r in records)]
    return {name: Cell(values=tuple(r.metrics[name] for r in records)) for name in names}


def over_ratios(metrics: Mapping[str, Cell], measure: str = "psnr") -> tuple[float, ...]:
    """The mean over the ratios, seed by seed."""
    cells = [cell.values for name, cell in metrics.items() if name.startswith(f"{measure}_x")]
    return tuple(math.fsum(values) / len(values) for values in zip(*cells, strict=True))


def at_ratios(*ratios: int, measure: str = "psnr") -> Callable[[RowResult], tuple[float, ...]]:
    """A measure of a row: the mean over some ratios, seed by seed."""

    def values(row: RowResult) -> tuple[float, ...]:
        chosen = {f"{measure}_x{ratio}": row.metrics[f"{measure}_x{ratio}"] for ratio in ratios}
        return over_ratios(chosen, measure)

    return values
