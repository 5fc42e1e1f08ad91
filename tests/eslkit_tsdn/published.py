"""What has to be true of the files that a reproduction publishes, read as a stranger would."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from eslkit_tsdn.recipes.values import identity
from eslkit_tsdn.tables.page import markdown
from eslkit_tsdn.tables.results import Results
from eslkit_tsdn.tables.runs import Record


def check_published(results: Path, page: Path, ledger: Path) -> Results:
    """Every figure is that of a run, every run's name the hash of its recipe.

    Returns:
        What `results` says.
    """
    told = Results.model_validate_json(results.read_text("utf-8"))
    assert page.read_text("utf-8") == markdown(told), f"{page} was not written from {results}"
    lines = [json.loads(line) for line in ledger.read_text("utf-8").splitlines()]
    recipes: dict[str, dict[str, Any]] = {line["recipe"]["id"]: line["recipe"] for line in lines}
    records = {r.id: r for r in (Record.model_validate(line["record"]) for line in lines)}
    assert recipes.keys() == records.keys()
    assert len(recipes) == len(lines)
    for name, recipe in recipes.items():
        assert identity(recipe) == name
        assert set(recipe["before"]) <= recipes.keys()
    for table in told.tables:
        for row in table.rows:
            behind = [records[run] for run in row.runs]
            for measure, cell in row.metrics.items():
                assert cell.values == tuple(record.metrics[measure] for record in behind)
            if behind:
                chain = _all_before(row.runs[0], recipes)
                assert row.training_flops == math.fsum(records[run].training_flops for run in chain)
                assert row.iterations == sum(records[run].iterations for run in chain)
    return told


def _all_before(run: str, recipes: dict[str, dict[str, Any]]) -> set[str]:
    return {run}.union(*(_all_before(earlier, recipes) for earlier in recipes[run]["before"]))
