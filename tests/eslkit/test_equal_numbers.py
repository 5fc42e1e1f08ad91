"""Numbers that a model's code keeps about its widths: several are equal, and not all change."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import eslkit


class Checking(nn.Module):
    """A convolution that keeps its number of channels and looks whether they come."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        return self.conv(x)


def checking(widths: tuple[int, ...]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for before, width in zip((3, *widths), widths, strict=False):
        parts += [nn.Conv2d(before, width, 1), Checking(width)]
    return nn.Sequential(*parts, nn.Conv2d(widths[-1], 2, 1))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_of_equal_numbers_only_those_of_the_resized_group_change(which: int) -> None:
    """As diffusers' samplers: of three that keep the same number, one gets another width."""
    model, x = checking((8, 8, 8)), torch.rand(1, 3, 8, 8)
    wanted = {f"{2 * which}": 4, f"{2 * which + 1}.conv": 6}  # what it is given, and what it makes
    made = eslkit.resize(model, wanted, init="first", example_inputs=x)
    kept = [part.channels for part in made if isinstance(part, Checking)]
    assert kept == [4 if index == which else 8 for index in range(3)]
    assert made(x).shape == model(x).shape


class Asking(nn.Module):
    """A convolution that asserts how many channels come."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.conv = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.inputs
        return self.conv(x)


class AskingBlock(nn.Module):
    """A residual block of them, half as wide inside."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.body = nn.Sequential(
            Asking(inputs, half), nn.ReLU(), Asking(half, half), nn.ReLU(), Asking(half, outputs)
        )
        self.shortcut = Asking(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


def test_numbers_that_many_blocks_keep_are_found() -> None:
    """As the stacked hourglass: one width doubled is another's old one, over and over."""
    widths = [64, 128, 128, *[16] * 40]
    blocks = [AskingBlock(a, b) for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(nn.Conv2d(3, 64, 1), *blocks, nn.Conv2d(16, 3, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error", eslkit.ResizeWarning)
        big = eslkit.expand(model, example_inputs=torch.rand(1, 3, 4, 4))
    for old, new in zip(model.modules(), big.modules(), strict=True):
        if isinstance(old, Asking) and isinstance(new, Asking):
            assert new.inputs == new.conv.in_channels == 2 * old.inputs
            assert new.conv.out_channels == 2 * old.conv.out_channels


class Counting(nn.Module):
    """One module whose code counts the channels of several maps, as DPRNN's does."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.inputs, self.inner, self.outputs = widths
        before = (3, *widths)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(before))
        self.leave = nn.Conv2d(widths[-1], 2, 1)

    def counts(self) -> tuple[int, ...]:
        return self.inputs, self.inner, self.outputs

    def forward(self, x: Tensor) -> Tensor:
        for layer, count in zip(self.layers, self.counts(), strict=True):
            x = layer(x).reshape(-1, count, 8, 8)
        return self.leave(x)


class CountingInARow(Counting):
    """The same, its numbers in one list."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__(widths)
        del self.inputs, self.inner, self.outputs
        self.row = list(widths)

    def counts(self) -> tuple[int, ...]:
        return tuple(self.row)


class CountingByNumPy(Counting):
    """The same, its numbers NumPy's."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__(widths)
        self.inputs, self.inner, self.outputs = np.array(widths)


@pytest.mark.parametrize("kind", [Counting, CountingInARow, CountingByNumPy])
@pytest.mark.parametrize(
    "names", [n for k in (1, 2, 3) for n in itertools.combinations(range(3), k)]
)
@pytest.mark.parametrize("widths", [(8, 8, 8), (8, 8, 4), (4, 8, 8), (8, 4, 8)])
def test_of_equal_numbers_of_one_module_some_change(
    names: tuple[int, ...], widths: tuple[int, int, int], kind: type[Counting]
) -> None:
    model, x = kind(widths), torch.rand(1, 3, 8, 8)
    wanted = {f"layers.{index}": widths[index] // 2 for index in names}
    made = eslkit.resize(model, wanted, init="first", example_inputs=x)
    assert made(x).shape == model(x).shape
    assert type(made.counts()[0]) is type(model.counts()[0])
    assert made.counts() == tuple(layer.weight.shape[0] for layer in made.layers)


class Describing(nn.Module):
    """Keeps numbers that its code needs, and others that only describe it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.conv = nn.Conv2d(inputs // 2, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.split(self.inputs // 2, dim=1)
        return self.conv(first) + self.conv(second)


def test_numbers_that_only_describe_come_back_with_their_module() -> None:
    """As timm's selective kernels: many modules of one class, whose numbers change at times."""
    widths = [8, 8, 16, 16, 16, 8, 8]
    parts = [Describing(a, b) for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *parts, nn.Conv2d(8, 3, 1))
    made = eslkit.schedule(model, depth=0, granularity=1, example_inputs=torch.rand(1, 3, 4, 4))
    assert len(made.steps) > 4
    back = made.run(lambda network, step: {"parts": float(len(list(network)))}).model
    for old, new in zip(model, back, strict=True):
        if isinstance(old, Describing) and isinstance(new, Describing):
            assert (new.inputs, new.outputs) == (old.inputs, old.outputs)
