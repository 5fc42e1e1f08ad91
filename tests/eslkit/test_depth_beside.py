"""Where a level goes if more than the way down and up passes the lowest scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eslkit.errors import DepthError
from eslkit.surgery.depth import deepen, inserted_at, inserted_levels

X = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(3))


def conv(a: int, b: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, **{"padding": 1, **options})


class Beside(nn.Module):
    """More than the way down comes to the lowest scale: a gate, a stream, a side branch."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.enter = conv(2, 4)
        self.down = conv(4, 4, stride=2)
        self.middle = nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 4))
        self.other = conv(4, 4, stride=2)
        self.weigh = conv(4, 4)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.leave = conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.enter(x))
        low = torch.relu(self.down(skip))
        other = self.other(skip)
        if self.kind == "branch":  # joins before anything else is done, while `low` goes out, too
            early = F.interpolate(low, scale_factor=2)
            low = self.middle(low + other)
            return self.leave(torch.cat([self.up(low) + early, skip], 1))
        low = self.middle(low)
        if self.kind == "gate":  # compared at the lowest scale, as attention U-Nets do
            gate = torch.sigmoid(F.interpolate(self.weigh(torch.relu(other + low)), scale_factor=2))
            skip = gate * skip
        elif self.kind == "stream":  # the sum is no module's
            return self.leave(torch.cat([F.interpolate(low + other, scale_factor=2), skip], 1))
        return self.leave(torch.cat([self.up(low), skip], 1))


@pytest.mark.parametrize("kind, place", [("gate", "middle.2"), ("stream", "middle.0")])
def test_what_joins_at_the_lowest_scale_leads_past_the_level(kind: str, place: str) -> None:
    model = Beside(kind).double().eval()
    x = X.double()
    big = deepen(model, init="identity", example_inputs=x)
    assert inserted_levels(big) == [place]
    torch.testing.assert_close(big(x), model(x), atol=1e-8, rtol=1e-8)
    inserted_at(big, place).level.register_forward_hook(lambda m, args, y: y.detach())
    big(x).square().sum().backward()
    reached = {name for name, p in big.named_parameters() if p.grad is not None and p.grad.any()}
    assert not any(name.startswith("down.") for name in reached)
    assert any(name.startswith("other.") for name in reached)


def test_a_side_branch_gets_no_level_in_place_of_the_bottleneck() -> None:
    with pytest.raises(DepthError, match=r"separates what goes in \(down, other\)"):
        deepen(Beside("branch"), example_inputs=X)


class Gate(nn.Module):
    """An attention gate whose weights, between 0 and 1, are brought up, as attention U-Nets do."""

    def __init__(self) -> None:
        super().__init__()
        self.theta, self.phi = nn.Conv2d(4, 4, 2, stride=2), nn.Conv2d(4, 4, 1)
        self.psi = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        theta = self.theta(x)
        phi = F.interpolate(self.phi(low), size=theta.shape[2:], mode="bilinear")
        weights = torch.sigmoid(self.psi(torch.relu(theta + phi)))
        return F.interpolate(weights, size=x.shape[2:], mode="bilinear").expand_as(x) * x


class Gated(nn.Module):
    """The gate works at a lower scale than the bottleneck, which is halved along one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.first, self.second = conv(2, 4), conv(4, 4), conv(4, 4)
        self.gate = Gate()
        self.up, self.leave = nn.ConvTranspose2d(4, 4, (2, 1), stride=(2, 1)), conv(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.enter(x))
        low = self.second(torch.relu(self.first(F.max_pool2d(skip, (2, 1)))))
        return self.leave(torch.cat([self.up(low), self.gate(skip, low)], 1))


class Partial(nn.Module):
    """A partial convolution: where nothing is known nothing is made, and the mask goes along."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs, stride=stride)
        self.counted = conv(inputs, outputs, stride=stride, bias=False)
        nn.init.ones_(self.counted.weight)
        self.counted.weight.requires_grad = False

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x * mask)
        with torch.no_grad():
            count = self.counted(mask)
        hole = count == 0
        y = (y / count.masked_fill(hole, 1.0)).masked_fill(hole, 0.0)
        return y, torch.ones_like(y).masked_fill(hole, 0.0)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down, self.leave = Partial(2, 4), Partial(4, 8, stride=2), Partial(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        skip, known = self.enter(x, (x > -0.5).to(x.dtype))
        low, mask = self.down(skip, known)
        low, mask = (F.interpolate(each, scale_factor=2) for each in (torch.relu(low), mask))
        return self.leave(torch.cat([low, skip], 1), torch.cat([mask, known], 1))[0]


class Pasted(nn.Module):
    """Contextual attention: what stands elsewhere in a map is found and pasted by convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = conv(2, 4), conv(4, 4, stride=2)
        self.first, self.second, self.leave = conv(4, 4), conv(4, 4), conv(4, 2)
        self.paste = Paste()

    def forward(self, x: Tensor) -> Tensor:
        low = torch.relu(self.first(torch.relu(self.down(torch.relu(self.enter(x))))))
        return self.leave(F.interpolate(self.second(low + self.paste(low)), scale_factor=2))


class Paste(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        small, width = F.interpolate(x, scale_factor=0.5), x.shape[1]
        keys = F.unfold(small, 3, padding=1).transpose(1, 2)[0].reshape(-1, width, 3, 3)
        raw = F.unfold(x, 4, stride=2, padding=1).transpose(1, 2)[0].reshape(-1, width, 4, 4)
        likeness = F.conv2d(small, keys / keys.square().sum((1, 2, 3), keepdim=True), padding=1)
        return F.conv_transpose2d(likeness.softmax(1), raw, stride=2, padding=1) / 4


class Sound(nn.Module):
    """A convolution makes a plane of sound, for a network of planes."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(2, 32, 4, 2, 1)
        self.down, self.middle = conv(2, 4, stride=2), conv(4, 4)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.leave = nn.ConvTranspose1d(32, 2, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        wave = self.enter(x.flatten(2))
        plane = wave.view(len(wave), 2, 16, -1)
        low = self.middle(torch.relu(self.down(plane)))
        return self.leave((self.up(low) * plane).flatten(1, 2))


@pytest.mark.parametrize(
    "make, place",
    [(Gated, "second"), (Masked, "down"), (Pasted, "first"), (Sound, "middle")],
)
def test_a_level_goes_into_the_bottleneck_and_learns(make: type[nn.Module], place: str) -> None:
    model = make()
    big = deepen(model, example_inputs=X)
    assert inserted_levels(big) == [place]
    big(X).square().sum().backward()
    assert all(p.grad is not None for name, p in big.named_parameters() if ".level." in name)
