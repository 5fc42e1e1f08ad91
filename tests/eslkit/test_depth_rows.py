"""Hourglasses of different depth in a row: each gets a level, what lies inside one gets none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from eslkit.surgery.depth import deepen, flatten_parts, flatten_step, inserted_at, inserted_levels

X = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def conv(a: int, b: int, step: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, stride=step, padding=1)


class Stage(nn.Module):
    """An hourglass of so many reductions; its inner parts may be the like."""

    def __init__(self, depth: int, joins: str, pools: bool, nested: int = 0) -> None:
        super().__init__()
        self.enter = conv(3, 4)
        self.downs = nn.ModuleList(conv(4, 4, 1 if pools else 2) for _ in range(depth))
        self.inner = nn.ModuleList(conv(4, 4) for _ in range(depth))
        self.ups = nn.ModuleList(conv(8 if joins == "concat" else 4, 4) for _ in range(depth))
        self.attention = Attention() if nested else nn.Identity()
        self.leave = conv(4, 3)
        self.joins, self.pools, self.nested = joins, pools, nested

    def forward(self, x: Tensor, features: list[Tensor] | None = None) -> Tensor:
        y, skips = torch.relu(self.enter(x)), []
        for i, (down, inner) in enumerate(zip(self.downs, self.inner, strict=True)):
            if i + 1 == self.nested:
                y = self.attention(y)
            skips.append(y)
            y = down(F.max_pool2d(y, 2) if self.pools else y)
            y = torch.relu(inner(torch.relu(y)))
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            y = F.interpolate(y, size=skip.shape[2:])
            if self.joins == "none":
                y = torch.relu(up(y))
            else:
                y = torch.cat([y, skip], 1) if self.joins == "concat" else y + skip
                y = torch.relu(up(y))
        return self.leave(y)


class Attention(nn.Module):
    """Weighs a map by what it finds at a quarter of its resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.look = conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        found = self.look(F.avg_pool2d(x, 2))
        return x * torch.sigmoid(F.interpolate(found, size=x.shape[2:]))


class Row(nn.Module):
    """Hourglasses one behind the other, each given the picture, or beside one another."""

    def __init__(self, stages: list[Stage], shape: str) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for stage in self.stages:
            if self.shape == "behind":
                y = stage(y)
            elif self.shape == "guided":
                y = stage(y + x)
            elif self.shape == "residual":
                y = y + stage(y)
            else:
                y = y + stage(x)
        return y


ROWS = st.lists(
    st.builds(
        Stage,
        st.integers(1, 3),
        st.sampled_from(["concat", "add", "none"]),
        st.booleans(),
        st.sampled_from([0, 0, 1]),
    ),
    min_size=2,
    max_size=3,
)


@settings(max_examples=12)
@given(stages=ROWS, shape=st.sampled_from(["behind", "guided", "residual", "beside"]))
def test_hourglasses_of_different_depth_get_a_level_each(stages: list[Stage], shape: str) -> None:
    model = Row(stages, shape)
    big = deepen(model, example_inputs=X)
    names = inserted_levels(big)
    assert [name.split(".")[1] for name in names] == [str(i) for i in range(len(stages))]
    for name, stage in zip(names, stages, strict=True):
        assert inserted_at(big, name).grid == (32 >> len(stage.downs),) * 2
    assert flatten_parts(big) == 2
    for _ in range(2):
        big, _ = flatten_step(big)
    assert list(big.state_dict()) == list(model.state_dict())
    assert torch.equal(big(X), model(X))


class Side(nn.Module):
    """An hourglass with smaller ones inside, on its way down, on its way up or on a skip."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.enter, self.leave = conv(3, 4), conv(8, 3)
        self.down1, self.down2, self.down3 = conv(4, 4, 2), conv(4, 4, 2), conv(4, 4, 2)
        self.up1, self.up2 = conv(8, 4), conv(8, 4)
        self.small = conv(4, 4)
        self.head = conv(4, 3)
        self.where = where

    def around(self, x: Tensor) -> Tensor:
        low = torch.relu(self.small(F.avg_pool2d(x, 2)))
        return x + F.interpolate(low, size=x.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.enter(x))
        second = torch.relu(self.down1(first))
        if self.where == "down":
            second = self.around(second)
        third = torch.relu(self.down2(second))
        last = torch.relu(self.down3(third))
        y = self.up1(torch.cat([F.interpolate(last, scale_factor=2), third], 1))
        skip = self.around(second) if self.where == "skip" else second
        y = self.up2(torch.cat([F.interpolate(y, scale_factor=2), skip], 1))
        if self.where == "up":
            y = self.around(y)
        out = self.leave(torch.cat([F.interpolate(y, scale_factor=2), first], 1))
        if self.where == "head":
            out = out + F.interpolate(self.head(third), size=out.shape[2:])
        return out


@given(where=st.sampled_from(["down", "up", "skip", "head"]))
@settings(max_examples=4)
def test_what_lies_inside_an_hourglass_gets_none(where: str) -> None:
    names = inserted_levels(deepen(Side(where), example_inputs=X))
    assert len(names) == 1
    assert inserted_at(deepen(Side(where), example_inputs=X), names[0]).grid == (4, 4)


class Patched(nn.Module):
    """An hourglass on patches, whose decoder meets what is made of a pooled image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.down, self.low = nn.Conv2d(3, 8, 4, stride=4), conv(8, 8, 2), conv(8, 8)
        self.fine = conv(3, 4)
        self.up1, self.up2, self.up3 = conv(16, 8), conv(12, 4), conv(4, 4)
        self.leave = conv(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(self.fine(F.avg_pool2d(x, 2)))
        first = torch.relu(self.patches(x))
        low = torch.relu(self.low(torch.relu(self.down(first))))
        y = self.up1(torch.cat([F.interpolate(low, scale_factor=2), first], 1))
        y = self.up2(torch.cat([F.interpolate(torch.relu(y), scale_factor=2), fine], 1))
        return self.leave(F.interpolate(self.up3(torch.relu(y)), scale_factor=2))


def test_a_pooled_image_that_joins_a_decoder_is_no_hourglass() -> None:
    big = deepen(Patched(), example_inputs=X)
    (name,) = inserted_levels(big)
    assert inserted_at(big, name).grid == (4, 4)


class Pyramid(nn.Module):
    """A map pooled by several factors; all that is made of it is brought back and joined."""

    def __init__(self, factors: tuple[int, ...], chained: bool) -> None:
        super().__init__()
        self.factors, self.chained = factors, chained
        self.looks = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in factors)
        self.links = nn.ModuleList(conv(4, 4) for _ in factors)
        self.leave = conv(8 + 4 * len(factors), 8)

    def forward(self, x: Tensor) -> Tensor:
        made: list[Tensor] = []
        for factor, look, link in zip(self.factors, self.looks, self.links, strict=True):
            if self.chained:
                low = F.avg_pool2d(x, factor + 1, factor, padding=factor // 2)
            else:
                low = F.max_pool2d(x, factor, factor)
            y = F.interpolate(torch.relu(look(low)), size=x.shape[2:])
            made.append(link(y + made[-1]) if self.chained and made else y)
        return torch.relu(self.leave(torch.cat([*made, x], 1)))


class Context(nn.Module):
    """An hourglass with a pyramid pooling at its bottleneck."""

    def __init__(self, pyramid: nn.Module) -> None:
        super().__init__()
        self.enter, self.down1, self.down2 = conv(3, 4), conv(4, 8, 2), conv(8, 8, 2)
        self.inner, self.pyramid, self.last = conv(8, 8), pyramid, conv(8, 8)
        self.up, self.leave = conv(16, 4), conv(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.enter(x))
        second = torch.relu(self.down1(first))
        low = torch.relu(self.inner(torch.relu(self.down2(second))))
        low = torch.relu(self.last(self.pyramid(low)))
        y = self.up(torch.cat([F.interpolate(low, scale_factor=2), second], 1))
        return self.leave(torch.cat([F.interpolate(torch.relu(y), scale_factor=2), first], 1))


@pytest.mark.parametrize("factors", [(2, 4), (2, 3, 4, 8)])
@pytest.mark.parametrize("chained", [False, True])
def test_a_level_goes_around_a_pyramid_pooling(factors: tuple[int, ...], chained: bool) -> None:
    big = deepen(Context(Pyramid(factors, chained)), example_inputs=X)
    (name,) = inserted_levels(big)
    assert inserted_at(big, name).grid == (8, 8)
    assert "looks" not in name
