"""What networks are measured on, and how."""

from __future__ import annotations

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from eslkit.errors import InputError
from eslkit_tsdn.evaluation import (
    evaluate,
    evaluate_input,
    means,
    measured,
    restore,
    stage_images,
    test_pairs,
)
from eslkit_tsdn.metrics import PROTOCOLS
from eslkit_tsdn.models import TSDN
from tests.eslkit_tsdn.fakes import drawn_photos


def test_pairs_are_the_same_whoever_asks():
    photos = drawn_photos(2)
    pairs = test_pairs(photos, ratios=(100, 300), seed=1, gain=4.0)
    torch.manual_seed(99)
    alone = test_pairs(photos[1:], ratios=(300,), seed=1, gain=4.0)
    assert [(pair.ratio, pair.name) for pair in pairs] == [
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


class Lazy:
    """Pairs that are made when they are asked for, and noted."""

    def __init__(self, pairs) -> None:
        self.pairs, self.read = pairs, []

    def __iter__(self):
        for pair in self.pairs:
            self.read.append(pair.name)
            yield pair


def test_one_pair_at_a_time_is_read_and_each_once():
    pairs = Lazy(test_pairs(drawn_photos(3), ratios=(100,), gain=4.0))
    results = measured(Brighten(0.5), pairs, protocol=PROTOCOLS["plain"])
    assert next(results).name == "drawn-0"
    assert pairs.read == ["drawn-0"]
    assert [result.name for result in results] == ["drawn-1", "drawn-2"]
    again = Lazy(pairs.pairs)
    evaluate(Brighten(0.5), again)
    assert again.read == ["drawn-0", "drawn-1", "drawn-2"]


def test_eld_cuts_the_centre_before_the_network():
    pairs = test_pairs(drawn_photos(1, height=520, width=528), ratios=(100,), largest=600)
    sizes: list[tuple[int, ...]] = []
    network = Brighten(0.5)
    network.register_forward_hook(lambda module, args, image: sizes.append(image.shape))
    values = {}
    for name in ("eld-crop", "eld-full", "plain"):
        (result,) = measured(network, pairs, protocol=PROTOCOLS[name])
        values[name] = result.values
    assert sizes == [(1, 4, 512, 512), (1, 4, 512, 528), (1, 4, 512, 528)]
    assert len({each["psnr"] for each in values.values()}) == 3
    (pair,) = pairs
    noisy, clean = (x[0, :, :, 8:520].permute(1, 2, 0).numpy() for x in (pair.noisy, pair.clean))
    crop = values["eld-crop"]
    assert crop["input_psnr"] == pytest.approx(
        peak_signal_noise_ratio(clean * 255, noisy * 255, data_range=255), abs=1e-6
    )
    assert crop["input_ssim"] == pytest.approx(
        structural_similarity(clean * 255, noisy * 255, data_range=255, channel_axis=-1), abs=1e-6
    )
    assert crop["noise_std_input"] == pytest.approx((noisy - clean).std(), rel=1e-5)
    assert "noise_std_middle" not in crop


def test_the_middle_is_the_first_stage_s_image():
    network = TSDN((2, 3, 4), stages=3)
    pairs = test_pairs(drawn_photos(2), ratios=(100, 300), gain=4.0)
    images = stage_images(network, pairs[0].noisy)
    for image, expected in zip(images, network.train()(pairs[0].noisy), strict=True):
        torch.testing.assert_close(image, expected.detach())
    results = tuple(measured(network, pairs, protocol=PROTOCOLS["eld-full"]))
    left = (images[0] - pairs[0].clean).double()
    assert results[0].values["noise_mean_middle"] == pytest.approx(left.mean().item())
    assert results[0].values["noise_std_middle"] == pytest.approx(left.std().item(), rel=1e-3)
    table = means(results)
    assert table["psnr_x300"] == pytest.approx(evaluate(network, pairs)["psnr_x300"])
    first, second = (result.values["noise_std_output"] for result in results[:2])
    assert table["noise_std_output_x100"] == pytest.approx((first + second) / 2)


def test_another_way_to_run_the_network_is_used():
    network, asked = TSDN((2, 3)), []

    def tiled(stage, noisy):
        asked.append(stage)
        return restore(stage, noisy)

    pairs = test_pairs(drawn_photos(1), ratios=(100,))
    (one,) = measured(network, pairs, protocol=PROTOCOLS["plain"], restore=tiled)
    (other,) = measured(network, pairs, protocol=PROTOCOLS["plain"])
    assert asked == [*network.stages]
    assert one == other
