"""Metrics against scikit-image, and the protocols against a step-by-step reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from eslkit.errors import InputError
from eslkit_tsdn.metrics import (
    PROTOCOLS,
    centre_crop,
    eld_protocol,
    illuminance_correct,
    plain_protocol,
    psnr,
    residual_noise,
    ssim,
)
from tests.tolerances import REFERENCE


def pictures(
    seed: int, *, batch: int = 2, channels: int = 4, height: int = 20, width: int = 17
) -> tuple[torch.Tensor, torch.Tensor]:
    """A target with a saturated part, and a noisy prediction that leaves [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, channels, height, width)
    ramp = torch.linspace(0, 1.3, width, dtype=torch.float64)
    target = (torch.rand(shape, generator=generator, dtype=torch.float64) * ramp).clamp(0, 1)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return target * 0.8 + 0.05 * noise, target


def as_images(batch: torch.Tensor) -> list[np.ndarray]:
    """H x W x C times 255, the form that the field hands to scikit-image."""
    return [255 * picture.permute(1, 2, 0).numpy() for picture in batch]


def reference(pred: torch.Tensor, target: torch.Tensor) -> tuple[list[float], list[float]]:
    pairs = list(zip(as_images(pred), as_images(target), strict=True))
    ratios = [peak_signal_noise_ratio(t, p, data_range=255) for p, t in pairs]
    likeness = [structural_similarity(t, p, data_range=255, channel_axis=-1) for p, t in pairs]
    return ratios, likeness


def eld_reference(pred: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Facts 11.5 to 11.8 on one H x W x C picture, loop and all, written from the text."""
    pred = np.minimum(np.maximum(pred, 0), 1)
    top = bottom = 0.0
    for p, t in zip(pred.ravel(), target.ravel(), strict=True):
        if t != 1:
            top, bottom = top + p * t, bottom + p * p
    pred = np.clip(top / bottom * pred * 255, 0, 255)
    target = np.clip(target * 255, 0, 255)
    error = np.mean((pred - target) ** 2)
    channels = [
        structural_similarity(target[..., c], pred[..., c], data_range=255)
        for c in range(target.shape[-1])
    ]
    return 10 * math.log10(255**2 / error), float(np.mean(channels))


@given(st.integers(0, 1000), st.integers(7, 30), st.integers(7, 30), st.integers(1, 5))
def test_psnr_and_ssim_are_those_of_scikit_image(
    seed: int, height: int, width: int, channels: int
) -> None:
    pred, target = pictures(seed, channels=channels, height=height, width=width)
    ratios, likeness = reference(pred, target)
    REFERENCE.check(psnr(pred, target), torch.tensor(ratios, dtype=torch.float64))
    REFERENCE.check(ssim(pred, target), torch.tensor(likeness, dtype=torch.float64))


@given(st.integers(0, 1000))
def test_eld_protocol_is_the_one_in_the_facts(seed: int) -> None:
    pred, target = pictures(seed)
    ours = eld_protocol(pred, target)
    for index in range(len(pred)):
        expected = eld_reference(
            pred[index].permute(1, 2, 0).numpy(), target[index].permute(1, 2, 0).numpy()
        )
        assert ours["psnr"][index].item() == pytest.approx(expected[0], rel=1e-10)
        assert ours["ssim"][index].item() == pytest.approx(expected[1], rel=1e-10)


def test_single_precision_input_agrees_to_a_millionth() -> None:
    pred, target = pictures(0, batch=1, height=128, width=128)
    ratios, likeness = reference(pred, target)
    assert psnr(pred.float(), target.float()).item() == pytest.approx(ratios[0], abs=1e-5)
    assert ssim(pred.float(), target.float()).item() == pytest.approx(likeness[0], abs=1e-6)
    assert ssim(pred.float(), target.float()).dtype == torch.float64


def test_the_range_is_a_unit() -> None:
    pred, target = pictures(0)
    REFERENCE.check(psnr(255 * pred, 255 * target, data_range=255), psnr(pred, target))
    REFERENCE.check(ssim(255 * pred, 255 * target, data_range=255), ssim(pred, target))


def test_every_picture_counts_for_itself() -> None:
    pred, target = pictures(0, batch=3)
    for measure in (psnr, ssim):
        alone = [measure(pred[i : i + 1], target[i : i + 1]) for i in range(3)]
        REFERENCE.check(measure(pred, target), torch.cat(alone))
        assert measure(pred[:0], target[:0]).shape == (0,)


def test_equal_pictures() -> None:
    _, target = pictures(0)
    assert (psnr(target, target) == math.inf).all()
    REFERENCE.check(ssim(target, target), torch.ones(2, dtype=torch.float64))
    assert (eld_protocol(target, target)["psnr"] > 200).all()


@given(st.floats(0.1, 1.0))
def test_eld_protocol_does_not_see_brightness_and_plain_does(factor: float) -> None:
    _, target = pictures(0)
    target = target * 0.99  # nothing saturated
    assert (eld_protocol(factor * target, target)["psnr"] > 200).all()
    if factor < 0.9:
        assert (plain_protocol(factor * target, target)["psnr"] < 40).all()


def test_saturated_elements_do_not_count_for_the_factor() -> None:
    target = torch.full((1, 4, 8, 8), 0.5)
    target[:, :, :, :3] = 1.0
    pred = torch.full_like(target, 0.25)
    pred[:, :, :, :3] = 0.9
    corrected = illuminance_correct(pred, target)
    assert corrected[..., 3:].unique().item() == pytest.approx(0.5)
    assert corrected[..., :3].unique().item() == pytest.approx(1.8)


def test_a_black_or_saturated_picture_has_no_factor() -> None:
    target = torch.rand(1, 4, 8, 8)
    black = torch.zeros_like(target)
    assert torch.equal(illuminance_correct(black, target), black.double())
    assert torch.equal(illuminance_correct(target, torch.ones_like(target)), target.double())
    assert eld_protocol(black, target)["psnr"].isfinite().all()


def test_clipping() -> None:
    _, target = pictures(0)
    outside = torch.where(target == 1, 1.5, target)
    assert (plain_protocol(outside, target)["psnr"] == math.inf).all()
    assert (psnr(outside, target) < 40).all()


def test_centre_crop_is_where_eld_cuts() -> None:
    rows = torch.arange(1424.0)[:, None].expand(1424, 2128)
    columns = torch.arange(2128.0).expand(1424, 2128)
    crop = centre_crop(torch.stack([rows, columns]))
    assert crop.shape == (2, 512, 512)
    assert crop[:, 0, 0].tolist() == [456, 808]
    assert centre_crop(torch.zeros(4, 100, 600)).shape == (4, 100, 512)


def test_protocols_by_name() -> None:
    pred, target = pictures(0, batch=1, height=520, width=516)
    eld, whole, plain = (PROTOCOLS[name] for name in ("eld-crop", "eld-full", "plain"))
    assert torch.equal(eld.cut(pred), pred[..., 4:516, 2:514])
    assert whole.cut(pred) is pred and plain.cut(pred) is pred
    for protocol in (eld, whole):
        assert protocol.compare(pred, target)["psnr"] == eld_protocol(pred, target)["psnr"]
    assert plain.compare(pred, target)["psnr"] == plain_protocol(pred, target)["psnr"]
    assert [*PROTOCOLS] == [protocol.name for protocol in PROTOCOLS.values()]


def test_residual_noise() -> None:
    pred, target = pictures(0)
    left = residual_noise(pred, target)
    for index in range(2):
        difference = (pred[index] - target[index]).numpy()
        assert left["mean"][index].item() == pytest.approx(difference.mean())
        assert left["std"][index].item() == pytest.approx(difference.std())


def test_wrong_shapes_are_named() -> None:
    one = torch.zeros(1, 4, 8, 8)
    with pytest.raises(InputError, match="two batches of one shape"):
        psnr(one, one[0])
    with pytest.raises(InputError, match="two batches of one shape"):
        eld_protocol(one[0], one[0])
    with pytest.raises(InputError, match="7x7 pixels at least"):
        ssim(one[..., :6], one[..., :6])
