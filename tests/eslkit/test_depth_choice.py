"""Which of several places gets the level: not the thin latent, not the wide middle of a block."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eslkit.surgery.depth import deepen, inserted_at, inserted_levels

X = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def conv(a: int, b: int, step: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride=step, padding=1), nn.ReLU())


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(width, width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


class Variational(nn.Module):
    """A latent of 4 channels between layers of 32, drawn from what the encoder gives."""

    def __init__(self, layers: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 16), conv(16, 32, 2), layers(32), layers(32))
        self.moments, self.behind = nn.Conv2d(32, 8, 1), nn.Conv2d(4, 4, 1)
        self.decoder = nn.Sequential(
            conv(4, 32), layers(32), layers(32), nn.Upsample(scale_factor=2)
        )
        self.leave = nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.moments(self.encoder(x)).chunk(2, 1)
        drawn = mean + torch.randn_like(mean) * (0.5 * spread).exp()
        return self.leave(self.decoder(self.behind(drawn)))


class Inverted(nn.Module):
    """MobileNet's block: wide inside, where every channel is worked on alone."""

    def __init__(self, inputs: int, outputs: int, step: int = 1) -> None:
        super().__init__()
        wide = 6 * inputs
        self.widen = nn.Sequential(nn.Conv2d(inputs, wide, 1, bias=False), nn.ReLU6())
        self.spread = nn.Conv2d(wide, wide, 3, step, 1, groups=wide, bias=False)
        self.narrow = nn.Conv2d(wide, outputs, 1, bias=False)
        self.adds = inputs == outputs and step == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(torch.relu(self.spread(self.widen(x))))
        return x + y if self.adds else y


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.blocks = nn.Sequential(
            Inverted(8, 16, 2), Inverted(16, 16), Inverted(16, 24), Inverted(24, 24)
        )
        self.join, self.leave = conv(32, 8), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.stem(x)
        low = F.interpolate(self.blocks(skip), scale_factor=2.0)
        return self.leave(self.join(torch.cat([low, skip], 1)))


WIDTHS: dict[str, tuple[Callable[[], nn.Module], set[int]]] = {
    "latent, residual": (lambda: Variational(Residual), {32}),
    "latent, plain": (lambda: Variational(lambda width: conv(width, width)), {32}),
    "inverted": (Mobile, {16, 24}),
}


@pytest.mark.parametrize("kind", WIDTHS)
def test_a_level_has_the_usual_width_of_its_bottleneck(kind: str) -> None:
    make, usual = WIDTHS[kind]
    big = deepen(make(), example_inputs=X)
    (name,) = inserted_levels(big)
    level = inserted_at(big, name).level
    assert level.entry.conv.in_channels in usual  # type: ignore[union-attr]
