"""Numbers that public networks keep, or make, and read where nobody looks for them."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import Tensor, nn

import eslkit


class TimedBlock(nn.Module):
    """A residual block that looks whether its width changes, as those of diffusion models do."""

    def __init__(self, inputs: int, outputs: int, times: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(times, outputs)
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        assert x.shape[1] == self.inputs
        y = torch.relu(self.conv(x)) + self.time(time)[:, :, None, None]
        return y + (self.shortcut(x) if x.shape[1] != self.outputs else x)


class Timed(nn.Module):
    """Blocks of them, whose widths are twice one another's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 2 * width, 4 * width, width]
        self.time, self.enter = nn.Linear(3, 4 * width), nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            TimedBlock(a, b, 4 * width) for a, b in itertools.pairwise(widths)
        )
        self.leave = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x, time = self.enter(x), torch.relu(self.time(time))
        for block in self.blocks:
            x = block(x, time)
        return self.leave(x)


@pytest.mark.parametrize("width", [4, 8])
def test_a_number_that_has_its_new_value_is_not_changed_again(width: int) -> None:
    """Twice a width is another one: a number set to its new value looks like an old one."""
    model, example = Timed(width), (torch.rand(1, 3, 7, 7), torch.rand(1, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error", eslkit.ResizeWarning)
        big = eslkit.expand(model, example_inputs=example)
    for old, new in zip(model.blocks, big.blocks, strict=True):
        assert isinstance(old, TimedBlock)
        assert (new.inputs, new.outputs) == (2 * old.inputs, 2 * old.outputs)
    assert big(*example).shape == (1, 3, 7, 7)


class Repeating(nn.Module):
    """Its code calls an activation as often as there are eight channels."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
        self.more, self.leave = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for _ in range(x.shape[1] // 8):
            x = self.act(x)
        return self.leave(self.act(self.more(x)))


def test_results_are_those_of_the_same_call_where_code_calls_more() -> None:
    model, x = Repeating(), torch.rand(1, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", eslkit.ResizeWarning)
        big = eslkit.expand(model, example_inputs=x)
    assert big.more.weight.shape == (24, 16, 3, 3)
    assert big(x).shape == model(x).shape
