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
from eslkit_tsdn.losses import stage_l1
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

__all__ = ["distil", "distil_cost", "float_images"]


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
    run = Run("distil", source, budget, seed, folder, listener, machine)
    made, wise = clone(student), Frozen(teacher, channels_last=budget.channels_last)
    if not feature:
        run.claim({"student": student, "teacher": teacher}, output=output, feature=feature)
        run.fit(made, loss=_OutputLoss(wise, output, budget.weights))
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
    loss = _FeatureLoss(_OutputLoss(wise, output, budget.weights), theirs, feature)
    with in_training(made):
        run.fit(inside, loss=loss, looks_inside=True)
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


class _OutputLoss:
    """The truth and the teacher's image, both by L1."""

    def __init__(
        self, teacher: Frozen, output: float, weights: Sequence[float] | None = None
    ) -> None:
        self.teacher, self.output, self.weights = teacher, output, weights

    def __call__(self, network: nn.Module, batch: NoisyBatch) -> Tensor:
        return self.of(network(batch.noisy), self.image(batch.noisy), batch)

    def image(self, noisy: Tensor) -> Tensor:
        with torch.no_grad():
            return float_images(self.teacher.at(noisy)(noisy))[-1]

    def of(self, outputs: Any, image: Tensor, batch: NoisyBatch) -> Tensor:
        images = float_images(outputs)
        true = stage_l1(images, batch.clean, weights=self.weights)
        told = stage_l1(images, image, weights=self.weights)
        return (1 - self.output) * true + self.output * told


class _FeatureLoss:
    """The same, and the teacher's features; it runs once for both."""

    def __init__(self, outputs: _OutputLoss, taps: Sequence[str], weight: float) -> None:
        self.outputs, self.taps, self.weight = outputs, taps, weight

    def __call__(self, network: Any, batch: NoisyBatch) -> Tensor:
        teacher = self.outputs.teacher.at(batch.noisy)
        with watched(teacher, self.taps) as caught:
            image = self.outputs.image(batch.noisy)
        wanted = in_order(caught, self.taps, teacher)
        outputs, embedded = network.look(batch.noisy)
        told = self.outputs.of(outputs, image, batch)
        return told + self.weight * embedding_loss(embedded, wanted)


def float_images(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The images of all stages in float32, whatever the network computes in."""
    images = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    return [image.float() for image in images]


def _check(output: float, feature: float) -> None:
    if not 0 <= output <= 1:
        raise InputError(
            f"output={output}: the teacher's image weighs from 0 (the truth alone) to 1 (the "
            "teacher alone)."
        )
    if not 0 <= feature < float("inf"):
        raise InputError(f"feature={feature}: expected a weight of 0 or more.")
