"""Networks that keep tensors on themselves from one call to the next."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eslkit
from eslkit.errors import InputError
from eslkit.trainer import StepContext


class Keeping(nn.Module):
    """A recurrent cell; what it keeps, and how, is said by `keep` and `kept`."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 3, padding=1)
        self.cell = nn.Conv2d(16, 8, 3, padding=1)
        self.leave = nn.Conv2d(8, 3, 3, padding=1)
        self.state: Any = None

    def kept(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x) if self.state is None else self.state.detach()

    def keep(self, x: Tensor) -> None:
        self.state = x

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.enter(image))
        x = torch.tanh(self.cell(torch.cat([x, self.kept(x)], 1)))
        self.keep(x)
        return self.leave(x)


class InPairs(Keeping):
    """As an LSTM's two states."""

    def kept(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x) if self.state is None else self.state[0] * self.state[1]

    def keep(self, x: Tensor) -> None:
        self.state = (x.detach(), torch.sigmoid(x).detach())


class Counting(Keeping):
    """It has to be run more than once to be proved: a number of its own, and a question of mode."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8

    def keep(self, x: Tensor) -> None:
        image = x.shape[0], self.width, *x.shape[2:]
        self.state = x.view(image) if self.training else x.reshape(image)


class Neuron(nn.Module):
    """As a spiking neuron: its potential is a number before the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.potential: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.potential = self.potential + x
        spikes = torch.sigmoid(4 * (self.potential - 1))
        self.potential = (self.potential * (1 - spikes)).detach()
        return spikes


X = torch.rand(1, 3, 8, 8)


def spiking() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 1), Neuron(), nn.Conv2d(8, 3, 1))


@pytest.mark.parametrize(
    "make, where, empty",
    [
        (Keeping, "state", None),
        (InPairs, "state", None),
        (Counting, "state", None),
        (spiking, "1.potential", 0.0),
    ],
)
def test_a_state_of_an_earlier_call_is_told_and_without_it_all_works(
    make: Any, where: str, empty: float | None
) -> None:
    """It would be taken for a constant: channels fixed, or a wide network that does not run."""
    model = make().eval()
    fresh = eslkit.trace(model, example_inputs=X).widths
    with torch.no_grad():
        model(X)
    for call in (eslkit.trace, eslkit.expand, eslkit.schedule):
        with pytest.raises(InputError, match=rf"`{where}` of the model holds a tensor of shape"):
            call(model, example_inputs=X)
    path, _, name = where.rpartition(".")
    setattr(model.get_submodule(path), name, empty)
    assert eslkit.trace(model, example_inputs=X).widths == fresh != {}
    wide = eslkit.expand(model, width=2, depth=0, example_inputs=X)
    assert [wide(X).shape for _ in range(2)] == [X.shape] * 2


def test_networks_that_a_schedule_has_trained_may_hold_states() -> None:
    seen: list[int] = []

    def train(network: nn.Module, _: StepContext) -> None:
        seen.append(sum(p.numel() for p in network.parameters()))
        for _again in range(2):
            network(X).square().mean().backward()

    made = eslkit.schedule(Keeping(), depth=0, example_inputs=X).run(train)
    assert seen[0] > 3 * seen[-1]
    assert made.model(X).shape == X.shape


class Cached(Keeping):
    """What it keeps is the same in every call, or is looked at by others only."""

    def __init__(self) -> None:
        super().__init__()
        self.ramp = torch.arange(8.0)[None, None]
        self.calls = torch.zeros(())
        self.last = torch.zeros(1, 8, 8, 8)

    def kept(self, x: Tensor) -> Tensor:
        self.ramp = self.ramp[:, :, : x.shape[-1]]
        self.calls = self.calls + 1 + 0 * x.mean()
        return x * self.ramp / self.calls

    def keep(self, x: Tensor) -> None:
        self.last = x


def test_what_is_kept_but_no_state_is_left_alone() -> None:
    model = Cached()
    model(X)
    assert eslkit.trace(model, example_inputs=X).widths == {"enter": 8, "cell": 8}
    wide = eslkit.expand(model, width=2, depth=0, example_inputs=X)
    assert [wide(X).shape for _ in range(2)] == [X.shape] * 2
