"""ExpandNets as a method: the expanded network is trained, what comes back is the small one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from torch import nn

from eslkit_tsdn.budget import Budget, Machine
from eslkit_tsdn.data.source import Source
from eslkit_tsdn.fitting import Listener
from eslkit_tsdn.losses import Loss
from eslkit_tsdn.rivals.costs import TrainedPart, TrainingCost, batch_like, macs_of
from eslkit_tsdn.rivals.expansion import Expansion, Start, contract, expand_convolutions
from eslkit_tsdn.rivals.running import Run

__all__ = ["expandnet_cost", "train_expandnet"]


def train_expandnet(
    model: nn.Module,
    source: Source,
    *,
    budget: Budget,
    rate: int = 4,
    expansion: Expansion = "CL",
    init: Start = "default",
    transposed: bool = False,
    slim: Collection[str] = (),
    seed: int = 0,
    loss: Loss | None = None,
    folder: Path | None = None,
    listener: Listener | None = None,
    machine: Machine | None = None,
) -> nn.Module:
    """Expand a network's convolutions, train, and contract.

    Args:
        model: the small network; with `init="default"` its expanded layers' weights do not
            count, with "same" it is what the training starts from. It is not touched.
        source: training batches.
        budget: how long and how.
        rate: as for `expand_convolutions`; 4 in the paper.
        expansion: as there.
        init: as there.
        transposed: as there.
        slim: as there.
        seed: of the new weights and the training.
        loss: of the network and a batch, for networks that need one of their own; None for L1 on
            the image of every stage.
        folder: where it is kept; the same call goes on there after an interruption.
        listener: is told (updates made, loss).
        machine: where it runs; a GPU if there is one.

    Returns:
        A trained network of the model's class, keys and shapes.

    Raises:
        InputError: as `expand_convolutions`.
        UnsupportedError: the model has no convolution to expand.
        StoreError: the folder holds something else.
        TrainingError: it diverged.
    """
    expanded = expand_convolutions(
        model,
        rate=rate,
        expansion=expansion,
        init=init,
        transposed=transposed,
        slim=slim,
        seed=seed,
    )
    run = Run("train_expandnet", source, budget, seed, folder, listener, machine, loss)
    run.claim(
        {"model": model},
        rate=rate,
        expansion=expansion,
        init=init,
        transposed=transposed,
        slim=sorted(slim),
    )
    run.fit(expanded)
    return contract(expanded)


def expandnet_cost(
    model: nn.Module,
    source: Source,
    *,
    iterations: int,
    rate: int = 4,
    expansion: Expansion = "CL",
    transposed: bool = False,
    slim: Collection[str] = (),
) -> TrainingCost:
    """What `train_expandnet` costs: the expanded network's training.

    Args:
        model: as there.
        source: as there.
        iterations: the budget's.
        rate: as there.
        expansion: as there.
        transposed: as there.
        slim: as there.

    Raises:
        InputError: as `expand_convolutions`.
        UnsupportedError: the model has no convolution to expand.
    """
    expanded = expand_convolutions(
        model, rate=rate, expansion=expansion, transposed=transposed, slim=slim
    )
    macs = macs_of(expanded, batch_like(source))
    return TrainingCost((TrainedPart(type(model).__name__, iterations, trained=macs),))
