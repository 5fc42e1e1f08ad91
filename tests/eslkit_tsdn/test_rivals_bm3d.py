"""BM3D and what it is told: three estimates, the Anscombe transform against integration."""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from skimage.restoration import denoise_tv_chambolle

from eslkit.errors import InputError
from eslkit_tsdn.evaluation import evaluate, evaluate_input, test_pairs
from eslkit_tsdn.metrics import centre_crop, psnr
from eslkit_tsdn.noise import SONY_A7S2_ELD
from eslkit_tsdn.rivals import bm3d as bm3d_module
from eslkit_tsdn.rivals.anscombe import stabilised, unstabilised
from eslkit_tsdn.rivals.bm3d import BM3D, LicenceWarning
from eslkit_tsdn.rivals.noise_estimates import (
    PlaneNoise,
    blind_noise,
    modelled_noise,
    oracle_noise,
)
from tests.eslkit_tsdn.fakes import drawn_photos

needs_bm3d = pytest.mark.skipif(
    importlib.util.find_spec("bm3d") is None,
    reason="the extra `bm3d` (non-commercial licence) is not installed",
)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The licence was told already."""
    monkeypatch.setattr(bm3d_module, "_tell_once", lambda: None)


def mean_stabilised(rate: float, s: float) -> float:
    """The mean of the stabilised values of Poisson(rate) + N(0, s^2), by integration."""
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    counts = np.arange(0, int(rate + 12 * math.sqrt(rate) + 25))
    values = counts[:, None] + s * points[None]
    roots = 2 * np.sqrt(np.maximum(values + 3 / 8 + s**2, 0))
    inner = roots @ weights / math.sqrt(2 * math.pi)
    return float(stats.poisson.pmf(counts, rate) @ inner)


@pytest.mark.parametrize("s", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("rate", [1.0, 3.0, 10.0, 100.0])
def test_the_inverse_is_unbiased(rate: float, s: float) -> None:
    """The mean of what is stabilised goes back to the mean; the algebraic inverse falls short."""
    gain = 0.02
    mean = torch.tensor(mean_stabilised(rate, s), dtype=torch.float64)
    back = float(unstabilised(mean, gain=gain, sigma=s * gain)) / gain
    algebraic = float(mean**2 / 4 - 3 / 8 - s**2)
    assert abs(back - rate) < 0.031
    assert abs(algebraic - rate) > 5 * abs(back - rate)


def test_stabilised_noise_has_deviation_one() -> None:
    gain, sigma = 0.03, 0.05
    generator = torch.Generator().manual_seed(0)
    for y in (0.3, 0.6, 1.0):
        counts = torch.poisson(torch.full((200_000,), y / gain).double(), generator=generator)
        z = gain * counts + sigma * torch.randn(200_000, generator=generator).double()
        assert float(stabilised(z, gain=gain, sigma=sigma).std()) == pytest.approx(1, abs=0.02)


def test_blind_noise_finds_gaussian_noise_on_a_smooth_picture() -> None:
    ramp = torch.linspace(0.2, 0.8, 128).expand(4, 128, 128)
    noise = torch.randn(4, 128, 128, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([0.01, 0.05, 0.1, 0.2])
    found = blind_noise(ramp + scale[:, None, None] * noise)
    for estimate, true in zip(found, scale.tolist(), strict=True):
        assert estimate.gain == 0 and estimate.sigma == pytest.approx(true, rel=0.05)


def test_blind_noise_is_not_fooled_by_clipped_areas() -> None:
    noise = torch.randn(1, 128, 128, generator=torch.Generator().manual_seed(0))
    picture = 0.5 + 0.1 * noise
    picture[:, :100] = 0
    [found] = blind_noise(picture)
    assert found.sigma == pytest.approx(0.1, rel=0.08)
    assert blind_noise(torch.zeros(2, 16, 16)) == (PlaneNoise(0.0), PlaneNoise(0.0))


def test_the_oracle_knows_the_deviation_of_each_plane() -> None:
    pairs = test_pairs(drawn_photos(2), ratios=[100, 300])
    estimate = oracle_noise(pairs)
    for pair in pairs:
        residual = (pair.noisy - pair.clean)[0].double().flatten(1).numpy()
        assert [noise.sigma for noise in estimate(pair.noisy[0])] == pytest.approx(
            residual.std(axis=1).tolist()
        )
    with pytest.raises(InputError, match=r"oracle_noise was made for other pictures"):
        estimate(pairs[0].clean[0])


def test_the_oracle_of_cut_pictures_is_that_of_the_cut() -> None:
    pairs = test_pairs(drawn_photos(1), ratios=[100])
    cut = partial(centre_crop, size=16)
    noisy, clean = cut(pairs[0].noisy)[0], cut(pairs[0].clean)[0]
    found = oracle_noise(pairs, cut=cut)(noisy)
    assert found[0].sigma == pytest.approx(float((noisy - clean)[0].double().std(correction=0)))


def test_the_model_is_that_of_the_facts() -> None:
    """K' = ratio K / (16383 - 512), g' = ratio g / (16383 - 512)."""
    pairs = test_pairs(drawn_photos(1), ratios=[250], gain=2.0)
    [noise, *rest] = modelled_noise(pairs, gain=2.0)(pairs[0].noisy[0])
    g = math.exp(0.5407496 * math.log(2) + 1.2182371)
    assert noise.gain == pytest.approx(250 * 2 / 15871)
    assert noise.sigma == pytest.approx(250 * g / 15871, rel=1e-5)
    assert rest == [noise] * 3
    by_pair = modelled_noise(pairs, gain=lambda pair: SONY_A7S2_ELD.gain(2130))
    assert by_pair(pairs[0].noisy[0])[0].gain == pytest.approx(noise.gain, rel=2e-3)
    with pytest.raises(InputError, match="gain=0"):
        modelled_noise(pairs, gain=0.0)


@needs_bm3d
def test_it_takes_gaussian_noise_away_plane_by_plane(told: None) -> None:
    clean = drawn_photos(1, height=32, width=32)[0].packed[None]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    noisy = clean + torch.tensor([0.02, 0.05, 0.1, 0.1])[:, None, None] * noise
    method = BM3D()
    restored = method(noisy)
    assert restored.dtype == noisy.dtype and restored.shape == noisy.shape
    before, after = ((x - clean).square().mean(dim=(0, 2, 3)) for x in (noisy, restored))
    assert (after < before / 2).all()
    smoothed = torch.from_numpy(denoise_tv_chambolle(noisy[0].numpy(), weight=0.1, channel_axis=0))
    assert psnr(restored, clean) > psnr(smoothed[None], clean)
    assert torch.equal(method(noisy[:, 1:2]), restored[:, 1:2])  # the same bits, by itself


@needs_bm3d
def test_it_is_evaluated_like_a_network(told: None) -> None:
    pairs = test_pairs(drawn_photos(1, height=32, width=32), ratios=[100], gain=1.0)
    start = evaluate_input(pairs)["psnr_x100"]
    assert evaluate(BM3D(modelled_noise(pairs, gain=1.0)), pairs)["psnr_x100"] > start + 3
    assert evaluate(BM3D(oracle_noise(pairs), passes="hard"), pairs)["psnr_x100"] > start + 3


@needs_bm3d
def test_a_picture_without_noise_stays_as_it_is(told: None) -> None:
    flat = torch.full((1, 2, 16, 16), 0.25)
    assert torch.equal(BM3D()(flat), flat)


@needs_bm3d
def test_the_licence_is_told_once() -> None:
    bm3d_module._tell_once.cache_clear()
    noisy = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with pytest.warns(LicenceWarning, match="non-commercial use only"):
        BM3D()(noisy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BM3D()(noisy)


@needs_bm3d
@pytest.mark.parametrize(
    "noisy, message",
    [
        (torch.zeros(1, 4, 8, 32), r"16x16 pixels at least, and got \(1, 4, 8, 32\)"),
        (torch.zeros(4, 32, 32), r"got \(4, 32, 32\)"),
        (torch.full((1, 1, 16, 16), float("nan")), "NaN"),
    ],
)
def test_what_cannot_be_restored_is_refused(noisy: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BM3D()(noisy)
    with pytest.raises(InputError, match="passes='soft'"):
        BM3D(passes="soft")  # type: ignore[arg-type]


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(InputError, match=r"pip install 'eslkit\[bm3d\]'.*non-commercial"):
        BM3D()
