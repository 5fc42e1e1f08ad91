"""How close a restored picture is to the clean one: PSNR, SSIM and the protocols of the field.

ELD's protocol is the one that the paper names (facts.md section 11, steps 5 to 8; ELD's
`util/index.py`). Every table names its protocol: scenes, crops and corrections move the figures
by more than methods do.

Everything works on batches of packed pictures (B, C, H, W) in [0, 1], one value per picture,
computed in float64 on the pictures' own device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eslkit.errors import InputError

__all__ = [
    "ELD_CROP",
    "PROTOCOLS",
    "Protocol",
    "centre_crop",
    "eld_protocol",
    "illuminance_correct",
    "plain_protocol",
    "psnr",
    "residual_noise",
    "ssim",
]

ELD_CROP = 512
"""Side of the centre crop, in packed pixels, that ELD's evaluation cuts before the network."""

_WINDOW = 7
_K1, _K2 = 0.01, 0.03


def psnr(pred: Tensor, target: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio, one mean squared error over all channels and pixels.

    The same number as scikit-image's on the values times 255 with data_range 255. Nothing is
    clipped.

    Args:
        pred: (B, C, H, W).
        target: (B, C, H, W).
        data_range: the largest possible value less the smallest.

    Returns:
        (B,) float64, in dB; inf where both are equal.

    Raises:
        InputError: the shapes differ or are not (B, C, H, W).
    """
    a, b = _checked(pred, target)
    error = (a - b).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(data_range**2 / error)


def ssim(pred: Tensor, target: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Structural similarity with scikit-image's defaults, per channel, then the mean.

    7x7 uniform window, K1 = .01, K2 = .03, sample covariance, pixels within 3 of the border left
    out. The same number as on the values times 255 with data_range 255. Nothing is clipped.

    Args:
        pred: (B, C, H, W), H and W of 7 at least.
        target: (B, C, H, W).
        data_range: the largest possible value less the smallest.

    Returns:
        (B,) float64, in [-1, 1].

    Raises:
        InputError: the shapes differ, are not (B, C, H, W), or are smaller than the window.
    """
    a, b = _checked(pred, target)
    if min(a.shape[-2:]) < _WINDOW:
        raise InputError(
            f"SSIM needs {_WINDOW}x{_WINDOW} pixels at least, got {a.shape[-2]}x{a.shape[-1]}"
        )
    # Plane by plane: some ten maps of float64 are alive at once, 24 MiB each for a full frame.
    planes = zip(a.flatten(0, 1).split(1), b.flatten(0, 1).split(1), strict=True)
    values = [_ssim_map(x, y, data_range).mean() for x, y in planes if len(x)]
    return torch.stack(values).reshape(a.shape[:2]).mean(1) if values else a.new_zeros(len(a))


def illuminance_correct(pred: Tensor, target: Tensor) -> Tensor:
    """Scales each picture to the target's brightness (facts.md section 11, step 5).

    The prediction is clamped to [0, 1] and multiplied by `sum(p * t) / sum(p * p)` over the
    elements where the target is not 1 (saturated), one factor for all channels.

    Args:
        pred: (B, C, H, W).
        target: (B, C, H, W), in [0, 1].

    Returns:
        (B, C, H, W) float64, not clipped after scaling. A picture that is black wherever it
        counts has no factor and is returned as it is.

    Raises:
        InputError: the shapes differ or are not (B, C, H, W).
    """
    a, b = _checked(pred, target)
    a = a.clamp(0.0, 1.0)
    counted = torch.where(b != 1, a, 0.0)
    power = counted.square().sum(dim=(1, 2, 3))
    scale = torch.where(power > 0, (counted * b).sum(dim=(1, 2, 3)) / power, 1.0)
    return a * scale[:, None, None, None]


def eld_protocol(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    """PSNR and SSIM as ELD evaluates: illuminance correction, clipping, then both metrics.

    The centre crop comes before the network (`centre_crop`); on whole frames this is the
    protocol of PMN's and PNNP's tables. The noisy input's own figures are those of
    `plain_protocol`: it is not corrected.

    Args:
        pred: (B, C, H, W), the network's output.
        target: (B, C, H, W) in [0, 1].

    Returns:
        `psnr` (dB) and `ssim`, each (B,) float64.

    Raises:
        InputError: as `psnr` and `ssim`.
    """
    return plain_protocol(illuminance_correct(pred, target), target)


def plain_protocol(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    """PSNR and SSIM after clipping both to [0, 1], without any correction.

    Args:
        pred: (B, C, H, W).
        target: (B, C, H, W).

    Returns:
        `psnr` (dB) and `ssim`, each (B,) float64.

    Raises:
        InputError: as `psnr` and `ssim`.
    """
    a, b = (picture.clamp(0.0, 1.0) for picture in _checked(pred, target))
    return {"psnr": psnr(a, b), "ssim": ssim(a, b)}


@dataclass(frozen=True)
class Protocol:
    """How pictures are cut, corrected and compared. Every table names its own."""

    name: str
    """What it is called on the command line."""
    crop: int | None
    """Side of the centre, in packed pixels, that is cut out before the network; None for whole
    frames."""
    compare: Callable[[Tensor, Tensor], dict[str, Tensor]]
    """(network's output, target) -> `psnr` and `ssim`. The noisy input is never corrected:
    `plain_protocol` compares it."""

    def cut(self, packed: Tensor) -> Tensor:
        """The part of packed planes (..., H, W) that goes into the network."""
        return packed if self.crop is None else centre_crop(packed, size=self.crop)


PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("eld-crop", ELD_CROP, eld_protocol),
        Protocol("eld-full", None, eld_protocol),
        Protocol("plain", None, plain_protocol),
    )
}
"""By name: ELD's own, which the paper names; whole frames with its correction, as PMN and PNNP
report; whole frames as they are."""


def centre_crop(packed: Tensor, *, size: int = ELD_CROP) -> Tensor:
    """Cuts the centre of packed planes (facts.md section 11, step 4).

    Args:
        packed: (..., H, W).
        size: side of the crop; a side that is shorter is kept whole.

    Returns:
        A view of (..., min(H, size), min(W, size)).
    """
    rows, columns = (min(side, size) for side in packed.shape[-2:])
    top, left = (packed.shape[-2] - rows) // 2, (packed.shape[-1] - columns) // 2
    return packed[..., top : top + rows, left : left + columns]


def residual_noise(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Mean and standard deviation of what is left of the noise (the paper's Table VI).

    Args:
        pred: (B, C, H, W).
        target: (B, C, H, W).

    Returns:
        `mean` and `std` (of the population) of pred - target, each (B,) float64, in the
        pictures' unit.

    Raises:
        InputError: the shapes differ or are not (B, C, H, W).
    """
    a, b = _checked(pred, target)
    left = (a - b).flatten(1)
    return {"mean": left.mean(1), "std": left.std(1, correction=0)}


def _ssim_map(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    """SSIM of every full window: (C, H, W) -> (C, H - 6, W - 6)."""
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = (
        F.avg_pool2d(values, _WINDOW, stride=1) for values in (x, y, x * x, y * y, x * y)
    )
    sample = _WINDOW**2 / (_WINDOW**2 - 1)
    var_x = sample * (mean_xx - mean_x * mean_x)
    var_y = sample * (mean_yy - mean_y * mean_y)
    covariance = sample * (mean_xy - mean_x * mean_y)
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return likeness / ((mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2))


def _checked(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both in float64, or says what is wrong with their shapes."""
    if pred.ndim != 4 or pred.shape != target.shape:
        raise InputError(
            f"expected two batches of one shape (B, C, H, W), got {tuple(pred.shape)} and "
            f"{tuple(target.shape)}"
        )
    return pred.to(torch.float64), target.to(torch.float64)
