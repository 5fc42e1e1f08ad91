"""A camera's whole photograph through a network, within a limit of memory."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eslkit.errors import InputError
from eslkit_tsdn.backends import Backend
from eslkit_tsdn.develop import develop, encode_png, encode_tiff
from eslkit_tsdn.dng import encode_dng
from eslkit_tsdn.exposure import check_ratio
from eslkit_tsdn.raw import RawImage, normalize, unpack
from eslkit_tsdn.shot import Shot
from eslkit_tsdn.tiles import run_tiled

__all__ = ["KINDS", "Denoised", "denoise", "encode", "mosaic_of", "restore_large"]

KINDS = ("dng", "tif", "png")
"""What can be written."""

_GIB = 2**30
_MOST_PIXELS = 1_250_000
"""Packed pixels of a part at most, even where memory allows more: the progress moves, and larger
parts are not faster."""
_FRAMES = 5
"""Float32 copies of the packed picture that are there beside the network's activations."""
_BLEND = 0.9
"""Above this part of white, the amplified picture goes over into the camera's own values."""


@dataclass(frozen=True, eq=False)
class Denoised:
    """A denoised photograph, in packed form and amplified."""

    noisy: NDArray[np.float32]
    """4 x h x w, what the network was given: amplified, in [0, 1]."""
    clean: NDArray[np.float32]
    """4 x h x w, what it made of it, in [0, 1]."""
    ratio: float
    """What the picture was amplified by."""


def denoise(
    raw: RawImage,
    backend: Backend,
    *,
    ratio: float,
    memory: float = 1.5,
    advance: Callable[[int], None] | None = None,
) -> Denoised:
    """Denoises a camera's photograph.

    An odd last row or column is denoised too: the mosaic is continued by the row before the last,
    which has the same colours.

    Args:
        raw: the photograph.
        backend: what runs the network.
        ratio: what the picture is amplified by before, 1 to 300 (`choose_ratio`).
        memory: what the process may take in all, in GiB; off the CPU, the device's free memory
            counts instead.
        advance: told how many packed pixels were done, `packed_pixels` x parts in all.

    Returns:
        The picture before and after, amplified.

    Raises:
        InputError: a ratio out of range, or a network that gives other planes than it takes.
    """
    ratio = check_ratio(ratio)
    noisy = normalize(_even(raw))
    noisy *= np.float32(ratio)
    np.minimum(noisy, 1.0, out=noisy)
    clean = restore_large(torch.from_numpy(noisy)[None], backend, memory=memory, advance=advance)
    if clean.shape[1] != 4:
        raise InputError(f"The network gives {clean.shape[1]} planes; a raw file has 4.")
    return Denoised(noisy, clean[0].clamp_(0.0, 1.0).numpy(), ratio)


def restore_large(
    image: Tensor,
    backend: Backend,
    *,
    memory: float = 1.5,
    advance: Callable[[int], None] | None = None,
) -> Tensor:
    """Runs a network on a picture of any size, part by part where memory wants it.

    Args:
        image: (1, 4, h, w) in [0, 1], on the CPU.
        backend: what runs the network.
        memory: what the process may take in all, in GiB.
        advance: told how many pixels were done, h x w for each of the backend's parts.

    Returns:
        (1, planes, h, w), not clipped: what the network makes of the whole picture.
    """
    # Once for all parts: what one has freed the next one takes again.
    room = _room(backend, memory=memory, pixels=image.shape[-2] * image.shape[-1])
    for part in backend.parts:
        most = min(_MOST_PIXELS, int(room / part.bytes_per_pixel))
        image = run_tiled(
            part.run, image, reach=part.reach, max_pixels=max(most, 1), advance=advance
        )
    return image


def mosaic_of(
    denoised: Denoised, raw: RawImage, *, keep_exposure: bool = False
) -> NDArray[np.uint16]:
    """Puts a denoised picture back into the camera's mosaic, with the camera's levels.

    Args:
        denoised: what `denoise` returned.
        raw: the photograph that it was made of.
        keep_exposure: leave the mosaic as dark as the camera's own, and take what amplifying cut
            at white from there; else it is as bright as the network saw it.

    Returns:
        H x W sensor values, of the camera's own size and phase.
    """
    clean = denoised.clean
    if keep_exposure:
        own = normalize(_even(raw))
        weight = np.clip((own * denoised.ratio - _BLEND) / (1.0 - _BLEND), 0.0, 1.0)
        clean = (1.0 - weight) * (clean / denoised.ratio) + weight * own
    black = np.array(raw.black, dtype=np.float32)[:, None, None]
    values = black + clean * (np.float32(raw.white) - black)
    height, width = raw.mosaic.shape
    levels = np.round(np.clip(values, 0, 65535)).astype(np.uint16)
    return unpack(levels, raw.pattern)[:height, :width]


def encode(
    denoised: Denoised, *, kind: str, raw: RawImage, shot: Shot, keep_exposure: bool = False
) -> bytes:
    """Makes a file of a denoised picture.

    Args:
        denoised: what `denoise` returned.
        kind: `dng` (the mosaic, with all that the camera's file says), `tif` (developed, 16 bits)
            or `png` (developed, 8 bits).
        raw: the photograph that it was made of.
        shot: its circumstances.
        keep_exposure: as for `mosaic_of`, of a DNG alone, which then asks to be brightened by the
            ratio (BaselineExposure).

    Returns:
        The file's bytes.

    Raises:
        InputError: another kind, or a developed picture with its exposure kept.
    """
    if kind not in KINDS:
        raise InputError(f"kind={kind!r}: expected one of {', '.join(KINDS)}.")
    if keep_exposure and kind != "dng":
        raise InputError(
            f"Only a DNG can keep its exposure and be brightened later; a {kind} is developed as "
            "bright as it is to be. Leave --keep-exposure out, or write a DNG."
        )
    mosaic = mosaic_of(denoised, raw, keep_exposure=keep_exposure)
    if kind == "dng":
        stops = math.log2(denoised.ratio) if keep_exposure else 0.0
        return encode_dng(mosaic, raw=raw, shot=shot, brighten=stops)
    picture = develop(mosaic, raw=raw, shot=shot)
    return encode_tiff(picture, shot=shot) if kind == "tif" else encode_png(picture)


def _even(raw: RawImage) -> RawImage:
    """The photograph with an even number of rows and columns, reflected where it has none."""
    height, width = raw.mosaic.shape
    if not (height % 2 or width % 2):
        return raw
    # The row behind the last is the row two before it: the same colours.
    rows, columns = ((0, side % 2) for side in (height, width))
    mosaic = np.pad(raw.mosaic, (rows, columns), mode="reflect")
    return replace(raw, mosaic=mosaic)


def _room(backend: Backend, *, memory: float, pixels: int) -> float:
    """Bytes that the activations of a part may take."""
    if backend.device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(backend.device)
        return 0.7 * free
    return memory * _GIB - _resident() - _FRAMES * 16 * pixels


def _resident() -> float:
    """Bytes of memory that the process takes now; a guess where the system does not tell.

    What the C library keeps of freed memory is given back before (glibc), or the picture after a
    large one would be cut small for nothing.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0.5 * _GIB
