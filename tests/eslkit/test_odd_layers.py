"""Layers of odd sizes: stretched to as many channels as come, or of no channels at all."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eslkit


class Stretched(nn.Module):
    """A small map that is stretched to channels and rows, and works on both (EGE-UNet)."""

    def __init__(self, channels: int, *, own: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, 2, 1)
        self.map = nn.Parameter(torch.rand(1, 1, own, 4))
        self.along = nn.Sequential(
            nn.Conv1d(channels, channels, 3, padding=1, groups=channels),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        size = y.shape[1:3]
        told = F.interpolate(self.map, size=size, mode="bilinear", align_corners=True).squeeze(0)
        return self.leave(y * self.along(told).unsqueeze(-1))


def test_a_map_that_is_stretched_to_the_channels_goes_along() -> None:
    x = torch.rand(2, 3, 8, 8)
    big = eslkit.expand(Stretched(6, own=6), example_inputs=x)
    assert (big.enter.out_channels, big.along[0].groups, big.map.shape[2]) == (12, 12, 12)
    assert big(x).shape == (2, 2, 8, 8)


def test_what_only_tensors_without_memory_can_do_is_no_proof() -> None:
    """A depthwise kernel of six channels, cut into twelve groups."""
    model, x = Stretched(6, own=3), torch.rand(2, 3, 8, 8)
    with pytest.warns(eslkit.ResizeWarning, match=r"enter \(along.0"):
        same = eslkit.expand(model, example_inputs=x)
    assert same.enter.out_channels == 6
    assert same(x).shape == (2, 2, 8, 8)


class ClosedGate(nn.Module):
    """A squeeze-excitation of eight channels that are divided by sixteen."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.gate = nn.Sequential(nn.Linear(8, 8 // 16), nn.ReLU(), nn.Linear(8 // 16, 8))
        self.leave = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        return self.leave(self.inner(y * self.gate(y.mean((2, 3)))[..., None, None]))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_of_no_channels_is_planned_and_drawn_with_the_others(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", eslkit.ResizeWarning)
        planned = eslkit.schedule(ClosedGate(), depth=0, example_inputs=torch.rand(1, 3, 8, 8))
    assert 0 in {layer.width for layer in planned.plan.steps[0].picture}
    planned.draw(tmp_path / "plan.svg")
    assert "gate.0: 0 channels" in (tmp_path / "plan.svg").read_text()
