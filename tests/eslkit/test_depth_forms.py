"""A level where code is written in unusual forms: dimensions mixed, samplings written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eslkit.errors import DepthError
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


class PerFrame(nn.Module):
    """Works on frames in the batch, in two dimensions."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        batch, _, frames = x.shape[:3]
        y = self.body(x.transpose(1, 2).flatten(0, 1))
        return y.unflatten(0, (batch, frames)).transpose(1, 2)


class Video(nn.Module):
    """Three dimensions, but frames are reduced and brought up one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv3d(3, 4, 3, padding=1)
        self.down = PerFrame(conv(4, 8, 2))
        self.first, self.second = (nn.Conv3d(8, 8, 3, padding=1) for _ in range(2))
        self.up = PerFrame(nn.Sequential(nn.Upsample(scale_factor=2), conv(8, 4)))
        self.leave = nn.Conv3d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.down(torch.relu(self.enter(x))))
        y = self.second(torch.relu(self.first(y)))
        return self.leave(torch.relu(self.up(y)))


MIXED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "stem over frames": (FrameStem, (8, 8)),
    "convolution over time": (OverTime, (8, 8)),
    "frame by frame": (Video, (3, 8, 8)),
}


@pytest.mark.parametrize("kind", MIXED)
def test_a_network_of_two_kinds_of_convolutions_gets_a_level(kind: str) -> None:
    make, grid = MIXED[kind]
    check(make(), FRAMES, grid)


def blocks(x: Tensor) -> Tensor:
    """The positions of every square of four on axes of their own."""
    batch, width, height, across = x.shape
    return x.view(batch, width, height // 2, 2, across // 2, 2)


def twofold(side: int) -> Tensor:
    """The matrix that gives every position twice."""
    return torch.kron(torch.eye(side), torch.ones(2, 1)).double()


def filtered(x: Tensor, up: int, down: int) -> Tensor:
    """StyleGAN's: zeros between positions, a filter on every channel as an example, positions."""
    batch, width, height, across = x.shape
    y = F.pad(x.reshape(-1, height, 1, across, 1, 1), [0, 0, 0, up - 1, 0, 0, 0, up - 1])
    y = F.pad(y.reshape(-1, 1, height * up, across * up), [up - 1, 1, up - 1, 1])
    y = F.conv2d(y, torch.ones(1, 1, up + 1, up + 1, dtype=x.dtype))[:, :, ::down, ::down]
    y = y[:, :, : height * up // down, : across * up // down]
    return y.reshape(batch, width, height * up // down, across * up // down)


DOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: blocks(x).mean((3, 5)),
    "maximum": lambda x: blocks(x).amax((3, 5)),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (x.shape[2] // 2, x.shape[3] // 2)),
    "product": lambda x: twofold(x.shape[2] // 2).T @ x @ twofold(x.shape[3] // 2) / 4,
    "filter": lambda x: filtered(x, 1, 2),
}
UP: dict[str, Callable[[Tensor], Tensor]] = {
    "product": lambda x: twofold(x.shape[2]) @ x @ twofold(x.shape[3]).T,
    "sum of products": lambda x: torch.einsum(
        "bchw,Hh,Ww->bcHW", x, twofold(x.shape[2]), twofold(x.shape[3])
    ),
    "tensordot": lambda x: (
        torch.tensordot(x[..., None], torch.ones(1, 2, 2, dtype=x.dtype), dims=1)
        .permute(0, 1, 2, 4, 3, 5)
        .reshape(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    ),
    "kron": lambda x: torch.kron(x, torch.ones(1, 1, 2, 2, dtype=x.dtype)),
    "stack": lambda x: torch.stack([torch.stack([x, x], -1).flatten(-2)] * 2, 3).flatten(2, 3),
    "filter": lambda x: filtered(x, 2, 1),
}


class Written(nn.Module):
    """A U-Net whose samplings are functions."""

    def __init__(self, down: Callable[[Tensor], Tensor], up: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.first, self.second = conv(3, 4), conv(4, 8), conv(8, 8)
        self.leave = conv(12, 3)
        self.down, self.up = down, up

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.enter(x))
        low = torch.relu(self.second(torch.relu(self.first(self.down(skip)))))
        return self.leave(torch.cat([self.up(low), skip], 1))


@pytest.mark.parametrize("kind", [*(f"down, {k}" for k in DOWN), *(f"up, {k}" for k in UP)])
def test_samplings_that_are_written_out_are_seen(kind: str) -> None:
    way, name = kind.split(", ")
    down = DOWN[name] if way == "down" else lambda x: F.max_pool2d(x, 2)
    up = UP[name] if way == "up" else lambda x: F.interpolate(x, scale_factor=2.0)
    check(Written(down, up), FRAMES[:, :, 0], (8, 8))


class Flat(nn.Module):
    """Layers at one resolution, with something that looks at a summary between."""

    def __init__(self, summary: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = conv(3, 8), conv(8, 8), conv(8, 3)
        self.look, self.give = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.summary = summary

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.enter(x))
        return self.leave(torch.relu(self.inner(y + self.summary(self, y))))


def attention(net: nn.Module, x: Tensor) -> Tensor:
    """Of all positions to averages of four."""
    low = blocks(x).mean((3, 5)).flatten(2).transpose(1, 2)
    keys = low @ net.look.weight[:, :, 0, 0]  # type: ignore[index,operator]
    heads = F.scaled_dot_product_attention(x.flatten(2).transpose(1, 2), keys, low)
    return heads.transpose(1, 2).reshape(x.shape)


def strips(net: nn.Module, x: Tensor) -> Tensor:
    """What rows and columns are on average."""
    rows, columns = net.look(x.mean(3, keepdim=True)), net.give(x.mean(2, keepdim=True))  # type: ignore[operator]
    return F.interpolate(rows, size=x.shape[2:]) + columns.expand(x.shape)


def globally(net: nn.Module, x: Tensor) -> Tensor:
    return net.give(torch.relu(net.look(x.mean((2, 3), keepdim=True)))).expand(x.shape)  # type: ignore[operator]


def coarsely(net: nn.Module, x: Tensor) -> Tensor:
    """A summary of two by two positions."""
    return F.interpolate(net.look(F.adaptive_avg_pool2d(x, 2)), size=x.shape[2:])  # type: ignore[operator]


@pytest.mark.parametrize("summary", [attention, strips, globally, coarsely])
def test_a_summary_is_no_bottleneck(summary: Callable[[nn.Module, Tensor], Tensor]) -> None:
    with pytest.raises(DepthError, match="has no bottleneck"):
        deepen(Flat(summary), example_inputs=FRAMES[:, :, 0])
