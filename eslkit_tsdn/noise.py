"""Noise of a short exposure in the dark, drawn from a camera's calibration.

The model (ELD, CVPR 2020; facts.md section 10), in DN after black subtraction, with the clean
long exposure x in [0, 1] and the exposure ratio r:

    y     = x * (white - black) / r
    noisy = K * Poisson(y / K) + N_TL + N_row + N_q + bias
    out   = clip(clip(noisy / (white - black), 0) * r, 0, 1)

N_TL is Tukey-lambda read noise, N_row one Gaussian value per row of the mosaic, N_q uniform
quantisation noise, bias the mean of the read noise per colour. All of it belongs to the mosaic:
in all four Bayer phases the packed planes R and G1 come from the same mosaic rows, B and G2 from
the others, and share those rows' values.

Axes: B = pictures, h, w = rows and columns of the packed planes, in the order R, G1, B, G2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eslkit.errors import InputError
from eslkit_tsdn.calibration import (
    SONY_A7S2_ELD,
    SONY_A7S2_PMN,
    CameraNoise,
    ScaleLaw,
    interpolate,
)

__all__ = [
    "SONY_A7S2_ELD",
    "SONY_A7S2_PMN",
    "CameraNoise",
    "NoiseLevel",
    "add_noise",
    "draw_levels",
    "sample_noisy",
    "tukey_lambda",
]

_ROW_OF_PLANE = (0, 0, 1, 1)
"""Which of a Bayer cell's two mosaic rows R, G1, B, G2 stand in: 0 = the red one."""


@dataclass(frozen=True, eq=False)
class NoiseLevel:
    """How strong each kind of noise is in each of B pictures; tensors on one device."""

    gain: Tensor
    """(B,) system gain K, in DN per photoelectron; 0 leaves shot noise out."""
    read_scale: Tensor
    """(B,) scale of the Tukey-lambda read noise, in DN."""
    read_shape: Tensor
    """(B,) its shape lambda."""
    row_scale: Tensor
    """(B,) standard deviation of the row noise, in DN."""
    color_bias: Tensor
    """(B, 4) mean of the read noise in R, G1, B, G2, in DN."""
    quantum: Tensor
    """(B,) width of the quantisation step, in DN."""


def sample_noisy(
    clean: Tensor,
    ratio: Tensor | float,
    *,
    camera: CameraNoise = SONY_A7S2_ELD,
    generator: torch.Generator,
    K: Tensor | float | None = None,  # noqa: N803
    clip: bool = True,
) -> Tensor:
    """Draws the amplified short exposure of a clean long one.

    Args:
        clean: (B, 4, h, w) in [0, 1], order R, G1, B, G2, floating point, any device.
        ratio: exposure ratio, one or (B,).
        camera: whose noise.
        generator: source of all randomness; on the device of `clean`. The same seed gives the
            same bits on the same device.
        K: system gain in DN per photoelectron, one or (B,); None draws ln K uniformly over the
            camera's range for every picture.
        clip: cut negative values before amplification and values above 1 after it, as ELD's
            evaluation does (facts.md sections 11.2 and 11.3).

    Returns:
        (B, 4, h, w), of the type and on the device of `clean`.

    Raises:
        InputError: a wrong shape or type, a ratio or gain that is not positive, or a generator
            on another device.
    """
    if clean.ndim != 4 or clean.shape[1] != 4 or not clean.is_floating_point():
        raise InputError(
            f"expected packed planes of shape (B, 4, h, w) in floating point, got "
            f"{tuple(clean.shape)} in {clean.dtype}"
        )
    ratios = _per_picture(ratio, like=clean, name="ratio")
    levels = draw_levels(camera, num_images=len(clean), generator=generator, K=K, like=clean)
    to_dn = (camera.span / ratios)[:, None, None, None]
    noisy = add_noise(clean * to_dn, levels=levels, generator=generator) / to_dn
    return noisy.clamp_(0.0, 1.0) if clip else noisy


def draw_levels(
    camera: CameraNoise,
    *,
    num_images: int,
    generator: torch.Generator,
    K: Tensor | float | None = None,  # noqa: N803
    like: Tensor | None = None,
) -> NoiseLevel:
    """Draws gain and noise scales from a calibration, independently for every picture.

    `ln K ~ U(ln k_min, ln k_max)`; the scales follow from K by the camera's laws.

    Args:
        camera: the calibration.
        num_images: B.
        generator: source of the randomness.
        K: gain, one or (B,); None draws it.
        like: tensor whose type and device the result takes; None takes float32 on the
            generator's device.

    Raises:
        InputError: a gain that is not positive, or a generator on another device than `like`.
    """
    like = torch.empty(num_images, device=generator.device) if like is None else like
    if generator.device.type != like.device.type:
        raise InputError(
            f"the generator is on {generator.device}, the picture on {like.device}; "
            f"make it with torch.Generator(device={str(like.device)!r})"
        )
    if K is None:
        low, high = torch.tensor([camera.k_min, camera.k_max], dtype=torch.float64).log().tolist()
        log_k = low + (high - low) * _uniform((num_images,), like=like, generator=generator)
    else:
        log_k = _per_picture(K, like=like, name="K").log()
    read = _draw_scale(camera.read, log_k, generator=generator)
    row = _draw_scale(camera.row, log_k, generator=generator)
    shape, bias = _draw_shape(camera, log_k, generator=generator)
    return NoiseLevel(log_k.exp(), read, shape, row, bias, torch.ones_like(log_k))


def add_noise(signal: Tensor, *, levels: NoiseLevel, generator: torch.Generator) -> Tensor:
    """Adds noise of given levels to a signal: shot, read, row and quantisation noise, bias.

    Args:
        signal: (B, 4, h, w) clean short exposure in DN above black, not negative.
        levels: the strength of each kind of noise.
        generator: source of the randomness, on the device of `signal`.

    Returns:
        (B, 4, h, w) noisy signal in DN above black; may be negative.
    """
    batch, _, h, _ = signal.shape
    gain = levels.gain[:, None, None, None]
    electrons = signal / torch.where(gain > 0, gain, 1.0)
    shot = torch.where(gain > 0, torch.poisson(electrons, generator=generator) * gain, signal)
    noise = tukey_lambda(
        _uniform(signal.shape, like=signal, generator=generator),
        shape=levels.read_shape[:, None, None, None],
    )
    noise *= levels.read_scale[:, None, None, None]
    rows = torch.randn(
        (batch, 2, h, 1), generator=generator, device=signal.device, dtype=signal.dtype
    )
    rows = rows[:, _ROW_OF_PLANE, :, :] * levels.row_scale[:, None, None, None]
    steps = _uniform(signal.shape, like=signal, generator=generator).sub_(0.5)
    steps *= levels.quantum[:, None, None, None]
    return shot.add_(noise).add_(rows).add_(steps).add_(levels.color_bias[:, :, None, None])


def tukey_lambda(probability: Tensor, *, shape: Tensor | float) -> Tensor:
    """The quantile function of the Tukey-lambda distribution of location 0 and scale 1.

    `(p^l - (1 - p)^l) / l`, and its limit `ln p - ln(1 - p)`, the logistic one, at l = 0.

    Args:
        probability: p in (0, 1); values are kept half a step of the type away from 0 and 1
            (2^-24 in float32), so that the result is finite.
        shape: lambda, broadcast against p.
    """
    edge = torch.finfo(probability.dtype).eps / 2
    p = probability.clamp(edge, 1.0 - edge)
    lam = torch.as_tensor(shape, dtype=p.dtype, device=p.device)
    log_p, log_q = p.log(), torch.log1p(-p)
    safe = torch.where(lam == 0, 1.0, lam)
    # expm1 keeps its digits where lambda is close to 0 and both powers are close to 1.
    bent = (torch.expm1(safe * log_p) - torch.expm1(safe * log_q)) / safe
    return torch.where(lam == 0, log_p - log_q, bent)


def _draw_scale(law: ScaleLaw, log_k: Tensor, *, generator: torch.Generator) -> Tensor:
    mean, spread = law.moments(log_k)
    normal = torch.randn(log_k.shape, generator=generator, device=log_k.device, dtype=log_k.dtype)
    return (mean + spread * normal).exp()


def _draw_shape(
    camera: CameraNoise, log_k: Tensor, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns shape (B,) and colour bias (B, 4)."""
    no_bias = log_k.new_zeros(len(log_k), 4)
    if camera.shape_gains:
        return interpolate(log_k, camera.shape_gains, camera.shapes), no_bias
    picked = torch.randint(
        len(camera.shapes), (len(log_k),), generator=generator, device=log_k.device
    )
    shape = log_k.new_tensor(camera.shapes)[picked]
    return shape, log_k.new_tensor(camera.color_bias)[picked] if camera.color_bias else no_bias


def _uniform(shape: tuple[int, ...], *, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype)


def _per_picture(value: Tensor | float, *, like: Tensor, name: str) -> Tensor:
    """Makes a (B,) tensor of one number or of one per picture; all must be positive."""
    values = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if values.ndim > 1 or (values.ndim == 1 and len(values) not in (1, len(like))):
        raise InputError(
            f"{name} has the shape {tuple(values.shape)}; expected one number or ({len(like)},)"
        )
    if not bool(((values > 0) & values.isfinite()).all()):
        raise InputError(f"{name}={value} must be positive and finite")
    return values.expand(len(like))
