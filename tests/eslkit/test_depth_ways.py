"""A level where the ways through the bottleneck are unusual: recurrence, indices, patches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eslkit.surgery.depth import deepen, flatten_step, inserted_at, inserted_levels

X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(7))


def conv(a: int, b: int, step: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, stride=step, padding=1)


class Frames(nn.Module):
    """A recurrence over frames at the bottleneck, each frame coming down and going up by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down, self.inner = conv(3, 4), conv(4, 6, 2), conv(6, 6)
        self.gates = conv(12, 24)
        self.up, self.leave = nn.ConvTranspose2d(6, 4, 2, stride=2), conv(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = torch.zeros(1, 6, 8, 8, dtype=x.dtype)
        made: list[Tensor] = []
        for frame in (x, x.flip(2), x.flip(3)):
            skip = torch.relu(self.enter(frame))
            low = self.inner(torch.relu(self.down(skip)))
            keep, give, show, new = self.gates(torch.cat([low, hidden], 1)).chunk(4, 1)
            cell = keep.sigmoid() * cell + give.sigmoid() * new.tanh()
            hidden = show.sigmoid() * cell.tanh()
            made.append(self.leave(torch.cat([self.up(hidden), skip], 1)))
        return torch.stack(made).sum(0)


class Unpooled(nn.Module):
    """Max-unpooling: the indices go around the bottleneck; at the lowest scale is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3, 4), nn.Sequential(conv(4, 6), nn.ReLU(), conv(6, 6))
        self.third, self.last = nn.Sequential(conv(6, 6), nn.ReLU(), conv(6, 4)), conv(4, 3)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x, outer = self.pool(torch.relu(self.first(x)))
        x, inner = self.pool(self.second(x))
        return self.last(self.unpool(self.third(self.unpool(x, inner)), outer))


class Wavelet(nn.Module):
    """Down by slices, up by writing into zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = conv(3, 4)
        self.inner = nn.Sequential(conv(16, 8), nn.ReLU(), conv(8, 16))
        self.leave = conv(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.enter(x))
        corners = [(i, j) for i in range(2) for j in range(2)]
        low = torch.cat([skip[:, :, i::2, j::2] for i, j in corners], 1)
        low = self.inner(low)
        up = torch.zeros_like(skip)
        for (i, j), part in zip(corners, low.chunk(4, 1), strict=True):
            up[:, :, i::2, j::2] = part
        return self.leave(up + skip)


class Folded(nn.Module):
    """A recurrent layer over the rows, whose features are channels and columns together."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = conv(3, 4), nn.Sequential(conv(4, 6, 2), nn.ReLU(), conv(6, 6))
        self.gru, self.linear = nn.GRU(48, 10, batch_first=True), nn.Linear(10, 48)
        self.up, self.leave = nn.ConvTranspose2d(12, 4, 2, stride=2), conv(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.enter(x))
        low = self.down(skip)
        rows = low.permute(0, 2, 1, 3).flatten(2)
        rows = self.linear(self.gru(rows)[0]).unflatten(2, (6, 8)).permute(0, 2, 1, 3)
        return self.leave(torch.cat([self.up(torch.cat([rows, low], 1)), skip], 1))


class Recurrent(nn.Module):
    """Nothing but a recurrence over the columns, whose features are channels and rows together."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = conv(3, 4), nn.Sequential(conv(4, 6, 2), nn.ReLU(), conv(6, 6))
        self.lstm = nn.LSTM(48, 48, batch_first=True)
        self.up, self.leave = nn.ConvTranspose2d(6, 4, 2, stride=2), conv(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.enter(x))
        columns = self.down(skip).flatten(1, 2).transpose(1, 2)
        low = self.lstm(columns)[0].transpose(1, 2).unflatten(1, (6, 8))
        return self.leave(torch.cat([self.up(low), skip], 1))


class Patches(nn.Module):
    """Both halves come down by themselves, and go up side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(conv(3, 4, 2), nn.ReLU(), conv(4, 4))
        self.inner, self.up, self.leave = (
            conv(4, 4),
            nn.ConvTranspose2d(4, 4, 2, stride=2),
            conv(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        low = torch.cat([self.down(half) for half in x.chunk(2, 2)], 2)
        return self.leave(self.up(torch.relu(self.inner(low))))


class Reweighted(nn.Module):
    """Layers whose weights are computed anew at every call."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.enter, self.down = wrap(conv(3, 4)), wrap(conv(4, 6, 2))
        self.inner, self.second = wrap(conv(6, 6)), wrap(conv(6, 6))
        self.up, self.leave = wrap(nn.ConvTranspose2d(6, 4, 2, stride=2)), wrap(conv(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.enter(x))
        low = self.second(torch.relu(self.inner(torch.relu(self.down(skip)))))
        return self.leave(torch.cat([self.up(low), skip], 1))


class Heads(nn.Module):
    """Attention with gates on its heads, in a residual block, and a norm over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = conv(3, 8, 2), nn.ConvTranspose2d(8, 3, 2, stride=2)
        self.qkv, self.gates, self.out = nn.Linear(8, 24), nn.Linear(8, 2), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x).movedim(1, -1)
        q, k, v = self.qkv(y).unflatten(3, (3, 2, 4)).permute(3, 0, 1, 4, 2, 5).flatten(1, 2)
        heads = F.scaled_dot_product_attention(q, k, v)
        heads = heads * self.gates(y).flatten(0, 1).mT.unsqueeze(-1).sigmoid()
        y = y + self.out(heads.transpose(1, 2).reshape(y.shape))
        return self.up(F.normalize(y, dim=-1).movedim(-1, 1))


def spectral(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(layer)


WAYS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "frames": (Frames, True),
    "unpooled": (Unpooled, True),
    "wavelet": (Wavelet, True),
    "folded": (Folded, True),
    "recurrent": (Recurrent, True),
    "patches": (Patches, True),
    "weight norm": (lambda: Reweighted(nn.utils.parametrizations.weight_norm), True),
    "spectral norm": (lambda: Reweighted(spectral), False),  # it changes at every call
    "heads": (Heads, True),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_level_is_found_learns_and_leaves_no_trace(way: str) -> None:
    make, fixed = WAYS[way]
    torch.manual_seed(0)
    model, x = make().double(), X.double()
    before = model(x)
    big = deepen(model, example_inputs=x)
    (name,) = inserted_levels(big)
    assert inserted_at(big, name).grid[-1] == 8
    out = big(x)
    assert out.shape == before.shape
    out.square().sum().backward()
    level = inserted_at(big, name).level
    assert all(p.grad is not None and p.grad.isfinite().all() for p in level.parameters())
    inserted_at(big, name).level.register_forward_hook(lambda module, args, y: y.detach())
    big.zero_grad(set_to_none=True)
    big(x).square().sum().backward()
    first = ("down.0.", "down.weight", "down.bias", "down.parametrizations.")
    reached = [n for n, p in big.named_parameters() if p.grad is not None]
    assert not any(n.startswith(first) for n in reached), "something bypasses the level"
    for _ in range(2):
        big, _ = flatten_step(big)
    assert list(big.state_dict()) == list(model.state_dict())
    if fixed:
        assert torch.equal(big(x), before)


def test_an_identity_is_put_where_one_is_possible() -> None:
    """Behind a convolution no ReLU6 is the identity; behind a ReLU6 it is."""
    inner = [conv(4, 4), nn.ReLU6(), conv(4, 4), nn.BatchNorm2d(4)]
    model = nn.Sequential(conv(3, 4, 2), *inner, nn.ConvTranspose2d(4, 3, 2, stride=2)).eval()
    big = deepen(model, init="preserve", example_inputs=X)
    torch.testing.assert_close(big(X), model(X))


def test_an_empty_parameter_is_no_obstacle() -> None:
    model = nn.Sequential(conv(3, 4, 2), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2, stride=2))
    model.register_parameter("nothing", nn.Parameter(torch.zeros(1, 4, 0)))
    assert len(inserted_levels(deepen(model, example_inputs=X))) == 1
