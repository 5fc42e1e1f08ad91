"""The reproduction as a whole: tables asked for, trainings shared, pages out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from eslkit.errors import EslError, TrainingError
from eslkit.files import write_atomically
from eslkit_tsdn.evaluation import evaluate_input
from eslkit_tsdn.recipes.estimate import critical_paths, training_flops
from eslkit_tsdn.recipes.rows import Table
from eslkit_tsdn.recipes.values import Recipe, in_order
from eslkit_tsdn.recipes.walks import Planner
from eslkit_tsdn.tables.crew import Crew
from eslkit_tsdn.tables.page import markdown
from eslkit_tsdn.tables.pictures import Pictures, open_pictures
from eslkit_tsdn.tables.pool import carry_out_all
from eslkit_tsdn.tables.progress import ReproductionProgress
from eslkit_tsdn.tables.results import Results, collect
from eslkit_tsdn.tables.runs import Record, RunsFolder
from eslkit_tsdn.tables.settings import Reproduction, planner_of, recipes_of, tables_of
from eslkit_tsdn.tables.workshop import Workshop

__all__ = ["reproduce"]

RESULTS, PAGE, LEDGER = "results.json", "results.md", "runs.jsonl"


def reproduce(
    asked: Reproduction,
    *,
    out: Path,
    processes: int = 1,
    command: str,
    console: Console,
    through: Callable[..., None] | None = None,
) -> Results:
    """Train what is missing, measure it, and write the tables.

    Args:
        asked: which tables, how large, on what.
        out: the folder; what is finished in it is not trained again.
        processes: trainings beside each other.
        command: what the user called, for the page.
        console: where progress goes.
        through: carries the recipes out in another way than by processes of this machine, as
            `eslkit_tsdn.tables.rays.carry_out_by_ray`.

    Returns:
        What the pages say; `out/results.json` and `out/results.md` say the same, and
        `out/runs.jsonl` has a line for every training behind them, its recipe and its record.

    Raises:
        InputError: tables, preset or pictures cannot be used.
        StoreError: the folder cannot be written, or something in it is damaged.
        TrainingError: trainings failed; the tables of all others are written nevertheless.
    """
    pictures, planner, runs = (
        open_pictures(asked.scale.preset, asked.data),
        planner_of(out),
        RunsFolder(out),
    )
    console.print(f"Planning the schedules of {', '.join(asked.tables)} ...")
    tables = tables_of(asked, pictures, planner=planner)
    recipes = recipes_of(tables, asked, planner=planner)
    work = {recipe.id: training_flops(recipe, planner) for recipe in recipes}
    done = [recipe.id for recipe in recipes if runs.is_finished(recipe)]
    failures: list[str] = []
    with ReproductionProgress(recipes, work=work, done=done, console=console) as progress:

        def tell(message: dict[str, Any]) -> None:
            if message["kind"] == "failed":
                failures.append(message["reason"])
            progress.told(message)

        if len(done) < len(recipes):
            if through is not None:
                through(recipes, asked=asked, out=out, processes=processes, tell=tell)
            elif processes > 1:
                arguments = (asked.model_dump_json(),)
                Crew(out=out, size=processes, tell=tell, arguments=arguments).work()
            else:
                _work_here(recipes, pictures, planner=planner, runs=runs, tell=tell)
    results = _written(asked, tables, pictures, out=out, command=command, runs=runs)
    if failures:
        raise TrainingError(
            f"{len(set(failures))} trainings failed, and what needs them is missing in the tables: "
            f"{'; '.join(sorted(set(failures)))}"
        )
    return results


def _work_here(
    recipes: Sequence[Recipe],
    pictures: Pictures,
    *,
    planner: Planner,
    runs: RunsFolder,
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """Carry everything out in this process."""

    def update(recipe: Recipe, done: int, loss: float) -> None:
        tell({"kind": "update", "id": recipe.id, "done": done, "loss": loss})

    def carry_out(recipe: Recipe) -> Record:
        tell({"kind": "begin", "id": recipe.id})
        record = workshop.carry_out(recipe)
        tell({"kind": "end", "id": recipe.id, "seconds": record.seconds})
        return record

    def failed(recipe: Recipe, error: EslError) -> None:
        tell({"kind": "failed", "id": recipe.id, "reason": str(error)})

    workshop = Workshop(runs, pictures, planner=planner, listener=update)
    paths = critical_paths(recipes, planner)
    carry_out_all(recipes, runs=runs, carry_out=carry_out, paths=paths, failed=failed)


def _written(
    asked: Reproduction,
    tables: Sequence[Table],
    pictures: Pictures,
    *,
    out: Path,
    command: str,
    runs: RunsFolder,
) -> Results:
    """Collect what is finished, and write it down."""
    finished = [
        recipe
        for recipe in in_order(r for table in tables for row in table.rows for r in row.trainings)
        if runs.is_finished(recipe)
    ]
    records = [runs.record(recipe) for recipe in finished]
    last = max(records, key=lambda record: record.finished, default=None)
    results = Results(
        scale=asked.scale,
        pictures=pictures.dataset.words,
        real=pictures.real.kind == "store",
        noisy=evaluate_input(pictures.pairs),
        machine=last.versions if last else {},
        command=command,
        finished=last.finished if last else "",
        tables=collect(tables, runs),
    )
    text = results.model_dump_json(indent=2) + "\n"
    write_atomically(out / RESULTS, text.encode())
    write_atomically(out / PAGE, markdown(results).encode())
    lines = (
        json.dumps({"recipe": recipe.flat(), "record": record.model_dump(mode="json")})
        for recipe, record in zip(finished, records, strict=True)
    )
    write_atomically(out / LEDGER, "".join(f"{line}\n" for line in lines).encode())
    return results
