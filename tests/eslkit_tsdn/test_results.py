"""The results that the documentation publishes: pages, figures and runs belong together."""

from __future__ import annotations

from pathlib import Path

import pytest

from eslkit_tsdn.recipes.rows import TABLES
from eslkit_tsdn.recipes.scale import SCALES
from eslkit_tsdn.tables.results import Results
from tests.eslkit_tsdn.published import check_published

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize("name", ["mini", "table2-4000"])
def test_every_figure_is_that_of_a_run(name: str) -> None:
    told = check_published(
        RESULTS / f"{name}.json", RESULTS / f"{name}.md", RESULTS / f"{name}-runs.jsonl"
    )
    for table in told.tables:
        for row in table.rows:
            assert row.missing == 0, (table.name, row.name)
    assert "/" not in told.command.replace("../shared/data", ""), "a path of some machine"


def test_mini_is_the_preset_as_it_stands() -> None:
    told = Results.model_validate_json((RESULTS / "mini.json").read_text("utf-8"))
    assert [table.name for table in told.tables] == list(TABLES)
    assert told.scale == SCALES["mini"], "the preset has changed since it was run"
