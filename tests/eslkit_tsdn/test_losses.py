"""L1 on every stage, against the formula written out."""

from __future__ import annotations

import pytest
import torch

from eslkit.errors import InputError
from eslkit_tsdn.losses import stage_l1


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
