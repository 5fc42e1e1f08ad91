"""The noise model against its formulas: moments, distributions, laws, seeds (facts, 10)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from eslkit.errors import InputError
from eslkit_tsdn.calibration import (
    SONY_A7S2_ELD,
    SONY_A7S2_PMN,
    CameraNoise,
    LogLinear,
    LogTable,
)
from eslkit_tsdn.calibration_eld import CAMERAS as ALL_CAMERAS
from eslkit_tsdn.noise import NoiseLevel, add_noise, draw_levels, sample_noisy, tukey_lambda
from eslkit_tsdn.raw import pack
from tests.tolerances import REFERENCE

CAMERAS = [SONY_A7S2_ELD, SONY_A7S2_PMN]
ISO_AND_SCALES = [
    # ISO, K, Tukey-lambda scale, row scale, to the digits that facts.md section 10 states
    (1600, 1.530, 3.228, 0.989),
    (2000, 1.913, 1.436, 0.331),
    (6400, 6.120, 3.450, 0.722),
    (25600, 24.48, 12.18, 2.276),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def level(batch: int = 1, **chosen: float) -> NoiseLevel:
    """A level with everything off but what is chosen."""
    one = torch.ones(batch, dtype=torch.float64)
    off = {"gain": 0.0, "read_scale": 0.0, "read_shape": 0.1, "row_scale": 0.0, "quantum": 0.0}
    return NoiseLevel(
        color_bias=torch.zeros(batch, 4, dtype=torch.float64),
        **{name: one * chosen.get(name, value) for name, value in off.items()},
    )


def flat(value: float, *, size: int = 200) -> torch.Tensor:
    return torch.full((1, 4, size, size), value, dtype=torch.float64)


def within(actual: float, expected: float, *, error: float) -> None:
    """Five standard errors: one seed in a million fails where the law holds."""
    assert abs(actual - expected) < 5 * error, f"{actual} is not {expected} +- {error}"


@pytest.mark.parametrize("gain, signal", [(0.1, 0.05), (1.5, 20.0), (6.0, 3.0), (24.0, 158.0)])
def test_shot_noise_is_poisson_times_gain(gain: float, signal: float) -> None:
    clean = flat(signal)
    noisy = add_noise(clean, levels=level(gain=gain), generator=seeded())
    counts = noisy / gain
    assert torch.equal(counts.round(), counts) or (counts - counts.round()).abs().max() < 1e-9
    n, rate = clean.numel(), signal / gain
    within(noisy.mean().item(), signal, error=gain * math.sqrt(rate / n))
    error = gain**2 * math.sqrt((rate + 2 * rate**2) / n)
    within(noisy.var().item(), gain * signal, error=error)
    zeros = (counts.round() == 0).double().mean().item()
    within(zeros, math.exp(-rate), error=math.sqrt(0.25 / n))


@given(st.floats(-0.3, 0.3), st.floats(1e-6, 1 - 1e-6))
def test_tukey_lambda_is_its_quantile_function(shape: float, p: float) -> None:
    # scipy takes the plain powers, which lose digits near 0; there the limit stands in.
    if 0 < abs(shape) < 1e-4:
        shape = 0.0
    quantile = tukey_lambda(torch.tensor(p, dtype=torch.float64), shape=shape)
    expected = scipy.stats.tukeylambda.ppf(p, shape) if shape else scipy.stats.logistic.ppf(p)
    REFERENCE.check(quantile, torch.tensor(float(expected), dtype=torch.float64))


def test_tukey_lambda_goes_smoothly_through_the_logistic_limit() -> None:
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    for shape in (1e-9, -1e-9, 1e-13):
        torch.testing.assert_close(
            tukey_lambda(p, shape=shape), tukey_lambda(p, shape=0.0), atol=1e-7, rtol=1e-7
        )
    edges = tukey_lambda(torch.tensor([0.0, 1.0]), shape=-0.1429)
    assert edges.isfinite().all()
    assert edges[0] < -60
    assert edges[1] == -edges[0]


@pytest.mark.parametrize("shape", [-0.1429, -0.0571, 0.0, 0.0429, 0.1286])
def test_read_noise_follows_tukey_lambda(shape: float) -> None:
    levels = level(read_scale=2.5, read_shape=shape)
    noise = add_noise(flat(0.0, size=100), levels=levels, generator=seeded())
    law = scipy.stats.tukeylambda(shape) if shape else scipy.stats.logistic()
    test = scipy.stats.kstest(noise.ravel().numpy() / 2.5, law.cdf)
    assert test.pvalue > 1e-4


def test_row_noise_is_one_value_per_mosaic_row() -> None:
    noise = add_noise(flat(0.0, size=400), levels=level(row_scale=0.7), generator=seeded())[0]
    # Back on the mosaic (RGGB), every row is constant, and no two rows are alike.
    mosaic = torch.empty(800, 800, dtype=torch.float64)
    mosaic[0::2, 0::2], mosaic[0::2, 1::2] = noise[0], noise[1]
    mosaic[1::2, 1::2], mosaic[1::2, 0::2] = noise[2], noise[3]
    assert torch.equal(mosaic, mosaic[:, :1].expand_as(mosaic))
    rows = mosaic[:, 0]
    assert len(rows.unique()) == 800
    within(rows.std().item(), 0.7, error=0.7 / math.sqrt(2 * 800))
    assert scipy.stats.kstest(rows.numpy() / 0.7, "norm").pvalue > 1e-4


def test_planes_that_share_a_mosaic_row_do_so_in_every_phase() -> None:
    rows = np.arange(6)[:, None] * np.ones((1, 8))
    for pattern in (((0, 1), (3, 2)), ((1, 0), (2, 3)), ((3, 2), (0, 1)), ((2, 3), (1, 0))):
        planes = pack(rows, pattern)
        assert np.array_equal(planes[0], planes[1])
        assert np.array_equal(planes[2], planes[3])
        assert not np.array_equal(planes[0], planes[2])


def test_quantisation_noise_is_uniform_over_one_step() -> None:
    noise = add_noise(flat(0.0), levels=level(quantum=1.0), generator=seeded())
    assert noise.abs().max() <= 0.5
    test = scipy.stats.kstest(noise.ravel().numpy(), scipy.stats.uniform(-0.5, 1).cdf)
    assert test.pvalue > 1e-4


def test_colour_bias_is_added_per_plane() -> None:
    levels = level()
    levels.color_bias[0] = torch.tensor([1.0, -2.0, 3.0, 0.5])
    noisy = add_noise(flat(7.0, size=2), levels=levels, generator=seeded())
    assert torch.equal(noisy[0].amin((1, 2)), torch.tensor([8.0, 5.0, 10.0, 7.5]).double())
    assert torch.equal(noisy[0].amax((1, 2)), noisy[0].amin((1, 2)))


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: camera.name)
def test_all_variances_add_up(camera: CameraNoise) -> None:
    """At a fixed gain the whole model has the variance of its parts, scaled by the ratio."""
    ratio, gain, x = 200.0, 2.0, 0.6
    clean = torch.full((1, 4, 300, 300), x, dtype=torch.float64)
    generator = seeded(5)
    levels = draw_levels(
        camera, num_images=1, generator=generator.clone_state(), K=gain, like=clean
    )
    noisy = sample_noisy(clean, ratio, camera=camera, generator=generator, K=gain, clip=False)
    scale = ratio / camera.span
    shape = levels.read_shape.item()
    unit = scipy.stats.tukeylambda.var(shape) if shape else math.pi**2 / 3
    read = levels.read_scale.item() ** 2 * float(unit)
    row = levels.row_scale.item() ** 2
    expected = (gain * x / scale + read + row + 1 / 12) * scale**2
    for plane, bias in zip(noisy[0], levels.color_bias[0], strict=True):
        within(plane.var().item(), expected, error=expected * 0.01)
        # The mean of 300 rows' values is what moves most.
        error = scale * math.sqrt(row / 300 + (expected / scale**2) / plane.numel())
        within(plane.mean().item(), x + bias.item() * scale, error=error)


def test_log_linear_laws_are_the_published_ones() -> None:
    assert SONY_A7S2_ELD.read == LogLinear(slope=0.4621050, bias=0.5657147, sigma=0.2633712)
    assert SONY_A7S2_ELD.row == LogLinear(slope=0.5275360, bias=-0.5917003, sigma=0.2942881)
    assert (SONY_A7S2_ELD.k_min, SONY_A7S2_ELD.k_max) == pytest.approx((0.0939161, 6.0106285))
    assert isinstance(SONY_A7S2_ELD.gaussian, LogLinear)
    assert SONY_A7S2_ELD.gaussian.slope == pytest.approx(0.5407496)
    assert (SONY_A7S2_ELD.black, SONY_A7S2_ELD.white) == (512.0, 16383.0)
    assert len(SONY_A7S2_ELD.shapes) == len(SONY_A7S2_ELD.color_bias) == 18
    assert SONY_A7S2_ELD.shapes[:6] == pytest.approx(
        (8 / 70, 9 / 70, 4 / 70, 3 / 70, 0, 0), abs=1e-6
    )
    biases = np.array(SONY_A7S2_ELD.color_bias)
    assert biases.min() == pytest.approx(-1.6019)
    assert biases.max() == pytest.approx(4.2958)


@pytest.mark.parametrize("iso, gain, read, row", ISO_AND_SCALES)
def test_the_table_of_pmn_is_the_published_one(
    iso: int, gain: float, read: float, row: float
) -> None:
    log_k = torch.tensor([0.0009563 * iso], dtype=torch.float64).log()
    assert log_k.exp().item() == pytest.approx(gain, abs=0.005)
    assert SONY_A7S2_PMN.read.moments(log_k)[0].exp().item() == pytest.approx(read, abs=0.006)
    assert SONY_A7S2_PMN.row.moments(log_k)[0].exp().item() == pytest.approx(row, abs=0.001)
    assert SONY_A7S2_PMN.gain(iso) == pytest.approx(0.0009546 * iso - 0.00193)


def test_tables_are_interpolated_in_logarithms_and_end_flat() -> None:
    table = LogTable(gains=(1.0, 4.0), scales=(10.0, 1000.0), spreads=(1.0, 10.0))
    mean, spread = table.moments(torch.tensor([0.5, 1.0, 2.0, 4.0, 9.0]).log().double())
    expected = torch.tensor([10.0, 10.0, 100.0, 1000.0, 1000.0]).log().double()
    torch.testing.assert_close(mean, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(spread[[0, 4]], torch.tensor([0.1, 0.01]).double())


def test_drawn_levels_follow_the_laws() -> None:
    n = 20_000
    drawn = draw_levels(
        SONY_A7S2_ELD, num_images=n, generator=seeded(), like=torch.empty(n, dtype=torch.float64)
    )
    log_k = drawn.gain.log()
    low, high = math.log(SONY_A7S2_ELD.k_min), math.log(SONY_A7S2_ELD.k_max)
    assert scipy.stats.kstest(log_k.numpy(), scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-4
    for law, scale in (
        (SONY_A7S2_ELD.read, drawn.read_scale),
        (SONY_A7S2_ELD.row, drawn.row_scale),
    ):
        fit = scipy.stats.linregress(log_k.numpy(), scale.log().numpy())
        assert isinstance(law, LogLinear)
        within(fit.slope, law.slope, error=fit.stderr)
        within(fit.intercept, law.bias, error=fit.intercept_stderr)
        left = (scale.log() - law.slope * log_k - law.bias) / law.sigma
        assert scipy.stats.kstest(left.numpy(), "norm").pvalue > 1e-4
    # Shape and colour bias come from one and the same of the 18 calibrations, all equally often.
    pairs = torch.cat([drawn.read_shape[:, None], drawn.color_bias], 1)
    published = torch.tensor(
        [(s, *b) for s, b in zip(SONY_A7S2_ELD.shapes, SONY_A7S2_ELD.color_bias, strict=True)],
        dtype=torch.float64,
    )
    index = torch.cdist(pairs, published).argmin(1)
    assert torch.equal(published[index], pairs)
    counts = torch.bincount(index, minlength=18).numpy()
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_scales_of_a_table_are_drawn_with_its_spread() -> None:
    n, iso = 20_000, 6400
    drawn = draw_levels(SONY_A7S2_PMN, num_images=n, generator=seeded(), K=0.0009563 * iso)
    for scale, mean, spread in (
        (drawn.read_scale, 3.4503, 0.08226),
        (drawn.row_scale, 0.721879, 0.06423),
    ):
        within(scale.log().mean().item(), math.log(mean), error=spread / mean / math.sqrt(n))
        within(scale.log().std().item(), spread / mean, error=spread / mean / math.sqrt(2 * n))
    assert drawn.read_shape.unique().tolist() == pytest.approx([-0.075171])
    assert not drawn.color_bias.any()


ELD_FILES = Path(__file__).parents[3] / "shared" / "data" / "camera_params" / "ELD"


@pytest.mark.parametrize(
    "name", ["SonyA7S2", "CanonEOS5D4", "CanonEOS70D", "CanonEOS700D", "NikonD850"]
)
def test_the_numbers_of_every_camera_are_those_of_the_published_files(name: str) -> None:
    path = ELD_FILES / f"{name}_params.npy"
    if not path.is_file():
        pytest.skip(f"no file {path}")
    published = np.load(path, allow_pickle=True).item()
    camera = ALL_CAMERAS[f"{name} (ELD)"]
    assert camera.k_min == pytest.approx(published["Kmin"], rel=1e-6)
    assert camera.k_max == pytest.approx(published["Kmax"], rel=1e-6)
    laws = {"G_scale": camera.read, "R_scale": camera.row, "g_scale": camera.gaussian}
    for key, law in laws.items():
        numbers = published["Profile-1"][key]
        assert isinstance(law, LogLinear)
        assert (law.slope, law.bias, law.sigma) == pytest.approx(
            (numbers["slope"], numbers["bias"], numbers["sigma"]), rel=1e-6
        )
    assert camera.shapes == pytest.approx(published["G_shape"].tolist(), abs=1e-7)
    assert np.array(camera.color_bias) == pytest.approx(published["color_bias"], abs=5.1e-5)
    clean = torch.rand(1, 4, 8, 8, generator=seeded(1))
    assert sample_noisy(clean, 100.0, camera=camera, generator=seeded()).isfinite().all()
    if name != "SonyA7S2":
        with pytest.raises(InputError, match="does not tell K from ISO"):
            camera.gain(800)


def test_the_amplified_picture_is_centred_on_the_clean_one() -> None:
    clean = torch.rand(4, 4, 64, 64, generator=seeded(1)) * 0.3 + 0.3
    noisy = sample_noisy(clean, 100.0, camera=SONY_A7S2_PMN, generator=seeded(), K=0.5, clip=False)
    assert noisy.mean().item() == pytest.approx(clean.mean().item(), abs=2e-3)


def test_ratio_one_at_a_small_gain_is_nearly_clean() -> None:
    clean = torch.rand(2, 4, 32, 32, generator=seeded(1))
    noisy = sample_noisy(clean, 1.0, generator=seeded(), K=0.1)
    assert (noisy - clean).abs().max() < 0.02


def test_clipping_is_that_of_the_protocol() -> None:
    clean = torch.rand(3, 4, 32, 32, generator=seeded(1))
    ratio = torch.tensor([100.0, 250.0, 300.0])
    free = sample_noisy(clean, ratio, generator=seeded(), clip=False)
    clipped = sample_noisy(clean, ratio, generator=seeded())
    # Facts 11.2: normalised and cut to [0, 1]; 11.3: amplified, and cut again.
    amplification = ratio[:, None, None, None]
    expected = ((free / amplification).clamp(0, 1) * amplification).clamp(0, 1)
    torch.testing.assert_close(clipped, expected)
    assert free.min() < 0 < 1 < free.max()
    assert (clipped.min(), clipped.max()) == (0.0, 1.0)


def test_noise_grows_with_the_ratio() -> None:
    clean = torch.full((3, 4, 64, 64), 0.2)
    noisy = sample_noisy(clean, torch.tensor([1.0, 30.0, 300.0]), generator=seeded(), K=1.0)
    spread = noisy.std((1, 2, 3))
    assert spread[0] < spread[1] < spread[2]


@given(st.integers(0, 2**31), st.sampled_from(CAMERAS))
def test_same_seed_same_bits_and_inputs_untouched(seed: int, camera: CameraNoise) -> None:
    clean = torch.rand(2, 4, 6, 5, generator=seeded(1))
    before, state = clean.clone(), torch.get_rng_state()
    first = sample_noisy(clean, 250.0, camera=camera, generator=seeded(seed))
    assert torch.equal(first, sample_noisy(clean, 250.0, camera=camera, generator=seeded(seed)))
    assert not torch.equal(
        first, sample_noisy(clean, 250.0, camera=camera, generator=seeded(seed + 1))
    )
    assert first.shape == clean.shape
    assert first.dtype == clean.dtype
    assert torch.equal(clean, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_black_stays_finite_and_an_empty_batch_empty() -> None:
    assert sample_noisy(torch.zeros(2, 4, 8, 8), 300.0, generator=seeded()).isfinite().all()
    assert sample_noisy(torch.zeros(0, 4, 8, 8), 300.0, generator=seeded()).shape == (0, 4, 8, 8)


@pytest.mark.parametrize(
    "clean, ratio, gain, message",
    [
        (torch.zeros(4, 8, 8), 100.0, None, r"shape \(B, 4, h, w\)"),
        (torch.zeros(1, 3, 8, 8), 100.0, None, r"shape \(B, 4, h, w\)"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.int64), 100.0, None, "floating point"),
        (torch.zeros(1, 4, 8, 8), 0.0, None, "ratio=0.0 must be positive"),
        (torch.zeros(1, 4, 8, 8), math.nan, None, "must be positive and finite"),
        (torch.zeros(2, 4, 8, 8), torch.ones(3), None, r"ratio has the shape \(3,\)"),
        (torch.zeros(1, 4, 8, 8), 100.0, -1.0, "K=-1.0 must be positive"),
    ],
)
def test_wrong_arguments_are_named(
    clean: torch.Tensor, ratio: torch.Tensor | float, gain: float | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        sample_noisy(clean, ratio, generator=seeded(), K=gain)


def test_gain_from_iso() -> None:
    assert SONY_A7S2_ELD.gain(100) == pytest.approx(SONY_A7S2_ELD.k_min)
    assert SONY_A7S2_ELD.gain(6400) == pytest.approx(SONY_A7S2_ELD.k_max)
    with pytest.raises(InputError, match="ISO 1 is below"):
        SONY_A7S2_PMN.gain(1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_the_model_runs_on_an_accelerator() -> None:
    clean = torch.full((2, 4, 64, 64), 0.4, device="cuda")
    with pytest.raises(InputError, match="the generator is on cpu"):
        sample_noisy(clean, 100.0, generator=seeded())
    on_device = torch.Generator("cuda").manual_seed(0)
    noisy = sample_noisy(clean, 100.0, camera=SONY_A7S2_PMN, generator=on_device, K=0.5)
    assert noisy.device.type == "cuda"
    assert noisy.mean().item() == pytest.approx(0.4, abs=0.01)
