"""L1 on every stage, against the formula written out."""

from __future__ import annotations

import pytest
import torch

from eslkit.errors import InputError
from eslkit_tsdn.data.source import NoisyBatch
from eslkit_tsdn.losses import (
    all_stages_l1,
    cbdnet_criterion,
    cbdnet_loss,
    last_stage_l1,
    one_stage_l1,
    stage_l1,
)
from eslkit_tsdn.models import TSDN, CBDNet, UNet
from tests.tolerances import REFERENCE


def images(num: int) -> list[torch.Tensor]:
    return [torch.rand(2, 4, 6, 8, dtype=torch.float64) for _ in range(num)]


def test_the_sum_of_the_mean_absolute_errors():
    first, second, target = images(3)
    expected = 0.25 * (first - target).abs().mean() + 2.0 * (second - target).abs().mean()
    torch.testing.assert_close(stage_l1((first, second), target, weights=(0.25, 2.0)), expected)


def test_all_weights_are_one_when_left_out():
    *stages, target = images(4)
    expected = stage_l1(stages, target, weights=(1, 1, 1))
    torch.testing.assert_close(stage_l1(stages, target), expected)


def test_one_image_is_one_stage():
    image, target = images(2)
    torch.testing.assert_close(stage_l1(image, target), (image - target).abs().mean())


def test_every_stage_gets_a_gradient():
    first, second, target = images(3)
    first.requires_grad_()
    second.requires_grad_()
    stage_l1((first, second), target).backward()
    assert first.grad is not None
    assert second.grad is not None
    torch.testing.assert_close(first.grad, (first - target).sign().detach() / target.numel())


def test_another_number_of_weights_is_refused():
    first, second, target = images(3)
    with pytest.raises(InputError, match=r"1 factors.*2 images"):
        stage_l1((first, second), target, weights=(1.0,))


def batch_of(size: int = 8) -> NoisyBatch:
    noisy, clean = torch.rand(2, 2, 4, size, size).double()
    return NoisyBatch(noisy, clean, torch.full((2,), 100.0))


def test_tsdn2_minimizes_its_last_image_alone():
    network, batch = TSDN((2, 3)).double().train(), batch_of()
    second = network(batch.noisy)[1]
    loss = last_stage_l1(network, batch)
    REFERENCE.check(loss.double(), (second.float() - batch.clean).abs().mean())
    REFERENCE.check(loss, all_stages_l1(network, batch, weights=(0.0, 1.0)))
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    single = UNet((2, 3)).double()
    assert torch.equal(last_stage_l1(single, batch), all_stages_l1(single, batch))


def test_tsdn3_trains_one_stage_behind_the_finished_ones():
    network, batch = TSDN((2, 3), stages=3).double().train(), batch_of()
    images = network(batch.noisy)
    for stage, image in enumerate(images):
        network.zero_grad()
        loss = one_stage_l1(network, batch, stage=stage)
        REFERENCE.check(loss.double(), (image.float() - batch.clean).abs().mean())
        loss.backward()
        for i, module in enumerate(network.stages):
            assert all((p.grad is not None) == (i == stage) for p in module.parameters())


@pytest.mark.parametrize(
    "network, stage", [(TSDN((2, 3)), 2), (TSDN((2, 3)), -1), (UNet((2, 3)), 0)]
)
def test_a_stage_that_is_not_there_is_refused(network, stage):
    with pytest.raises(InputError, match=rf"stage={stage}: this \w+ has [02] stages"):
        one_stage_l1(network, batch_of(), stage=stage)


def written_out(noise, image, target, sigma, over):
    """CBDNet's loss, pixel by pixel."""
    total = 0.0
    for index in range(noise.numel()):
        error = float(noise.flatten()[index] - sigma.flatten()[index])
        total += (over if error > 0 else 1 - over) * error**2
    vertical = (noise[:, :, 1:] - noise[:, :, :-1]) ** 2
    horizontal = (noise[:, :, :, 1:] - noise[:, :, :, :-1]) ** 2
    return (
        ((image - target) ** 2).mean()
        + 0.5 * total / noise.numel()
        + 0.05 * (vertical.mean() + horizontal.mean())
    )


@pytest.mark.parametrize("over", [0.3, 0.7])
def test_cbdnet_s_loss_is_its_formula(over):
    noise, image, target, sigma = (each.float() for each in images(4))
    expected = written_out(noise, image, target, sigma, over)
    torch.testing.assert_close(
        cbdnet_criterion((noise, image), target, sigma=sigma, over=over), expected
    )


def test_under_estimates_of_the_noise_cost_more_and_in_the_port_less():
    zero = torch.zeros(1, 4, 6, 8)
    half = torch.full_like(zero, 0.5)
    low = float(cbdnet_criterion((half, zero), zero, sigma=2 * half))
    high = float(cbdnet_criterion((3 * half, zero), zero, sigma=2 * half))
    assert (low, high) == pytest.approx((0.5 * 0.7 * 0.25, 0.5 * 0.3 * 0.25))
    port = float(cbdnet_criterion((3 * half, zero), zero, sigma=2 * half, over=0.7))
    assert port == pytest.approx(low)


def test_without_the_true_noise_its_term_is_left_out():
    network, batch = CBDNet((2, 3, 4), estimator_width=2), batch_of()
    batch = NoisyBatch(batch.noisy.float(), batch.clean.float(), batch.ratio)
    noise, image = (output.detach() for output in network.train()(batch.noisy))
    expected = written_out(noise, image, batch.clean, noise, 0.3)
    loss = cbdnet_loss(network, batch)
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_what_is_no_map_and_image_is_refused():
    with pytest.raises(InputError, match=r"map and image, got 1 tensor"):
        cbdnet_loss(UNet((2, 3)), NoisyBatch(*torch.rand(2, 1, 4, 8, 8), torch.ones(1)))
    noise, image, target, _ = (each.float() for each in images(4))
    with pytest.raises(InputError, match=r"sigma has the shape \(2, 1, 6, 8\)"):
        cbdnet_criterion((noise, image), target, sigma=noise[:, :1])
