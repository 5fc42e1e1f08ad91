"""Networks that do one thing while they are trained and another one when they are used."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eslkit
from eslkit.trainer import StepContext
from tests.tolerances import FLOAT32_FORWARD


class Merging(nn.Module):
    """Two convolutions and a gain between them, merged in eval mode by a number that it keeps."""

    def __init__(self, channels: int, middle: int) -> None:
        super().__init__()
        self.middle = middle
        self.first = nn.Conv2d(channels, middle, 1, bias=False)
        self.gain = nn.Parameter(torch.ones(middle))
        self.second = nn.Conv2d(middle, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.second(self.first(x) * self.gain[:, None, None])
        return F.conv2d(x, self.merged(), self.second.bias, padding=1)

    def merged(self) -> Tensor:
        gains = torch.ones(self.middle, 1) * self.gain.view(-1, 1)
        rows = gains * self.first.weight[:, :, 0, 0]
        return torch.einsum("omhw,mi->oihw", self.second.weight, rows)


class Network(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.enter, self.block = nn.Conv2d(3, 8, 1), block
        self.leave = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.relu(self.block(torch.relu(self.enter(x)))))


X = torch.rand(1, 3, 8, 8)


def agree(model: nn.Module) -> None:
    FLOAT32_FORWARD.check(model.eval()(X), model.train()(X))


def test_numbers_that_only_eval_mode_reads_go_along() -> None:
    model = Network(Merging(8, 12))
    agree(model)
    wide = eslkit.expand(model, width=2, example_inputs=X)
    assert isinstance(wide.block, Merging)
    assert wide.block.middle == 24
    agree(wide)
    modes: list[bool] = []

    def train(network: nn.Module, _: StepContext) -> None:
        agree(network)
        modes.append(network.training)

    back = eslkit.schedule(model, granularity=2, depth=0, example_inputs=X).run(train).model
    assert len(modes) > 2
    assert back.block.middle == 12  # type: ignore[union-attr]
    agree(back)


class Written(nn.Module):
    """Its code for eval mode has the number of channels in it."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x.reshape(-1, 2, 4, *x.shape[2:]).flatten(1, 2)


def test_what_eval_mode_forbids_is_not_offered() -> None:
    graph = eslkit.trace(Network(Written()), example_inputs=X)
    assert graph.widths == {}
    assert "in eval mode, RuntimeError: Invalid channel" in (graph.group("enter").protected or "")
    with pytest.warns(eslkit.ResizeWarning):
        agree(eslkit.expand(Network(Written()), width=2, depth=0, example_inputs=X))


class Larger(nn.Module):
    """Gives pictures of another size in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else F.interpolate(x, scale_factor=2)


class Unused(nn.Module):
    """Has never been run in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x
        raise NotImplementedError("later")


@pytest.mark.parametrize("block", [Larger(), Unused(), nn.Dropout()])
def test_another_size_in_eval_mode_or_none_is_the_networks_own_matter(block: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", eslkit.ResizeWarning)
        wide = eslkit.expand(Network(block), width=2, depth=0, example_inputs=X)
    assert wide.enter.out_channels == 16  # type: ignore[union-attr]
    assert wide.train()(X).shape == X.shape
