"""What is made of records: means and spreads, verdicts on claims, pages."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eslkit_tsdn.recipes.rows import TABLES
from eslkit_tsdn.recipes.scale import SCALES, Scale
from eslkit_tsdn.tables.claims import CLAIMS, Finding, findings
from eslkit_tsdn.tables.page import markdown
from eslkit_tsdn.tables.results import Cell, Results, RowResult, TableResult, over_ratios

RATIOS = (100, 250, 300)


def row(name: str, psnr: Sequence[float], **metrics: float) -> RowResult:
    """A row whose PSNR is the same at all ratios, one value a seed."""
    cells = {f"psnr_x{ratio}": Cell(values=tuple(psnr)) for ratio in RATIOS}
    cells |= {f"ssim_x{ratio}": Cell(values=(0.5,) * len(psnr)) for ratio in RATIOS}
    cells |= {measure: Cell(values=(value,)) for measure, value in metrics.items()}
    runs = tuple(f"{name}-{seed}" for seed in range(len(psnr)))
    return RowResult(
        name=name, what="", runs=runs, metrics=cells, parameters=1000, macs=10**9, trainings=1
    )


def verdict(rows: Mapping[str, Sequence[float]], table: str, claim: str) -> Finding:
    made = TableResult(
        name=table, title="", rows=tuple(row(name, psnr) for name, psnr in rows.items())
    )
    [found] = [f for f in findings([made]) if f.claim == claim]
    return found


def results(
    tables: tuple[TableResult, ...], *, scale: Scale = SCALES["mini"], real: bool = False
) -> Results:
    return Results(
        scale=scale,
        pictures="seven pictures",
        real=real,
        noisy={f"{m}_x{r}": 0.25 for r in RATIOS for m in ("psnr", "ssim")},
        machine={"torch": "2.13.0"},
        command="eslkit-tsdn reproduce table5",
        finished="2026-11-25",
        tables=tables,
    )


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_mean_and_spread_are_those_of_the_sample(values: list[float]) -> None:
    cell = Cell(values=tuple(values))
    assert cell.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert cell.spread == pytest.approx(statistics.stdev(values), abs=1e-6)


def test_one_seed_has_no_spread() -> None:
    assert Cell(values=(3.0,)).spread is None


def test_ratios_are_averaged_seed_by_seed() -> None:
    metrics = {
        "psnr_x100": Cell(values=(30.0, 31.0)),
        "psnr_x300": Cell(values=(20.0, 25.0)),
        "ssim_x100": Cell(values=(0.0, 0.0)),
    }
    assert over_ratios(metrics) == (25.0, 28.0)


SCRATCH = "ESL beats training from scratch."


@pytest.mark.parametrize(
    "esl, scratch, expected",
    [
        ((31.0, 32.0, 33.0), (30.0, 31.0, 32.0), "holds"),
        ((30.0, 31.0, 32.0), (31.0, 32.0, 33.0), "does not hold"),
        ((31.0, 30.0, 32.0), (30.0, 31.0, 32.0), "within the spread"),
        ((31.0,), (30.0,), "holds, one seed"),
    ],
    ids=["better at every seed", "worse at every seed", "now better now worse", "one seed"],
)
def test_rows_are_compared_seed_by_seed(
    esl: Sequence[float], scratch: Sequence[float], expected: str
) -> None:
    found = verdict({"TSDN_ESL3": esl, "TSDN_ESL4": scratch}, "table4", SCRATCH)
    assert found.verdict == expected
    if len(esl) == 1:
        assert "one seed" in found.evidence


def test_a_chain_is_as_strong_as_its_weakest_link() -> None:
    rows = {
        "SU-Net-ESL": (32.0, 32.1, 32.0),
        "SU-Net-CD": (31.0, 31.1, 31.0),
        "SU-Net": (31.5, 31.5, 31.6),
    }
    claim = "ESL beats collaborative distillation, which beats scratch."
    found = verdict(rows, "table5", claim)
    assert found.verdict == "does not hold"
    assert "SU-Net-ESL above SU-Net-CD: +1.00 dB" in found.evidence


@pytest.mark.parametrize(
    "last, expected", [((30.1, 29.9, 30.0), "holds"), ((31.0, 31.1, 31.2), "does not hold")]
)
def test_rows_that_shall_be_alike(last: Sequence[float], expected: str) -> None:
    rows = {"First": (30.0, 30.0, 30.1), "Last": last, "Combined": (30.0, 30.1, 30.0)}
    assert verdict(rows, "table3", "First, Last and Combined are alike.").verdict == expected


def test_one_seed_cannot_say_that_rows_are_alike() -> None:
    rows = {"First": (30.0,), "Last": (30.0,), "Combined": (30.0,)}
    found = verdict(rows, "table3", "First, Last and Combined are alike.")
    assert (found.verdict, "one seed tells no spread" in found.evidence) == ("not measured", True)


@pytest.mark.parametrize(
    "three, expected", [((30.0, 30.1), "holds"), ((33.0, 33.1), "does not hold")]
)
def test_a_third_stage_may_not_add(three: Sequence[float], expected: str) -> None:
    rows = {"ThSDN": three, "TSDN4": (30.05, 30.0)}
    assert verdict(rows, "table2", "Three stages add nothing.").verdict == expected


@pytest.mark.parametrize(
    "levels, expected", [((0.3, 0.2, 0.1), "holds"), ((0.3, 0.1, 0.2), "does not hold")]
)
def test_noise_along_the_network(levels: Sequence[float], expected: str) -> None:
    noise = {
        f"noise_std_{place}_x{ratio}": level
        for ratio in RATIOS
        for place, level in zip(("input", "middle", "output"), levels, strict=True)
    }
    table = TableResult(name="table6", title="", rows=(row("TSDN", (30.0,), **noise),))
    [found] = findings([table])
    assert found.verdict == expected


def test_what_is_missing_is_not_measured() -> None:
    for name in TABLES:
        for found in findings([TableResult(name=name, title="", rows=())]):
            assert found.verdict == "not measured"


def test_every_claim_is_about_rows_that_there_are() -> None:
    assert {claim.table for claim in CLAIMS} <= set(TABLES)
    assert len({claim.claim for claim in CLAIMS}) == len(CLAIMS)


def test_the_page_says_what_the_data_are() -> None:
    table = TableResult(name="table5", title="Table V", rows=(row("U-Net", (30.0, 31.0)),))
    stand_in, real = markdown(results((table,))), markdown(results((table,), real=True))
    assert "Stand-in data" in stand_in
    assert "it cannot show the paper's numbers" in stand_in
    assert "Stand-in" not in real
    assert "SID's own pictures" in real
    smoke = markdown(results((table,), scale=SCALES["smoke"]))
    assert "its figures and verdicts mean nothing" in smoke.replace("\n", " ")
    assert "mean nothing" not in stand_in


def test_the_page_shows_mean_spread_paper_and_runs() -> None:
    table = TableResult(name="table5", title="Table V", rows=(row("U-Net", (30.0, 31.0)),))
    page = markdown(results((table,)))
    assert "30.50 ± 0.71" in page
    assert "`U-Net-0` `U-Net-1`" in page
    assert "| *paper* |" in page
    assert "| 29.6 | 96.77 |" in page


def test_results_survive_json() -> None:
    table = TableResult(name="table5", title="Table V", rows=(row("U-Net", (30.0, 31.0)),))
    made = results((table,))
    assert Results.model_validate_json(made.model_dump_json()) == made
