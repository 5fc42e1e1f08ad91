"""The results that the documentation publishes: pages, figures and runs belong together."""

from __future__ import annotations

from pathlib import Path

from eslkit_tsdn.recipes.rows import TABLES
from eslkit_tsdn.recipes.scale import SCALES
from tests.eslkit_tsdn.published import check_published

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_every_figure_of_mini_is_that_of_a_run() -> None:
    told = check_published(RESULTS / "mini.json", RESULTS / "mini.md", RESULTS / "mini-runs.jsonl")
    assert [table.name for table in told.tables] == list(TABLES)
    assert told.scale == SCALES["mini"], "the preset has changed since it was run"
    for table in told.tables:
        for row in table.rows:
            assert row.missing == 0, (table.name, row.name)
    assert "/" not in told.command.replace("../shared/data", ""), "a path of some machine"
