"""The baseline that every method is measured against: the small network, simply trained."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from eslkit.surgery.depth import clone
from eslkit_tsdn.budget import Budget, Machine
from eslkit_tsdn.data.source import Source
from eslkit_tsdn.fitting import Listener
from eslkit_tsdn.losses import Loss
from eslkit_tsdn.rivals.running import Run

__all__ = ["train_scratch"]


def train_scratch(
    model: nn.Module,
    source: Source,
    *,
    budget: Budget,
    seed: int = 0,
    loss: Loss | None = None,
    folder: Path | None = None,
    listener: Listener | None = None,
    machine: Machine | None = None,
) -> nn.Module:
    """Train a network as it is, with L1 on the image of every stage.

    Args:
        model: the network with the weights to start from; it is not touched.
        source: training batches.
        budget: how long and how.
        seed: of the training.
        loss: of the network and a batch, for networks that need one of their own; None for L1 on
            the image of every stage.
        folder: where it is kept; the same call goes on there after an interruption.
        listener: is told (updates made, loss).
        machine: where it runs; a GPU if there is one.

    Returns:
        A trained copy.

    Raises:
        StoreError: the folder holds something else.
        TrainingError: it diverged.
    """
    run = Run("train_scratch", source, budget, seed, folder, listener, machine, loss)
    run.claim({"model": model})
    made = clone(model)
    run.fit(made)
    return made
