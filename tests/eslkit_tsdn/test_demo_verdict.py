"""The sentences of the demo's page, for every way that the numbers can fall."""

from __future__ import annotations

import pytest

from eslkit_tsdn.demo.settings import LINEAR, LONG, SCRATCH, DemoResults, DemoSettings, Row
from eslkit_tsdn.demo.verdict import against_long, against_scratch, gains, linear_against


def row(name: str, *, macs: int, iterations: int, psnr: tuple[float, ...]) -> Row:
    metrics = dict(zip(("psnr_x100", "psnr_x250", "psnr_x300"), psnr, strict=True))
    return Row(name=name, what=name, macs=macs, iterations=iterations, metrics=metrics)


def results(*, scratch=(24.0, 23.0, 22.0), long=(28.0, 27.0, 26.0), esl) -> DemoResults:
    return DemoResults(
        settings=DemoSettings(),
        train=("one",),
        test=("two",),
        rows=(
            Row(name="noisy", what="", metrics={"psnr_x100": 1, "psnr_x250": 1, "psnr_x300": 1}),
            row(SCRATCH, macs=10, iterations=600, psnr=scratch),
            row(LONG, macs=10, iterations=1800, psnr=long),
            row("EL", macs=50, iterations=600, psnr=(1, 1, 1)),
            row("CSL1", macs=30, iterations=600, psnr=(1, 1, 1)),
            row("LSL1", macs=10, iterations=600, psnr=esl),
            row(LINEAR, macs=10, iterations=1800, psnr=(28.5, 27.0, 25.0)),
        ),
        machine={},
        finished="",
    )


def test_gains_are_those_of_the_last_step():
    measured = results(esl=(27.5, 27.5, 26.0))
    assert [row.name for row in measured.steps] == ["EL", "CSL1", "LSL1"]
    assert gains(measured, SCRATCH) == pytest.approx((3.5, 4.5, 4.0))
    assert gains(measured, LONG) == pytest.approx((-0.5, 0.5, 0.0))


def test_the_papers_comparison_names_every_ratio():
    sentence = against_scratch(results(esl=(27.5, 22.0, 25.0)))
    assert "(600 iterations)" in sentence
    assert "is 3.50 dB better at x100, 1.00 dB worse at x250 and 3.00 dB better at x300" in sentence


@pytest.mark.parametrize(
    "esl, said",
    [
        ((27.7, 26.8, 26.0), "what the steps bring is mostly iterations"),
        ((28.3, 27.4, 26.3), "one seed and minutes of training are no proof"),
        ((28.1, 27.1, 26.1), "mostly iterations"),
        ((28.3, 26.8, 26.0), "no clear difference"),
    ],
)
def test_the_missing_control_is_told_as_it_is(esl, said):
    sentence = against_long(results(esl=esl))
    assert said in sentence
    assert "1,800 iterations, as many as all 3 steps together" in sentence
    assert "at 3.0 times the computation" in sentence


def test_layers_that_are_larger_inside_are_compared_with_both():
    sentence = linear_against(results(esl=(27.5, 27.5, 26.0)))
    assert "for 1,800 iterations" in sentence
    longer, esl = sentence.split(" than the longer training, and ")
    assert "is 0.50 dB better at x100, 0.00 dB worse at x250 and 1.00 dB worse at x300" in longer
    assert "is 1.00 dB better at x100, 0.50 dB worse at x250 and 1.00 dB worse at x300" in esl
    assert "took 3.0 times the computation" in esl
