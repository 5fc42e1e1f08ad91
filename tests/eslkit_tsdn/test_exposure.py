"""How much a photograph is amplified."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eslkit.errors import InputError
from eslkit_tsdn.exposure import MAX_RATIO, TARGET_MEAN, check_ratio, choose_ratio
from eslkit_tsdn.raw import RawImage
from tests.eslkit_tsdn.test_dng import raw_of


def photograph(mean: float, *, noise: float = 0.0, lamp: float = 0.0) -> RawImage:
    """A flat picture of so much of white, with noise in DN and a part that is a lamp."""
    rng = np.random.default_rng(0)
    levels = 512 + mean * (16383 - 512) + noise * rng.standard_normal((160, 240))
    levels[: round(160 * lamp)] = 8000
    return raw_of(np.clip(np.round(levels), 0, 16383).astype(np.uint16))


@pytest.mark.parametrize("ratio", [2.0, 10.0, 100.0, 250.0])
def test_a_dark_picture_becomes_as_bright_as_a_well_exposed_one(ratio: float) -> None:
    # Noise far above the signal must not count as light.
    found = choose_ratio(photograph(TARGET_MEAN / ratio, noise=20.0))
    assert found.ratio == pytest.approx(ratio, rel=0.02)
    assert f"to {TARGET_MEAN:.1%}" in found.reason


def test_what_is_bright_enough_is_left() -> None:
    for mean in (TARGET_MEAN, 0.4, 1.0):
        assert choose_ratio(photograph(mean)) == (
            1.0,
            f"its mean is {mean:.2%} of white: bright enough",
        )


def test_nothing_is_amplified_by_more_than_was_trained() -> None:
    for mean in (0.0, TARGET_MEAN / 5000):
        found = choose_ratio(photograph(mean, noise=5.0))
        assert found.ratio == MAX_RATIO and "more than that is noise" in found.reason


def test_lamps_are_not_cut_beyond_one_percent() -> None:
    white = (8000 - 512) / (16383 - 512)
    assert choose_ratio(photograph(0.01, lamp=0.1)).ratio == pytest.approx(1 / white, rel=0.01)
    assert (
        choose_ratio(photograph(0.01, lamp=0.1)).reason == "so far that 99 % of it stay below white"
    )
    few = replace(photograph(0.01), mosaic=photograph(0.01, lamp=0.006).mosaic)
    assert choose_ratio(few).ratio > 5


def test_ratios_out_of_range_are_refused() -> None:
    assert check_ratio(300) == 300.0
    for ratio in (0.5, 0, -1, 301, float("nan")):
        with pytest.raises(InputError, match="expected 1"):
            check_ratio(ratio)
