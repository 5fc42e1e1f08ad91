"""A level where code is written in unusual forms: dimensions mixed, samplings written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eslkit.surgery.depth import deepen, flatten_step, inserted_at, inserted_levels

FRAMES = torch.rand(1, 3, 3, 16, 16, generator=torch.Generator().manual_seed(4))


def conv(a: int, b: int, step: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, stride=step, padding=1)


def check(model: nn.Module, x: Tensor, grid: tuple[int, ...]) -> None:
    """One level on that grid, which learns and leaves no trace."""
    model, x = model.double(), x.double()
    before = model(x)
    big = deepen(model, example_inputs=x)
    (name,) = inserted_levels(big)
    assert inserted_at(big, name).grid == grid
    out = big(x)
    assert out.shape == before.shape
    out.square().sum().backward()
    level = inserted_at(big, name).level
    assert all(p.grad is not None and p.grad.isfinite().all() for p in level.parameters())
    for _ in range(2):
        big, _ = flatten_step(big)
    assert list(big.state_dict()) == list(model.state_dict())
    assert torch.equal(big(x), before)


class FrameStem(nn.Module):
    """Two dimensions, but for a stem over a burst of frames."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 4, (1, 3, 3), padding=(0, 1, 1))
        self.down, self.inner, self.second = conv(12, 8, 2), conv(8, 8), conv(8, 8)
        self.leave = conv(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        low = torch.relu(self.down(torch.relu(self.stem(x)).flatten(1, 2)))
        low = self.second(torch.relu(self.inner(low)))
        return self.leave(F.interpolate(low, scale_factor=2.0))


class OverTime(nn.Module):
    """Two dimensions, frames in the batch, and a convolution over time at the bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down, self.inner = conv(3, 4), conv(4, 8, 2), conv(8, 8)
        self.time = nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0))
        self.up, self.leave = nn.ConvTranspose2d(8, 4, 2, stride=2), conv(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, frames = x.shape[0], x.shape[2]
        y = torch.relu(self.down(torch.relu(self.enter(x.transpose(1, 2).flatten(0, 1)))))
        y = self.inner(y)
        moved = self.time(y.unflatten(0, (batch, frames)).transpose(1, 2))
        y = y + moved.transpose(1, 2).flatten(0, 1)
        return self.leave(torch.relu(self.up(y))).unflatten(0, (batch, frames)).transpose(1, 2)


MIXED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "stem over frames": (FrameStem, (8, 8)),
    "convolution over time": (OverTime, (8, 8)),
}


@pytest.mark.parametrize("kind", MIXED)
def test_a_network_of_two_kinds_of_convolutions_gets_a_level(kind: str) -> None:
    make, grid = MIXED[kind]
    check(make(), FRAMES, grid)
