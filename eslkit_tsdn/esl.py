"""Expand-Shrink-Learning of a denoiser: a schedule whose every step is trained by `fit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from eslkit.driver import Event
from eslkit.paper import paper
from eslkit.schedule import Result, Schedule, schedule
from eslkit.trainer import StepContext
from eslkit_tsdn.budget import Budget, Machine
from eslkit_tsdn.data.source import NoisyBatch, Source
from eslkit_tsdn.fitting import Listener, fit
from eslkit_tsdn.journal import Validate
from eslkit_tsdn.losses import float_images, stage_l1
from eslkit_tsdn.optimizer import learning_rate_factor

__all__ = ["FitTrainer", "MakeSource", "plan_esl", "train_esl", "train_once"]

MakeSource = Callable[[StepContext], Source]
"""Step -> its training batches."""


ONCE = "ESL4"
"""The paper's row of a single training."""


class Fit(Protocol):
    """`fit`, or another function that is called like it."""

    def __call__(
        self,
        network: nn.Module,
        source: Source,
        *,
        budget: Budget,
        seed: int,
        folder: Path | None,
        listener: Listener | None,
        machine: Machine | None,
        callbacks: Sequence[Callback],
        checkpoint_every: int | None,
    ) -> dict[str, float]:
        """Train a network in place."""
        ...


@dataclass(frozen=True)
class FitTrainer:
    """Trains the steps of a schedule through `fit`, and validates after each."""

    source: Source | MakeSource
    """The batches of all steps, or a function of the step that gives its batches."""
    budget: Budget
    """Of every step that does not say how many iterations it has."""
    validate: Validate | None = None
    """Network -> metrics of the step."""
    machine: Machine | None = None
    """Where it runs."""
    listener: Callable[[StepContext, int, float], None] | None = None
    """Told the step, updates made and the loss."""
    callbacks: Callable[[StepContext], Sequence[Callback]] | None = None
    """Step -> Lightning's own callbacks."""
    method: Fit = fit
    """What trains a network."""
    checkpoint_every: int | None = None
    """As for `fit`."""

    def fit(self, model: nn.Module, step: StepContext) -> Mapping[str, float]:
        """Train the network of a step in place.

        Returns:
            `loss`, and what validation gave.
        """
        source = self.source(step) if callable(self.source) else self.source
        iterations = step.iterations or self.budget.iterations
        changes: dict[str, Any] = {"iterations": iterations}
        how: dict[str, Any] = {}
        if step.plan.rates != "restart" or step.plan.scale_rates:
            how["rate"] = partial(step.rate, iterations=iterations, shape=learning_rate_factor)
        if step.teacher is not None:
            how["loss"] = _Taught(step.teacher, step.teach, self.budget.weights)
            changes["weights"] = None
        losses = self.method(
            model,
            source,
            **how,
            budget=self.budget.model_copy(update=changes),
            seed=step.seed,
            folder=step.folder,
            listener=None if self.listener is None else partial(self.listener, step),
            machine=self.machine,
            callbacks=self.callbacks(step) if self.callbacks else (),
            checkpoint_every=self.checkpoint_every,
        )
        return {**losses, **(self.validate(model) if self.validate else {})}


class _Taught:
    """L1 on the image of every stage, against the truth and against the teacher's image."""

    def __init__(
        self, teacher: nn.Module, weight: float, stages: Sequence[float] | None = None
    ) -> None:
        self.teacher, self.weight, self.stages = teacher, weight, stages

    def __call__(self, network: nn.Module, batch: NoisyBatch) -> Tensor:
        images = float_images(network(batch.noisy))
        with torch.no_grad():
            told = float_images(self.teacher.to(batch.noisy.device)(batch.noisy))[-1]
        true = stage_l1(images, batch.clean, weights=self.stages)
        return true + self.weight * stage_l1(images, told, weights=self.stages)


def train_esl(
    model: nn.Module,
    source: Source | MakeSource,
    *,
    budget: Budget,
    out: Path | None = None,
    validate: Validate | None = None,
    machine: Machine | None = None,
    row: str | None = None,
    seed: int = 0,
    trainer: FitTrainer | None = None,
    followers: Sequence[Callable[[Event], None]] = (),
    **options: Any,
) -> Result:
    """Expand a network, train it, shrink it back step by step, training after each.

    Args:
        model: the small network; it is not touched.
        source: the batches of all trainings, or a function of the step that gives its batches.
        budget: of each training.
        out: the run's folder, one step per training; the same call goes on there.
        validate: network -> metrics, after every training.
        machine: where it runs; a GPU if there is one.
        row: a name of the paper's Tables III and IV, for `eslkit.paper`; None for the whole fine
            schedule of `eslkit.schedule`, which is the paper's `ESL3`.
        seed: of the whole schedule.
        trainer: trains the steps instead of a `FitTrainer` made of the arguments above.
        followers: told of every step that begins and ends.
        **options: further ones of `eslkit.schedule` or `eslkit.paper`, such as `width`, `depth`,
            `init` or `granularity`.

    Returns:
        The small network with its new weights, and the record of every training.

    Raises:
        EslError: the network cannot be expanded, the folder holds another run, or a training
            diverged.
    """
    planned = plan_esl(model, source, budget=budget, row=row, seed=seed, **options)
    trainer = trainer or FitTrainer(source, budget, validate, machine)
    return planned.run(trainer, out=out, callbacks=followers)


def train_once(
    model: nn.Module,
    source: Source | MakeSource,
    *,
    budget: Budget,
    out: Path | None = None,
    validate: Validate | None = None,
    machine: Machine | None = None,
    seed: int = 0,
    trainer: FitTrainer | None = None,
    followers: Sequence[Callable[[Event], None]] = (),
    **options: Any,
) -> Result:
    """Train a network as it is, in a run's folder like those of `train_esl`.

    A schedule of a single training, the paper's `ESL4`, that begins with the weights that the
    network has. The arguments are those of `train_esl`.
    """
    return train_esl(
        model,
        source,
        budget=budget,
        out=out,
        validate=validate,
        machine=machine,
        row=ONCE,
        seed=seed,
        trainer=trainer,
        followers=followers,
        **options,
    )


def plan_esl(
    model: nn.Module,
    source: Source | MakeSource,
    *,
    budget: Budget,
    row: str | None = None,
    seed: int = 0,
    **options: Any,
) -> Schedule:
    """The schedule that `train_esl` runs with the same arguments.

    Returns:
        The schedule, planned on a single crop.

    Raises:
        EslError: the network cannot be expanded.
    """
    side = 64 if callable(source) else max(64, min(source.crop, 128))
    options = {"example_inputs": torch.zeros(1, 4, side, side), **options}
    if row is None:
        return schedule(model, iterations=budget.iterations, seed=seed, **options)
    planned = paper(model, row, iterations=budget.iterations, seed=seed, **options)
    if row != ONCE:
        return planned
    # The paper's row begins with random weights; here the model's own are what is trained.
    steps = (planned.plan.steps[0].model_copy(update={"init": "preserve"}),)
    return replace(planned, plan=planned.plan.model_copy(update={"steps": steps}))
