"""The loss of the paper: L1 on the image of every stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from eslkit.errors import InputError
from eslkit_tsdn.data.source import NoisyBatch

__all__ = ["Loss", "all_stages_l1", "stage_l1"]

Loss = Callable[[nn.Module, NoisyBatch], Tensor]
"""(network in training mode, batch) -> scalar. It calls the network itself."""


def stage_l1(
    outputs: Tensor | Sequence[Tensor],
    target: Tensor,
    *,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """The weighted sum of the mean absolute errors of all stages.

    Args:
        outputs: what the network returned in training: the images of all stages, or one
            image of a network without stages; each of the shape of `target`.
        target: the clean image, (batch, planes, height, width) in [0, 1].
        weights: one factor per stage, the paper's (alpha, beta); all 1 if left out.
            (The paper's equations print an L2 norm; its text, ELD and SID use L1.)

    Returns:
        A scalar.

    Raises:
        InputError: another number of weights than of stages.
    """
    images = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    factors = (1.0,) * len(images) if weights is None else tuple(weights)
    if len(factors) != len(images):
        raise InputError(
            f"weights has {len(factors)} factors {factors}, but the network returned "
            f"{len(images)} images: pass one factor per stage, or leave weights out for all 1."
        )
    errors = [
        factor * F.l1_loss(image, target) for factor, image in zip(factors, images, strict=True)
    ]
    return sum(errors[1:], start=errors[0])


def all_stages_l1(
    network: nn.Module, batch: NoisyBatch, *, weights: Sequence[float] | None = None
) -> Tensor:
    """What trainings minimize where nothing else is asked for: L1 on the image of every stage.

    Args:
        network: gives one image or the images of all stages in training.
        batch: what it is shown.
        weights: one factor per stage; all 1 if left out.

    Returns:
        A scalar, computed in float32 whatever the network computes in.

    Raises:
        InputError: another number of weights than of stages.
    """
    outputs = network(batch.noisy)
    images = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    return stage_l1([image.float() for image in images], batch.clean, weights=weights)
