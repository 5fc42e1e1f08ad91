"""Training batches: crops of clean photographs, with noise drawn afresh for every one.

Batch k is a function of the seed and of k alone. So a training that was interrupted at
iteration k and goes on there sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from eslkit.errors import InputError
from eslkit_tsdn.data.photos import Photo
from eslkit_tsdn.data.source import SID_RATIOS, NoisyBatch, Ratios
from eslkit_tsdn.noise import SONY_A7S2_ELD, CameraNoise, sample_noisy

__all__ = ["BatchSource", "random_crop", "seeded"]

# Packed planes are R, G1, B, G2; the cells of an RGGB mosaic in reading order R, G1, G2, B.
# The permutation is its own inverse.
READING_ORDER = [0, 1, 3, 2]


def seeded(*words: object) -> torch.Generator:
    """A CPU generator that depends on all the words, and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def to_mosaic(packed: Tensor) -> Tensor:
    """(..., 4, h, w) planes R, G1, B, G2 -> RGGB mosaics (..., 2h, 2w)."""
    return F.pixel_shuffle(packed[..., READING_ORDER, :, :], 2).squeeze(-3)


def to_packed(mosaic: Tensor) -> Tensor:
    """RGGB mosaics (..., 2h, 2w) -> (..., 4, h, w) planes R, G1, B, G2."""
    return F.pixel_unshuffle(mosaic.unsqueeze(-3), 2)[..., READING_ORDER, :, :]


def random_crop(mosaic: Tensor, *, size: int, generator: torch.Generator) -> Tensor:
    """A crop at a random place, mirrored and transposed at random, in the same Bayer phase.

    Mirroring a mosaic moves its phase by one pixel, so the mirrored axis is cut one pixel
    further on; transposing an RGGB mosaic only swaps its two greens.

    Args:
        mosaic: (2h, 2w), phase RGGB.
        size: height and width of the crop in packed pixels; h and w must exceed it.
        generator: where the randomness comes from.

    Returns:
        (2 * size, 2 * size), phase RGGB: a view of `mosaic`.
    """
    rows, columns = (length // 2 - size for length in mosaic.shape)
    draw = torch.rand(5, generator=generator).tolist()
    top, left = int(draw[0] * rows) * 2, int(draw[1] * columns) * 2
    patch = mosaic[top : top + 2 * size + 2, left : left + 2 * size + 2]
    starts = [0, 0]
    for axis in (0, 1):
        if draw[2 + axis] < 0.5:
            patch, starts[axis] = patch.flip(axis), 1
    patch = patch[starts[0] : starts[0] + 2 * size, starts[1] : starts[1] + 2 * size]
    return patch.T if draw[4] < 0.5 else patch


class BatchSource:
    """Draws batches from photographs.

    Args:
        photos: clean long exposures; every one is drawn equally often.
        batch_size: crops in a batch.
        crop: height and width of a crop in packed pixels.
        seed: together with the number of the batch it decides everything.
        ratios: exposure ratios of the drawn noise.
        camera: whose noise is drawn.
        gain: system gain K of the camera in DN per electron; None draws it per crop.

    Raises:
        InputError: no photographs, or one that is too small for a crop.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        *,
        batch_size: int = 16,
        crop: int = 32,
        seed: int | str = 0,
        ratios: Ratios = SID_RATIOS,
        camera: CameraNoise = SONY_A7S2_ELD,
        gain: float | None = None,
    ) -> None:
        if not photos:
            raise InputError("There is no photograph to train on: pass one or more.")
        for photo in photos:
            if min(photo.packed.shape[1:]) <= crop:
                height, width = photo.packed.shape[1:]
                raise InputError(
                    f"The photograph {photo.name} has {height}x{width} packed pixels, too few for "
                    f"crops of {crop}x{crop}: leave it out or take smaller crops."
                )
        self.mosaics = tuple(to_mosaic(photo.packed) for photo in photos)
        self.batch_size, self.crop, self.seed = batch_size, crop, seed
        self.ratios, self.camera, self.gain = ratios, camera, gain

    def batch(self, index: int) -> NoisyBatch:
        """Batch number `index`: the same bits for the same seed, whenever it is asked for."""
        generator = seeded("batch", self.seed, index)
        chosen = torch.randint(len(self.mosaics), (self.batch_size,), generator=generator)
        crops = [
            random_crop(self.mosaics[i], size=self.crop, generator=generator)
            for i in chosen.tolist()
        ]
        clean = to_packed(torch.stack(crops))
        ratio = self.ratios.draw(self.batch_size, generator=generator)
        noisy = sample_noisy(clean, ratio, camera=self.camera, generator=generator, K=self.gain)
        return NoisyBatch(noisy=noisy, clean=clean, ratio=ratio)

    def batches(self, start: int, stop: int) -> Iterator[NoisyBatch]:
        """Batches `start` to `stop - 1`, in order."""
        return (self.batch(index) for index in range(start, stop))
