"""The networks against the table of facts, section 1, and against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eslkit.errors import InputError
from eslkit_tsdn.models import TSDN, SUNet, UNet
from eslkit_tsdn.models.tsdn import EXPANDED

TINY = (16, 32, 64, 128)
MIDDLE = (16, 32, 64, 128, 256)  # after the channel steps of ESL
DOUBLED = (64, 128, 256, 512, 1024)

# name, factory, parameters, MiB, MB, GFLOPs of a 1x4x512x512 input: the table, to its last digit
NETWORKS = [
    ("TSDN", lambda: TSDN(), 964_456, 3.679, 3.858, 37.313),
    ("TSDN_D", lambda: TSDN(stages=1), 482_228, 1.840, 1.929, 18.656),
    ("ThSDN tiny", lambda: TSDN(stages=3), 1_446_684, 5.519, 5.787, 55.969),
    ("TSDN4", lambda: TSDN(EXPANDED), 15_520_968, 59.208, 62.084, 193.542),
    ("ThSDN", lambda: TSDN(EXPANDED, stages=3), 23_281_452, 88.812, 93.126, 290.313),
    ("TSDN_CSL", lambda: TSDN(MIDDLE), 3_882_600, 14.811, 15.530, 48.721),
    ("U-Net", lambda: UNet(), 7_760_484, 29.604, 31.042, 96.771),
    ("SU-Net", lambda: SUNet(), 1_941_300, 7.405, 7.765, 24.361),
    ("U-Net doubled", lambda: UNet(DOUBLED), 31_032_516, 118.380, 124.130, 385.742),
    ("SID", lambda: UNet(out_channels=12), 7_760_748, 29.605, 31.043, 96.905),
]


def on_meta(factory) -> nn.Module:
    with torch.device("meta"):
        return factory().eval()


def gflops(model: nn.Module) -> float:
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.empty(1, 4, 512, 512, device="meta"))
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize(
    "factory, parameters, mebibytes, megabytes, flops",
    [network[1:] for network in NETWORKS],
    ids=[network[0] for network in NETWORKS],
)
def test_sizes_and_flops_are_those_of_the_table(factory, parameters, mebibytes, megabytes, flops):
    model = on_meta(factory)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert round(4 * parameters / 2**20, 3) == mebibytes
    assert round(4 * parameters / 1e6, 3) == megabytes
    assert gflops(model) == pytest.approx(flops, abs=5e-4)


def test_paper_gives_37_31_and_96_77_gflops():
    assert f"{gflops(on_meta(TSDN)):.2f}" == "37.31"
    assert f"{gflops(on_meta(UNet)):.2f}" == "96.77"


def naive_unet(x: torch.Tensor, weights: dict[str, torch.Tensor], levels: int) -> torch.Tensor:
    """The stage template of facts, section 1, written down without a module."""

    def conv(x: torch.Tensor, name: str, padding: int = 1) -> torch.Tensor:
        return torch.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)

    def lrelu(x: torch.Tensor) -> torch.Tensor:
        return torch.maximum(0.2 * x, x)

    def block(x: torch.Tensor, name: str) -> torch.Tensor:
        return lrelu(conv(lrelu(conv(x, f"{name}.conv1")), f"{name}.conv2"))

    skips = []
    for level in range(levels):
        skips.append(block(x, f"encoder.{level}"))
        x = skips[-1].unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(-1, -2))
    x = block(x, "middle")
    for level in reversed(range(levels)):
        up = f"decoder.{level}.up"
        x = torch.conv_transpose2d(x, weights[f"{up}.weight"], weights[f"{up}.bias"], stride=2)
        x = block(torch.cat([x, skips[level]], dim=1), f"decoder.{level}")
    return conv(x, "out", padding=0)


@pytest.mark.parametrize("widths", [(3, 5), (2, 3, 4), (2, 3, 4, 5)])
def test_unet_is_the_stage_template(widths):
    torch.manual_seed(0)
    model = UNet(widths, in_channels=4, out_channels=3).double()
    x = torch.rand(2, 4, 16, 24, dtype=torch.float64)
    expected = naive_unet(x, dict(model.state_dict()), levels=len(widths) - 1)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_tsdn_returns_every_stage_in_training_and_the_last_in_inference():
    torch.manual_seed(0)
    model = TSDN((2, 3, 4), stages=3, in_channels=4, out_channels=2)
    x = torch.rand(2, 4, 8, 8)
    outputs = model.train()(x)
    assert isinstance(outputs, tuple)
    assert [tuple(image.shape) for image in outputs] == [(2, 2, 8, 8)] * 3
    first, second, third = model.stages
    torch.testing.assert_close(outputs[0], first(x))
    torch.testing.assert_close(outputs[1], second(first(x)))
    torch.testing.assert_close(model.eval()(x), third(second(first(x))))


def test_a_size_that_cannot_be_halved_is_refused_with_the_size_to_pad_to():
    with pytest.raises(InputError, match=r"30x41.*multiples of 8.*32x48"):
        TSDN((2, 2, 2, 2))(torch.zeros(1, 4, 30, 41))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: UNet((16,)), r"widths=\(16,\) has 1 level"),
        (lambda: UNet((16, 0)), r"widths\[1\]=0"),
        (lambda: UNet((16, 32), in_channels=0), "in_channels=0"),
        (lambda: TSDN(stages=0), "stages=0"),
    ],
)
def test_what_cannot_be_a_network_is_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_networks_can_be_exported():
    model = TSDN((2, 3, 4)).eval()
    x = torch.rand(1, 4, 8, 8)
    exported = torch.export.export(model, (x,), strict=False)
    torch.testing.assert_close(exported.module()(x), model(x))
