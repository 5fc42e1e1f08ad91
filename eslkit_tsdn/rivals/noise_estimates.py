"""The three ways to tell BM3D how strong the noise is (facts, section 3).

All in the unit of packed, black-subtracted, amplified planes in [0, 1], plane by plane.

| | what it knows |
|---|---|
| `oracle_noise` | the clean picture: an upper bound that nobody has in practice |
| `blind_noise` | the noisy picture alone |
| `modelled_noise` | the camera's calibration, its gain and the exposure ratio |
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from eslkit.errors import InputError
from eslkit_tsdn.evaluation import TestPair
from eslkit_tsdn.noise import SONY_A7S2_ELD, CameraNoise

__all__ = ["Estimate", "PlaneNoise", "blind_noise", "modelled_noise", "oracle_noise"]

MAD = 0.6745
"""Median of |x| of a standard normal x, to the digits that the literature uses."""


@dataclass(frozen=True)
class PlaneNoise:
    """The noise of one plane: variance `gain * y + sigma**2` around the clean value y."""

    sigma: float
    """Deviation of the part that does not depend on the light."""
    gain: float = 0.0
    """Of the shot noise; 0 takes all noise as Gaussian."""


Estimate = Callable[[Tensor], tuple[PlaneNoise, ...]]
"""A noisy picture (planes, h, w) -> the noise of each plane."""


def blind_noise(noisy: Tensor) -> tuple[PlaneNoise, ...]:
    """From the picture alone: median of |HH1| / 0.6745, HH1 the finest diagonal Haar details.

    Donoho and Johnstone, Biometrika 1994. Details that are exactly 0 are left out: clipping to
    black or white makes them.

    Args:
        noisy: (planes, h, w).
    """
    return tuple(PlaneNoise(sigma=_from_details(plane)) for plane in noisy.double())


def _from_details(plane: Tensor) -> float:
    rows, columns = (side // 2 * 2 for side in plane.shape)
    a, b, c, d = (plane[i:rows:2, j:columns:2] for i in (0, 1) for j in (0, 1))
    details = ((a - b - c + d) / 2).abs()
    details = details[details > 0]
    return float(details.median()) / MAD if details.numel() else 0.0


def oracle_noise(
    pairs: Iterable[TestPair], *, cut: Callable[[Tensor], Tensor] | None = None
) -> Estimate:
    """From the clean picture: the deviation of noisy - clean.

    Args:
        pairs: what will be restored; each is read once, and none is kept.
        cut: what is done to pictures before they are restored, as a protocol's `cut`.

    Returns:
        An estimate for the noisy pictures of these pairs and no others.
    """
    known = {
        _key(noisy[0]): tuple(PlaneNoise(sigma=float(plane.std(correction=0))) for plane in noise)
        for noisy, noise in _noises(pairs, cut)
    }
    return _of(known, "oracle_noise")


def modelled_noise(
    pairs: Iterable[TestPair],
    *,
    gain: float | Callable[[TestPair], float],
    camera: CameraNoise = SONY_A7S2_ELD,
    cut: Callable[[Tensor], Tensor] | None = None,
) -> Estimate:
    """From the camera: shot noise and Gaussian read noise, amplified by the exposure ratio.

    In DN, shot noise of gain K has variance K y and read noise the camera's mean g at that K;
    amplified and in units of the white level, `gain = ratio K / (white - black)` and
    `sigma = ratio g / (white - black)`.

    Args:
        pairs: what will be restored; each is read once, and none is kept.
        gain: system gain K in DN per electron, one for all or a function of the pair
            (`camera.gain(iso)`).
        camera: whose noise.
        cut: as for `oracle_noise`.

    Returns:
        An estimate for the noisy pictures of these pairs and no others.
    """
    known: dict[str, tuple[PlaneNoise, ...]] = {}
    for pair in pairs:
        k = gain(pair) if callable(gain) else gain
        if not k > 0:
            raise InputError(f"gain={k} of {pair.name}: expected a positive gain, in DN/electron.")
        read = math.exp(float(camera.gaussian.moments(torch.tensor(math.log(k)))[0]))
        scale = pair.ratio / camera.span
        noisy = pair.noisy if cut is None else cut(pair.noisy)
        noise = PlaneNoise(sigma=scale * read, gain=scale * k)
        known[_key(noisy[0])] = (noise,) * noisy.shape[1]
    return _of(known, "modelled_noise")


def _noises(
    pairs: Iterable[TestPair], cut: Callable[[Tensor], Tensor] | None
) -> Iterable[tuple[Tensor, Tensor]]:
    for pair in pairs:
        noisy, clean = ((x if cut is None else cut(x)) for x in (pair.noisy, pair.clean))
        yield noisy, (noisy - clean)[0].double()


def _of(known: dict[str, tuple[PlaneNoise, ...]], name: str) -> Estimate:
    def estimate(noisy: Tensor) -> tuple[PlaneNoise, ...]:
        found = known.get(_key(noisy))
        if found is None:
            raise InputError(
                f"{name} was made for other pictures than this one of {tuple(noisy.shape)}: pass "
                "it the pairs that are restored, and as cut= what the protocol cuts before."
            )
        return found

    return estimate


def _key(noisy: Tensor) -> str:
    """A picture by its bits."""
    bits = noisy.detach().cpu().contiguous().numpy().tobytes()
    return hashlib.sha256(f"{tuple(noisy.shape)}".encode() + bits).hexdigest()
