"""The loss of the paper, L1 on the image of every stage; the losses of its variants and of CBDNet.

| network | loss |
|---|---|
| TSDN, TSDN4, ThSDN | `all_stages_l1`: every stage |
| TSDN2 | `last_stage_l1`: the last stage alone, the weights (0, 1) |
| TSDN3 | `one_stage_l1`: stage after stage, each trained behind those that are finished |
| CBDNet | `last_stage_l1`, as the paper trains its rivals; `cbdnet_loss`, its own |
| all others | one image, so all of the first two are the same |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eslkit.errors import InputError
from eslkit_tsdn.data.source import NoisyBatch

__all__ = [
    "Loss",
    "all_stages_l1",
    "cbdnet_criterion",
    "cbdnet_loss",
    "float_images",
    "last_stage_l1",
    "one_stage_l1",
    "stage_l1",
]

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
    return stage_l1(float_images(network(batch.noisy)), batch.clean, weights=weights)


def float_images(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The images that a network gave, in float32, whatever it computes in.

    Args:
        outputs: one image, or those of all stages.
    """
    images: Sequence[Tensor] = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    return [image.float() for image in images]


def last_stage_l1(network: nn.Module, batch: NoisyBatch) -> Tensor:
    """L1 on the last image alone: how the paper's TSDN2 is trained, and CBDNet beside the others.

    Args:
        network: gives one image or several tensors in training, the restored image last.
        batch: what it is shown.

    Returns:
        A scalar, computed in float32.
    """
    outputs = network(batch.noisy)
    image: Tensor = outputs if isinstance(outputs, Tensor) else outputs[-1]
    return F.l1_loss(image.float(), batch.clean)


def one_stage_l1(network: nn.Module, batch: NoisyBatch, *, stage: int) -> Tensor:
    """L1 on one stage's image, behind stages that are finished: how the paper's TSDN3 is trained.

    Args:
        network: has `stages`, a list of modules; a TSDN.
        batch: what it is shown.
        stage: which stage learns, from 0; those before it get no gradients, and those behind it
            are not computed.

    Returns:
        A scalar, computed in float32.

    Raises:
        InputError: the network has no such stage.
    """
    stages = getattr(network, "stages", None)
    if not isinstance(stages, nn.ModuleList) or not 0 <= stage < len(stages):
        number = len(stages) if isinstance(stages, nn.ModuleList) else 0
        raise InputError(
            f"stage={stage}: this {type(network).__name__} has {number} stages, counted from 0."
        )
    image = batch.noisy
    with torch.no_grad():
        for finished in stages[:stage]:
            image = finished(image)
    return F.l1_loss(stages[stage](image).float(), batch.clean)


def cbdnet_criterion(
    outputs: Sequence[Tensor],
    target: Tensor,
    *,
    sigma: Tensor | None = None,
    over: float = 0.3,
) -> Tensor:
    """CBDNet's loss: squared error, asymmetric error of the map, and the map's total variation.

    `MSE + 0.5 mean(w (map - sigma)^2) + 0.05 TV(map)`, where w is `over` at pixels whose noise is
    over-estimated and `1 - over` at the others (Guo et al., CVPR 2019, section 3.3). The CBDNet
    paper wants over-estimates to cost less, 0.3 against 0.7, for denoisers suffer more from an
    under-estimate. IDKiro's PyTorch port compares the other way round, so that in it
    over-estimates cost 0.7: `over=0.7`.

    Args:
        outputs: the map and the image, as a CBDNet in training gives them.
        target: the clean image, (batch, planes, height, width).
        sigma: the true standard deviation of the noise at every pixel, of the map's shape; None
            where it is not known, as for real pairs: then the asymmetric term is left out.
        over: the weight of over-estimates.

    Returns:
        A scalar. TV is the mean of the squared differences of vertical and of horizontal
        neighbours; the port adds them up over the batch instead of taking its mean.

    Raises:
        InputError: not two outputs, or a sigma of another shape.
    """
    if len(outputs) != 2:
        raise InputError(
            f"expected CBDNet's map and image, got {len(outputs)} tensor(s): this is a loss of "
            "CBDNet in training mode."
        )
    noise, image = (output.float() for output in outputs)
    loss = F.mse_loss(image, target)
    if sigma is not None:
        if sigma.shape != noise.shape:
            raise InputError(
                f"sigma has the shape {tuple(sigma.shape)}, the map of the noise "
                f"{tuple(noise.shape)}; they must agree."
            )
        weight = torch.where(noise > sigma, over, 1 - over)
        loss = loss + 0.5 * (weight * (noise - sigma).square()).mean()
    variation = sum(noise.diff(dim=axis).square().mean() for axis in (2, 3))
    return loss + 0.05 * variation


def cbdnet_loss(network: nn.Module, batch: NoisyBatch) -> Tensor:
    """CBDNet's own loss for pairs whose noise is not known pixel by pixel.

    Args:
        network: a CBDNet in training.
        batch: what it is shown.

    Returns:
        A scalar, `cbdnet_criterion` without a `sigma`.

    Raises:
        InputError: the network does not give a map and an image.
    """
    outputs = network(batch.noisy)
    return cbdnet_criterion((outputs,) if isinstance(outputs, Tensor) else outputs, batch.clean)
