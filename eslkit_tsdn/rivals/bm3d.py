"""BM3D, as something that can be evaluated like a network: packed planes in, restored planes out.

Dabov, Foi, Katkovnik, Egiazarian, IEEE TIP 2007, in Tampere University's own implementation (the
extra `bm3d`). **Its licence allows non-commercial use only, and no redistribution**: it is never
installed with anything else of eslkit, and says so when it first runs.
"""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from eslkit.errors import InputError
from eslkit_tsdn.rivals.anscombe import stabilised, unstabilised
from eslkit_tsdn.rivals.noise_estimates import Estimate, PlaneNoise, blind_noise

__all__ = ["BM3D", "LicenceWarning"]

LEAST = 16
"""Pixels that each side must have; bm3d 4.0.3 ends the whole process on 8x8."""


class LicenceWarning(UserWarning):
    """Something runs whose licence does not allow every use."""


class BM3D(nn.Module):
    """Restores every plane of every picture for itself, without any training.

    It has no parameters; `evaluate` and `restore` take it as a network. On one thread, so that
    the same picture gives the same bits. Slow: some 15 seconds of a core for a plane of 512x512.

    Args:
        noise: how strong the noise is: `blind_noise`, or what `oracle_noise` and
            `modelled_noise` give. Where it tells a gain, the plane goes through the generalised
            Anscombe transform and its exact unbiased inverse.
        passes: "both" for hard thresholding and the Wiener filter, "hard" for the first alone.

    Raises:
        InputError: the package is not installed, or no such passes.

    Example:
        >>> restored = BM3D()(noisy)  # doctest: +SKIP
    """

    def __init__(
        self, noise: Estimate = blind_noise, *, passes: Literal["both", "hard"] = "both"
    ) -> None:
        super().__init__()
        if passes not in ("both", "hard"):
            raise InputError(f"passes={passes!r}: expected 'both' or 'hard'.")
        self.noise, self.passes = noise, passes
        _bm3d()

    def forward(self, noisy: Tensor) -> Tensor:
        """Restore pictures.

        Args:
            noisy: (batch, planes, h, w), packed and amplified, in [0, 1].

        Returns:
            Of the same shape, type and device, not clipped.

        Raises:
            InputError: another number of dimensions, pictures of fewer than 16 pixels a side,
                or values that are not finite.
        """
        if noisy.ndim != 4 or min(noisy.shape[2:]) < LEAST:
            raise InputError(
                f"BM3D restores (batch, planes, h, w) of {LEAST}x{LEAST} pixels at least, and got "
                f"{tuple(noisy.shape)}."
            )
        if not torch.isfinite(noisy).all():
            raise InputError("BM3D got a picture with NaN or infinity in it.")
        return torch.stack([self._picture(picture) for picture in noisy.detach()]).to(noisy)

    def _picture(self, picture: Tensor) -> Tensor:
        planes = zip(picture.double().cpu(), self.noise(picture), strict=True)
        return torch.stack([self._plane(plane, noise) for plane, noise in planes])

    def _plane(self, plane: Tensor, noise: PlaneNoise) -> Tensor:
        if noise.gain > 0:
            known = {"gain": noise.gain, "sigma": noise.sigma}
            return unstabilised(self._gaussian(stabilised(plane, **known), 1.0), **known)
        return self._gaussian(plane, noise.sigma) if noise.sigma > 0 else plane

    def _gaussian(self, plane: Tensor, sigma: float) -> Tensor:
        bm3d = _bm3d()
        _tell_once()
        profile = bm3d.BM3DProfile()
        profile.num_threads = 1
        stages = bm3d.BM3DStages
        stage = stages.ALL_STAGES if self.passes == "both" else stages.HARD_THRESHOLDING
        restored = bm3d.bm3d(plane.numpy(), sigma, profile=profile, stage_arg=stage)
        return torch.from_numpy(np.ascontiguousarray(restored)).double()


@cache
def _tell_once() -> None:
    """Said when it first runs in a process."""
    warnings.warn(
        "BM3D runs under the licence of Tampere University: non-commercial use only, no "
        "redistribution. See https://pypi.org/project/bm3d/.",
        LicenceWarning,
        stacklevel=5,
    )


def _bm3d() -> Any:
    """The package, or how to get it."""
    try:
        return importlib.import_module("bm3d")
    except ImportError as error:
        raise InputError(
            "BM3D needs the package bm3d, which is not installed: pip install 'eslkit[bm3d]'. Its "
            "licence allows non-commercial use only."
        ) from error
