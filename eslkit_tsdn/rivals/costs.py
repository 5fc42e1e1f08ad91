"""What a method's training costs in FLOPs, and how many iterations a budget of FLOPs allows.

Counted as everywhere in eslkit: 2 FLOPs for a multiply-accumulate (MAC) of the forward pass, and a
backward pass costs twice the forward one, once for the gradients of the weights and once for
those of the maps. So per update

- what is trained counts 3 times: forward, and both halves of the backward pass;
- what is frozen but passes gradients on counts twice: forward, and the maps' half;
- what is only asked (a teacher's answer) counts once.

A frozen part never counts more often than it runs. The training of a teacher is not in it: add
its own cost where the comparison shall bear it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eslkit.cost import cost
from eslkit.errors import InputError
from eslkit.graph.skeleton import skeleton
from eslkit_tsdn.data.source import Source
from eslkit_tsdn.rivals.taps import features

__all__ = [
    "TrainedPart",
    "TrainingCost",
    "batch_like",
    "iterations_for",
    "macs_of",
    "macs_until",
    "scratch_cost",
]


@dataclass(frozen=True)
class TrainedPart:
    """One training. MACs are those of one forward pass of one batch."""

    name: str
    """What is trained."""
    iterations: int
    """Optimizer updates."""
    trained: int
    """MACs of what is trained."""
    passed: int = 0
    """MACs of what is frozen and passes gradients on."""
    asked: int = 0
    """MACs of what is frozen and passes none."""

    @property
    def flops(self) -> int:
        """Of the whole training."""
        return 2 * self.iterations * (3 * self.trained + 2 * self.passed + self.asked)


@dataclass(frozen=True)
class TrainingCost:
    """What a method costs: the trainings that it consists of."""

    parts: tuple[TrainedPart, ...]
    """One after the other."""

    @property
    def flops(self) -> int:
        """Of all of them."""
        return sum(part.flops for part in self.parts)

    @property
    def iterations(self) -> int:
        """Optimizer updates of all of them."""
        return sum(part.iterations for part in self.parts)

    def __add__(self, other: TrainingCost) -> TrainingCost:
        """Both, one after the other."""
        return TrainingCost(self.parts + other.parts)


def iterations_for(flops: float, cost_of: Callable[[int], TrainingCost]) -> int:
    """The largest number of iterations with which a method costs no more than this.

    Args:
        flops: what it may cost.
        cost_of: iterations -> cost of the method, growing with the iterations.

    Raises:
        InputError: not even the fewest iterations that the method can have are within it.

    Example:
        >>> part = lambda n: TrainingCost((TrainedPart("model", n, trained=100),))
        >>> iterations_for(6000, part)
        10
    """

    def within(iterations: int) -> bool:
        try:
            return cost_of(iterations).flops <= flops
        except InputError:  # fewer than the method can be divided into
            return False

    low = next((n for n in range(1, 65) if within(n)), None)
    if low is None:
        raise InputError(
            f"flops={flops:.3g} is less than the first iterations of this method cost; allow more."
        )
    high = 2 * low
    while within(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low


def scratch_cost(model: nn.Module, source: Source, *, iterations: int) -> TrainingCost:
    """What `train_scratch` costs; with a large network, what its training costs.

    Args:
        model: the network.
        source: the training batches.
        iterations: updates.
    """
    macs = macs_of(model, batch_like(source))
    return TrainingCost((TrainedPart(type(model).__name__, iterations, trained=macs),))


def batch_like(source: Source) -> Tensor:
    """An input of the size that the training sees, without memory."""
    return torch.empty_like(source.batch(0).noisy, device="meta")


def macs_of(model: nn.Module, x: Tensor) -> int:
    """MACs of a forward pass of a batch like `x`; nothing is computed."""
    return cost(model, example_inputs=(torch.empty_like(x, device="cpu"),)).macs


def macs_until(model: nn.Module, x: Tensor, *, taps: Sequence[str]) -> int:
    """MACs of a forward pass that ends when all `taps` have run; nothing is computed."""
    copied: Any = skeleton(model, lambda tensor: torch.empty_like(tensor, device="meta"))
    with FlopCounterMode(display=False) as counter:
        features(copied.eval(), x.to("meta"), taps=taps)
    return counter.get_total_flops() // 2
