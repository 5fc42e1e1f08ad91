"""What every training draws from: batches by number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["SID_RATIOS", "NoisyBatch", "Ratios", "Source"]


class Ratios(NamedTuple):
    """Which exposure ratios drawn noise has."""

    low: float
    """The smallest; 1 is a picture that is bright enough as it is."""
    high: float
    """The largest."""
    even_in_stops: bool = False
    """Whether every stop is equally likely, rather than every ratio."""

    def draw(self, count: int, *, generator: torch.Generator) -> Tensor:
        """So many ratios, (count,)."""
        share = torch.rand(count, generator=generator)
        if self.even_in_stops:
            return self.low * (self.high / self.low) ** share
        return self.low + (self.high - self.low) * share


SID_RATIOS = Ratios(100.0, 300.0)
"""ELD's training, and the paper's."""


class NoisyBatch(NamedTuple):
    """What one iteration trains on.

    Shapes: `noisy` and `clean` (batch, 4, crop, crop) in [0, 1], `ratio` (batch,).
    """

    noisy: Tensor
    clean: Tensor
    ratio: Tensor


class Source(Protocol):
    """Training batches, whatever they are made of.

    Batch k is a function of the source and of k alone, so that a training that goes on at
    iteration k sees what an uninterrupted one would have seen.
    """

    batch_size: int
    """Crops in a batch."""
    crop: int
    """Height and width of a crop, in packed pixels."""

    def batch(self, index: int) -> NoisyBatch:
        """Batch number `index`, from 0, without an end: epochs follow one another."""
        ...

    def batches(self, start: int, stop: int) -> Iterator[NoisyBatch]:
        """Batches `start` to `stop - 1`, in order."""
        ...
