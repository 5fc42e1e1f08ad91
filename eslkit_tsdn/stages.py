"""TSDN trained stage by stage, as the paper's TSDN3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lightning.pytorch import Callback
from torch import nn

from eslkit.errors import InputError
from eslkit_tsdn.budget import Budget, Machine
from eslkit_tsdn.data.source import Source
from eslkit_tsdn.fitting import Listener, fit
from eslkit_tsdn.losses import one_stage_l1
from eslkit_tsdn.models import TSDN

__all__ = ["fit_stage_by_stage"]


def fit_stage_by_stage(
    network: nn.Module,
    source: Source,
    *,
    budget: Budget,
    rate: Callable[[int], float] | None = None,
    seed: int = 0,
    folder: Path | None = None,
    listener: Listener | None = None,
    machine: Machine | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_every: int | None = None,
) -> dict[str, float]:
    """Train the stages of a TSDN in place, one after the other, and leave them chained.

    The first stage learns to denoise alone; then the second learns to restore what the first,
    which no longer changes, makes of the noisy image; and so on. The paper does not say more of
    its TSDN3 than that its stages are trained independently.

    Args:
        network: a TSDN.
        source: gives batch k to update k of every stage.
        budget: of each stage's training; without `weights`, for there is one image at a time.
        rate: as for `fit`, in the training of every stage.
        seed: as for `fit`, the same for every stage.
        folder: gets a folder for every stage; killed and called again, it goes on there.
        listener: is told how many updates of all stages together are made.
        machine: where it runs, as for `fit`.
        callbacks: Lightning's own, for the last stage's training.
        checkpoint_every: as for `fit`.

    Returns:
        `loss_stage1`, `loss_stage2` and so on, of the last update of each.

    Raises:
        InputError: the network is no TSDN, the budget has weights, or as for `fit`.
        StoreError: as for `fit`.
        TrainingError: as for `fit`.
    """
    if budget.weights is not None:
        raise InputError(
            f"weights={budget.weights}: stages that are trained one by one have no weights beside "
            "each other; leave them out."
        )
    if not isinstance(network, TSDN):
        raise InputError(
            f"A {type(network).__name__} has no stages to be trained one after the other; pass a "
            "TSDN."
        )
    losses: dict[str, float] = {}
    for stage in range(len(network.stages)):
        metrics = fit(
            network,
            source,
            budget=budget,
            loss=partial(one_stage_l1, stage=stage),
            rate=rate,
            seed=seed,
            folder=None if folder is None else folder / f"stage{stage + 1}",
            listener=partial(_tell, listener, stage * budget.iterations) if listener else None,
            trainable=partial(_belongs, prefix=f"stages.{stage}."),
            machine=machine,
            callbacks=callbacks if stage == len(network.stages) - 1 else (),
            checkpoint_every=checkpoint_every,
        )
        losses[f"loss_stage{stage + 1}"] = metrics["loss"]
    return losses


def _tell(listener: Listener, before: int, done: int, loss: float) -> None:
    listener(before + done, loss)


def _belongs(name: str, *, prefix: str) -> bool:
    return name.startswith(prefix)
