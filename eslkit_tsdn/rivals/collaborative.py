"""Collaborative Distillation, from style transfer to any two U-shaped networks.

Wang et al., "Collaborative Distillation for Ultra-Resolution Universal Style Transfer", CVPR 2020
(facts, section 4). The small encoder's features, lifted by a 1x1 convolution each, shall be what
the large decoder can work with. The paper of TSDN names the method for U-Net and SU-Net and tells
no details, so there are two forms of it here. In both the lifting layers (175,584 parameters for
that pair) are thrown away at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import eslkit
from eslkit.errors import InputError, UnsupportedError
from eslkit.surgery.depth import clone
from eslkit_tsdn.budget import Budget, Machine
from eslkit_tsdn.data.source import NoisyBatch, Source
from eslkit_tsdn.fitting import Listener
from eslkit_tsdn.losses import Loss, float_images, stage_l1
from eslkit_tsdn.rivals.costs import TrainedPart, TrainingCost, batch_like, macs_of, macs_until
from eslkit_tsdn.rivals.embeddings import (
    Embedded,
    TapPair,
    embedding_loss,
    lifting_macs,
    paired_taps,
    quiet_copy,
)
from eslkit_tsdn.rivals.running import Frozen, Run, divided, in_training
from eslkit_tsdn.rivals.taps import features, num_descents, reached, replaced
from eslkit_tsdn.rivals.truth import Truth

__all__ = ["collaborative_cost", "distil_collaboratively", "num_embedding_parameters"]

Form = Literal["simple", "faithful"]


def distil_collaboratively(
    student: nn.Module,
    teacher: nn.Module,
    source: Source,
    *,
    budget: Budget,
    form: Form = "simple",
    embedding: float = 10.0,
    perceptual: tuple[float, float] = (1.0, 0.01),
    init: str | None = None,
    taps: Sequence[TapPair] | None = None,
    seed: int = 0,
    loss: Loss | None = None,
    folder: Path | None = None,
    listener: Listener | None = None,
    machine: Machine | None = None,
) -> nn.Module:
    """Train a small U-shaped network with the features of a large one of the same form.

    With F_l the maps of encoder level l, Q_l one 1x1 convolution per level, embedded the sum over
    levels of `mean((Q_l F_l^S - F_l^T)^2)`, and perceptual the sum over levels of the mean squared
    difference between the large encoder's maps of the restored and of the clean image:

    - "simple": `L1(student, clean) + embedding * embedded`, one training.
    - "faithful", as the method's own code, in two trainings of half the iterations each. First the
      small encoder and Q: `L1(large decoder on Q_l F_l^S, clean) + embedding * embedded +
      perceptual[0] * perceptual`. Then, with that encoder frozen, the rest of the small network:
      `L1(student, clean) + perceptual[1] * perceptual`.

    Args:
        student: the small network with the weights to start from; it is not touched.
        teacher: the large one, trained; frozen, in eval mode, and not touched.
        source: training batches.
        budget: of all of it.
        form: which of the two.
        embedding: weight of the embedded features; 10 in the method's code.
        perceptual: weights in the first and the second training of "faithful".
        init: policy by which the student starts from the teacher (`eslkit.inherit`); the method's
            code prunes by "l1". None leaves the student as it is.
        taps: pairs (module of the student, module of the teacher); found if left out.
        seed: of the trainings and the embeddings.
        loss: of the network and a batch, for networks that need one of their own; None for L1 on
            the image of every stage.
        folder: where it is kept; the same call goes on there after an interruption.
        listener: is told (updates made, loss).
        machine: where it runs; a GPU if there is one.

    Returns:
        A trained copy of the student.

    Raises:
        InputError: a weight or a form that cannot be, or taps that do not correspond.
        UnsupportedError: "faithful" for networks of several stages.
        StoreError: the folder holds something else.
        TrainingError: it diverged.
    """
    _check(form, embedding, perceptual)
    x = source.batch(0).noisy[:1]
    pairs, widths = paired_taps(student, teacher, x, taps=taps)
    run = Run("distil_collaboratively", source, budget, seed, folder, listener, machine, loss)
    run.claim(
        {"student": student, "teacher": teacher},
        form=form,
        embedding=embedding,
        perceptual=list(perceptual),
        init=init,
        taps=[list(pair) for pair in pairs],
    )
    made = clone(student)
    if init is not None:
        made = eslkit.inherit(made, teacher, init=init, example_inputs=(x,))
    inside = Embedded(made, [ours for ours, _ in pairs], widths, dims=x.ndim - 2, seed=seed)
    wise = Frozen(teacher, channels_last=budget.channels_last)
    losses = _Losses(
        wise, tuple(theirs for _, theirs in pairs), embedding, Truth(loss, budget.weights)
    )
    with in_training(made):
        if form == "simple":
            run.fit(inside, loss=losses.simple, looks_inside=True)
        else:
            _faithful(run, inside, losses, perceptual, x)
    return made


def num_embedding_parameters(widths: Sequence[tuple[int, int]]) -> int:
    """Parameters of the lifting layers, which only training has.

    Args:
        widths: channels of the small and of the large network per tap.
    """
    return sum(small * large + large for small, large in widths)


def collaborative_cost(
    student: nn.Module,
    teacher: nn.Module,
    source: Source,
    *,
    iterations: int,
    form: Form = "simple",
    perceptual: tuple[float, float] = (1.0, 0.01),
    taps: Sequence[TapPair] | None = None,
) -> TrainingCost:
    """What `distil_collaboratively` costs, with every run of a part of the teacher.

    Args:
        student: as there.
        teacher: as there.
        source: as there.
        iterations: the budget's.
        form: as there.
        perceptual: as there; a weight of 0 costs nothing.
        taps: as there.

    Raises:
        InputError: a form that cannot be, or too few iterations for its trainings.
    """
    _check(form, 0.0, perceptual)
    x, one = batch_like(source), source.batch(0).noisy[:1]
    pairs, _ = paired_taps(student, teacher, one, taps=taps)
    ours, theirs = ([pair[i] for pair in pairs] for i in (0, 1))
    lifting = lifting_macs(student, teacher, one, taps=pairs) * len(x)
    small, large = macs_of(student, x), macs_of(teacher, x)
    encoder, looked = macs_until(student, x, taps=ours), macs_until(teacher, x, taps=theirs)
    if form == "simple":
        return TrainingCost(
            (TrainedPart("student", iterations, trained=small + lifting, asked=looked),)
        )
    first, second = divided(iterations, parts=2)
    seen = [looked if weight else 0 for weight in perceptual]
    return TrainingCost(
        (
            TrainedPart(
                "encoder",
                first,
                trained=encoder + lifting,
                passed=large - looked + seen[0],
                asked=looked + seen[0],
            ),
            TrainedPart(
                "decoder",
                second,
                trained=small - encoder,
                passed=seen[1],
                asked=encoder + seen[1],
            ),
        )
    )


def _faithful(
    run: Run, inside: Embedded, losses: _Losses, perceptual: tuple[float, float], x: Tensor
) -> None:
    if num_descents(inside.network, x) > 1:
        raise UnsupportedError(
            f"form='faithful' trains an encoder and then a decoder, but the "
            f"{type(inside.network).__name__} has several of each in a row. Use form='simple'."
        )
    encoder = reached(quiet_copy(inside.network), x, taps=inside.taps)
    names = [name for name, _ in inside.network.named_parameters()]
    decoder = [name for name in names if name not in encoder]
    if not decoder:
        raise UnsupportedError(
            "form='faithful' trains what follows the taps last, and nothing with parameters does. "
            "Use form='simple', or taps further up."
        )
    lifting = [f"embeddings.{name}" for name, _ in inside.embeddings.named_parameters()]
    first, second = divided(run.budget.iterations, parts=2)
    run.fit(
        inside,
        part="encoder",
        iterations=first,
        loss=lambda network, batch: losses.encoder(network, batch, perceptual[0]),
        trainable=[*(f"network.{name}" for name in names if name in encoder), *lifting],
        looks_inside=True,
    )
    frozen = _modules_of(inside.network, encoder)
    run.fit(
        inside.network,
        part="decoder",
        iterations=second,
        done=first,
        loss=lambda network, batch: losses.decoder(network, batch, perceptual[1], frozen),
        trainable=decoder,
        looks_inside=True,
    )


def _modules_of(network: nn.Module, parameters: frozenset[str]) -> tuple[nn.Module, ...]:
    """The layers that hold nothing but these parameters."""
    layers: list[nn.Module] = []
    for prefix, layer in network.named_modules():
        own = [f"{prefix}.{name}".lstrip(".") for name, _ in layer.named_parameters(recurse=False)]
        if own and parameters.issuperset(own):
            layers.append(layer)
    return tuple(layers)


@dataclass(frozen=True)
class _Losses:
    """What is minimized, with the large network at hand."""

    teacher: Frozen
    taps: tuple[str, ...]
    embedding: float
    truth: Truth

    def simple(self, network: Any, batch: NoisyBatch) -> Tensor:
        """Truth and features."""
        wanted = self._told(batch.noisy)
        with network.looking() as embedded:
            true, _ = self.truth(network.network, batch)
        return true + self.embedding * embedding_loss(embedded(), wanted)

    def encoder(self, network: Any, batch: NoisyBatch, perceptual: float) -> Tensor:
        """The small encoder before the large decoder."""
        wanted = self._told(batch.noisy)
        embedded = network.encode(batch.noisy)
        teacher = self.teacher.at(batch.noisy)
        with replaced(teacher, dict(zip(self.taps, embedded, strict=True))):
            restored = float_images(teacher(batch.noisy))[-1]
        loss = stage_l1(restored, batch.clean) + self.embedding * embedding_loss(embedded, wanted)
        return loss + self._perceptual(restored, batch, perceptual)

    def decoder(
        self, network: nn.Module, batch: NoisyBatch, perceptual: float, frozen: Sequence[nn.Module]
    ) -> Tensor:
        """The small network behind its frozen encoder, whose norms keep their statistics too."""
        for layer in frozen:
            layer.training = False
        true, images = self.truth(network, batch)
        return true + self._perceptual(images[-1], batch, perceptual)

    def _told(self, x: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return features(self.teacher.at(x), x, taps=self.taps)

    def _perceptual(self, restored: Tensor, batch: NoisyBatch, weight: float) -> Tensor:
        if not weight:
            return restored.new_zeros(())
        seen = features(self.teacher.at(restored), restored, taps=self.taps)
        return weight * embedding_loss(seen, self._told(batch.clean))


def _check(form: str, embedding: float, perceptual: tuple[float, float]) -> None:
    if form not in ("simple", "faithful"):
        raise InputError(f"form={form!r}: expected 'simple' or 'faithful'.")
    for name, value in {"embedding": embedding, "perceptual": min(perceptual)}.items():
        if not 0 <= value < float("inf"):
            raise InputError(f"{name}={value}: expected weights of 0 or more.")
