"""What networks are measured on, and how."""

from __future__ import annotations

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

from eslkit.errors import InputError
from eslkit_tsdn.evaluation import evaluate, evaluate_input, restore, test_pairs
from eslkit_tsdn.models import TSDN
from tests.eslkit_tsdn.fakes import drawn_photos


def test_pairs_are_the_same_whoever_asks():
    photos = drawn_photos(2)
    pairs = test_pairs(photos, ratios=(100, 300), seed=1, gain=4.0)
    torch.manual_seed(99)
    alone = test_pairs(photos[1:], ratios=(300,), seed=1, gain=4.0)
    assert [(pair.ratio, pair.photo.name) for pair in pairs] == [
        (100, "drawn-0"),
        (100, "drawn-1"),
        (300, "drawn-0"),
        (300, "drawn-1"),
    ]
    assert torch.equal(pairs[3].noisy, alone[0].noisy)
    assert not torch.equal(pairs[3].noisy, test_pairs(photos, seed=2, gain=4.0)[-1].noisy)


def test_the_centre_is_used_and_can_be_halved():
    (photo,) = drawn_photos(1, height=43, width=70)
    (pair,) = test_pairs([photo], ratios=(100,), largest=50, multiple=8)
    assert torch.equal(pair.clean[0], photo.packed[:, 1:41, 11:59])
    assert pair.noisy.shape == (1, 4, 40, 48)


def test_what_cannot_be_tested_on_is_refused():
    with pytest.raises(InputError, match="no photograph to test on"):
        test_pairs([])
    with pytest.raises(InputError, match=r"drawn-0 has 40x48 packed pixels.*64 at least"):
        test_pairs(drawn_photos(1), multiple=64)


class Brighten(nn.Module):
    """Answers with the input times a learnt factor, two images in training."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return (x, x * self.factor) if self.training else x * self.factor


def test_the_input_is_measured_as_it_is_and_the_output_with_eld_s_correction():
    pairs = test_pairs(drawn_photos(2), ratios=(100, 250), gain=4.0)
    plain = evaluate_input(pairs)
    assert set(plain) == {"psnr_x100", "ssim_x100", "psnr_x250", "ssim_x250"}
    expected = [
        peak_signal_noise_ratio(pair.clean.numpy(), pair.noisy.numpy(), data_range=1.0)
        for pair in pairs[:2]
    ]
    assert plain["psnr_x100"] == pytest.approx(sum(expected) / 2, abs=1e-4)
    half, full = evaluate(Brighten(0.25), pairs), evaluate(Brighten(0.5), pairs)
    assert half == pytest.approx(full, abs=1e-3)  # a wrong brightness costs nothing
    assert full["psnr_x250"] < full["psnr_x100"]


def test_the_network_is_left_as_it_was():
    network = TSDN((2, 3, 4)).train()
    noisy = torch.rand(1, 4, 16, 16)
    restored = restore(network, noisy)
    assert network.training
    torch.testing.assert_close(restored, network.eval()(noisy).detach())
