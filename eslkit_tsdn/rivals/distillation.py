"""Knowledge distillation: the small network learns from a large one's images, and features.

Hinton et al. 2015 for what comes out; Romero et al. ("FitNets", ICLR 2015) for what is inside.
An image denoiser has no classes to soften: the teacher's image is a second target, by L1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eslkit.errors import InputError
from eslkit.surgery.depth import clone
from eslkit_tsdn.budget import Budget, Machine
from eslkit_tsdn.data.source import NoisyBatch, Source
from eslkit_tsdn.fitting import Listener
from eslkit_tsdn.losses import Loss, float_images
from eslkit_tsdn.rivals.costs import TrainedPart, TrainingCost, batch_like, macs_of
from eslkit_tsdn.rivals.embeddings import (
    Embedded,
    TapPair,
    embedding_loss,
    lifting_macs,
    paired_taps,
)
from eslkit_tsdn.rivals.running import Frozen, Run, in_training
from eslkit_tsdn.rivals.taps import in_order, watched
from eslkit_tsdn.rivals.truth import Truth

__all__ = ["distil", "distil_cost"]


def distil(
    student: nn.Module,
    teacher: nn.Module,
    source: Source,
    *,
    budget: Budget,
    output: float = 0.5,
    feature: float = 0.0,
    taps: Sequence[TapPair] | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    folder: Path | None = None,
    listener: Listener | None = None,
    machine: Machine | None = None,
) -> nn.Module:
    """Train a small network against the truth and against a trained large network.

    `(1 - output) * L1(student, clean) + output * L1(student, teacher)`, each summed over the
    student's stages with `budget.weights`, `+ feature * sum of mean((Q_l F_l^S - F_l^T)^2)` with
    one 1x1 convolution Q_l per tap, which is thrown away at the end.

    Args:
        student: the small network with the weights to start from; it is not touched.
        teacher: the large one, trained; frozen, in eval mode, and not touched.
        source: training batches.
        budget: how long and how.
        output: weight of the teacher's image, from 0 to 1.
        feature: weight of the features; 0 looks at none.
        taps: pairs (module of the student, module of the teacher); by default the levels of both
            encoders.
        seed: of the training and the embeddings.
        loss: of the network and a batch, for networks that need one of their own; None for L1 on
            the image of every stage.
        folder: where it is kept; the same call goes on there after an interruption.
        listener: is told (updates made, loss).
        machine: where it runs; a GPU if there is one.

    Returns:
        A trained copy of the student.

    Raises:
        InputError: weights that cannot be, or taps that do not correspond.
        StoreError: the folder holds something else.
        TrainingError: it diverged.
    """
    _check(output, feature)
    run = Run("distil", source, budget, seed, folder, listener, machine, loss)
    made, wise = clone(student), Frozen(teacher, channels_last=budget.channels_last)
    told = _Told(wise, output, Truth(loss, budget.weights))
    if not feature:
        run.claim({"student": student, "teacher": teacher}, output=output, feature=feature)
        run.fit(made, loss=told)
        return made
    x = source.batch(0).noisy[:1]
    pairs, widths = paired_taps(student, teacher, x, taps=taps)
    run.claim(
        {"student": student, "teacher": teacher},
        output=output,
        feature=feature,
        taps=[list(pair) for pair in pairs],
    )
    inside = Embedded(made, [ours for ours, _ in pairs], widths, dims=x.ndim - 2, seed=seed)
    theirs = tuple(name for _, name in pairs)
    with in_training(made):
        run.fit(inside, loss=_ToldInside(told, theirs, feature), looks_inside=True)
    return made


def distil_cost(
    student: nn.Module,
    teacher: nn.Module,
    source: Source,
    *,
    iterations: int,
    feature: float = 0.0,
    taps: Sequence[TapPair] | None = None,
) -> TrainingCost:
    """What `distil` costs: the student trained, the teacher asked once per batch.

    Args:
        student: as there.
        teacher: as there.
        source: as there.
        iterations: the budget's.
        feature: as there; the embeddings count where it is not 0.
        taps: as there.
    """
    x = batch_like(source)
    trained, asked = macs_of(student, x), macs_of(teacher, x)
    if feature:
        trained += lifting_macs(student, teacher, source.batch(0).noisy[:1], taps=taps) * len(x)
    name = type(student).__name__
    return TrainingCost((TrainedPart(name, iterations, trained=trained, asked=asked),))


class _Told:
    """The truth and the teacher's image; with a network's own loss, for its last image alone."""

    def __init__(self, teacher: Frozen, output: float, truth: Truth) -> None:
        self.teacher, self.output, self.truth = teacher, output, truth

    def __call__(self, network: nn.Module, batch: NoisyBatch) -> Tensor:
        return self.of(network, batch, self.image(batch.noisy))

    def image(self, noisy: Tensor) -> Tensor:
        with torch.no_grad():
            return float_images(self.teacher.at(noisy)(noisy))[-1]

    def of(self, network: nn.Module, batch: NoisyBatch, image: Tensor) -> Tensor:
        true, images = self.truth(network, batch)
        return (1 - self.output) * true + self.output * self.truth.against(images, image)


class _ToldInside:
    """The same, and the teacher's features; it runs once for both."""

    def __init__(self, told: _Told, taps: Sequence[str], weight: float) -> None:
        self.told, self.taps, self.weight = told, taps, weight

    def __call__(self, network: Any, batch: NoisyBatch) -> Tensor:
        teacher = self.told.teacher.at(batch.noisy)
        with watched(teacher, self.taps) as caught:
            image = self.told.image(batch.noisy)
        wanted = in_order(caught, self.taps, teacher)
        with network.looking() as embedded:
            told = self.told.of(network.network, batch, image)
        return told + self.weight * embedding_loss(embedded(), wanted)


def _check(output: float, feature: float) -> None:
    if not 0 <= output <= 1:
        raise InputError(
            f"output={output}: the teacher's image weighs from 0 (the truth alone) to 1 (the "
            "teacher alone)."
        )
    if not 0 <= feature < float("inf"):
        raise InputError(f"feature={feature}: expected a weight of 0 or more.")
