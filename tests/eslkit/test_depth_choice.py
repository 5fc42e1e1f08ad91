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


def separable(inputs: int, outputs: int, step: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, step, 1, groups=inputs, bias=False),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.ReLU(),
    )


class Separable(nn.Module):
    """Skip connections are added; layers over positions work on every channel alone."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.enter, self.first = separable(3, 16), separable(16, 16, 2)
        self.second, self.third = separable(16, 16), separable(16, 16)
        self.up: nn.Module = nn.Upsample(scale_factor=2)
        if transposed:
            self.up = nn.ConvTranspose2d(16, 16, 2, stride=2, groups=16)
        self.leave = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.enter(x)
        return self.leave(self.up(self.third(self.second(self.first(skip)))) + skip)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("init", ["random", "preserve"])
def test_the_level_of_a_separable_network_is_separable(transposed: bool, init: str) -> None:
    model, x = Separable(transposed).double(), X.double()
    big = deepen(model, init=init, example_inputs=x)
    (name,) = inserted_levels(big)
    level = inserted_at(big, name).level
    layers = [m for m in level.modules() if list(m.parameters(recurse=False))]
    for layer in layers:
        assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
        assert layer.kernel_size == (1, 1) or layer.groups == layer.in_channels
    if init == "preserve":
        torch.testing.assert_close(big(x), model(x), atol=1e-12, rtol=1e-12)
    optimizer = torch.optim.SGD(big.parameters(), lr=0.1)
    for _ in range(6):  # zeros of a level that changes nothing let one layer learn after another
        optimizer.zero_grad()
        big(x).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in level.parameters())
