"""Drawn encoder-decoders whose levels are blocks of drawn families."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.eslkit.families.all import FAMILIES, family
from tests.eslkit.families.family import CONV, UP, Family, conv, inputs, settle

__all__ = ["Mixed", "Mixture", "mixtures"]


@dataclass(frozen=True)
class Mixture:
    """What a drawn network is made of: one family for each encoder, the middle, each decoder."""

    dims: int
    widths: tuple[int, ...]
    """Width of every level, the bottleneck's last."""
    encoders: tuple[str, ...]
    middle: str
    decoders: tuple[str, ...]
    skip: str
    down: str
    up: str
    deep: bool
    """Whether every decoder has a head of its own (deep supervision: a dict of outputs)."""
    seed: int

    @property
    def families(self) -> tuple[Family, ...]:
        return tuple(family(n) for n in (*self.encoders, self.middle, *self.decoders))

    def build(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return settle(Mixed(self), self.seed)

    def inputs(self) -> Tensor:
        size = 8 if self.dims == 3 else 4 * 2 ** len(self.encoders)
        return inputs(3, self.dims, size=size, batch=1 if self.dims == 3 else 2)


class Up(nn.Module):
    """Up-sampling by two, of one of three kinds."""

    def __init__(self, kind: str, dims: int, below: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        transposed = kind == "transposed"
        made = 4 * width if kind == "shuffle" else width
        self.layer = UP[dims](below, made, 2, stride=2) if transposed else conv(dims, below, made)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.kind == "shuffle":
            return F.pixel_shuffle(y, 2)
        return y if self.kind == "transposed" else F.interpolate(y, scale_factor=2)


class Mixed(nn.Module):
    """A U of drawn blocks."""

    def __init__(self, form: Mixture) -> None:
        super().__init__()
        dims, (*outer, inner) = form.dims, form.widths
        self.skip, self.dims, self.deep = form.skip, dims, form.deep
        before = [outer[0], *outer]
        self.stem = conv(dims, 3, outer[0], 3)
        kinds = list(zip(before, outer, form.encoders, strict=False))
        self.encoders = nn.ModuleList(family(n).block(a, b, dims) for a, b, n in kinds)
        strided = form.down == "conv"
        self.downs = nn.ModuleList(
            CONV[dims](w, w, 2, stride=2) if strided else getattr(nn, f"MaxPool{dims}d")(2)
            for w in outer
        )
        self.middle = family(form.middle).block(outer[-1], inner, dims)
        below = form.widths[1:]
        self.ups = nn.ModuleList(Up(form.up, dims, b, w) for b, w in zip(below, outer, strict=True))
        both = 2 if form.skip == "concat" else 1
        self.decoders = nn.ModuleList(
            family(n).block(both * w, w, dims) for w, n in zip(outer, form.decoders, strict=True)
        )
        self.heads = nn.ModuleList(conv(dims, w, 2) for w in (outer if form.deep else outer[:1]))

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        x = self.stem(x)
        skips: list[Tensor] = []
        for block, down in zip(self.encoders, self.downs, strict=True):
            x = block(x)
            skips.append(x)
            x = down(x)
        x = self.middle(x)
        made: dict[str, Tensor] = {}
        for level in reversed(range(len(skips))):
            x = self.ups[level](x)
            if self.skip == "concat":
                x = torch.cat([x, skips[level]], 1)
            elif self.skip == "add":
                x = x + skips[level]
            x = self.decoders[level](x)
            if level < len(self.heads):
                made[f"level {level}"] = self.heads[level](x)
        return made if self.deep else made["level 0"]


@st.composite
def mixtures(draw: st.DrawFn, *, without: frozenset[str] = frozenset()) -> Mixture:
    """One or two reductions, widths of 8, 16 or 24, a family for every block.

    Args:
        without: names of families that are not drawn.
    """
    dims = draw(st.sampled_from((2, 2, 1, 3)))
    depth = draw(st.integers(1, 2 if dims < 3 else 1))
    fit = [f for f in FAMILIES if dims in f.dims and f.anywhere and f.name not in without]
    outside = st.sampled_from([f.name for f in fit if not f.slow])
    return Mixture(
        dims=dims,
        widths=tuple(draw(st.sampled_from((8, 16, 24))) for _ in range(depth + 1)),
        encoders=tuple(draw(outside) for _ in range(depth)),
        middle=draw(st.sampled_from([f.name for f in fit])),
        decoders=tuple(draw(outside) for _ in range(depth)),
        skip=draw(st.sampled_from(("concat", "add", "none"))),
        down=draw(st.sampled_from(("conv", "max"))),
        up=draw(st.sampled_from(("transposed", "resize", *(("shuffle",) if dims == 2 else ())))),
        deep=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )
