"""What a network does to test photographs at fixed exposure ratios, in PSNR and SSIM."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eslkit.errors import InputError
from eslkit_tsdn.data.crops import seeded
from eslkit_tsdn.data.photos import Photo
from eslkit_tsdn.metrics import eld_protocol, psnr, ssim
from eslkit_tsdn.noise import SONY_A7S2_ELD, CameraNoise, sample_noisy

__all__ = ["TEST_RATIOS", "TestPair", "evaluate", "evaluate_input", "restore", "test_pairs"]

TEST_RATIOS = (100, 250, 300)
"""The exposure ratios of SID's test pictures, as in the paper's tables."""


@dataclass(frozen=True)
class TestPair:
    """A clean test picture, and one noisy short exposure of it."""

    __test__ = False  # not a test of pytest's

    photo: Photo
    """Where it comes from; its white balance and colour matrix are needed to look at it."""
    ratio: int
    """Exposure ratio; the noisy picture is amplified by it."""
    noisy: Tensor
    """(1, 4, h, w) in [0, 1]."""
    clean: Tensor
    """(1, 4, h, w) in [0, 1]."""


def test_pairs(
    photos: Sequence[Photo],
    *,
    ratios: Sequence[int] = TEST_RATIOS,
    seed: int = 0,
    camera: CameraNoise = SONY_A7S2_ELD,
    gain: float | None = None,
    largest: int = 512,
    multiple: int = 16,
) -> tuple[TestPair, ...]:
    """Noisy test pictures that are the same for the same arguments, whoever asks.

    Args:
        photos: clean long exposures.
        ratios: exposure ratios; every photograph is taken at each.
        seed: of the noise; the photograph's name and the ratio count too.
        camera: whose noise is drawn.
        gain: system gain K in DN per electron; None draws one per picture.
        largest: the centre of at most this many packed pixels a side is used; 512 in ELD.
        multiple: sides are cut to multiples of this, so that networks can halve them.

    Returns:
        One pair for every ratio and photograph, ratio by ratio.

    Raises:
        InputError: no photographs, or one smaller than `multiple`.
    """
    if not photos:
        raise InputError("There is no photograph to test on: pass one or more.")
    pairs: list[TestPair] = []
    for ratio in ratios:
        for photo in photos:
            clean = centre(photo, largest=largest, multiple=multiple)[None]
            generator = seeded("test", seed, photo.name, ratio)
            noisy = sample_noisy(clean, float(ratio), camera=camera, generator=generator, K=gain)
            pairs.append(TestPair(photo, ratio, noisy, clean))
    return tuple(pairs)


test_pairs.__test__ = False  # type: ignore[attr-defined]


def centre(photo: Photo, *, largest: int, multiple: int) -> Tensor:
    """The centre of a photograph, (4, h, w), its sides multiples of `multiple`."""
    height, width = photo.packed.shape[1:]
    rows, columns = (min(side, largest) // multiple * multiple for side in (height, width))
    if not rows or not columns:
        raise InputError(
            f"The photograph {photo.name} has {height}x{width} packed pixels; to test on it, both "
            f"sides must have {multiple} at least. Leave it out."
        )
    top, left = (height - rows) // 2, (width - columns) // 2
    return photo.packed[:, top : top + rows, left : left + columns].contiguous()


def restore(network: nn.Module, noisy: Tensor) -> Tensor:
    """The network's last image for noisy ones, (batch, 4, h, w) on the CPU.

    The network is used in inference mode on its own device and left as it was.
    """
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            return network(noisy.to(device)).float().cpu()
    finally:
        network.train(training)


def evaluate(network: nn.Module, pairs: Sequence[TestPair]) -> dict[str, float]:
    """Mean PSNR and SSIM of a network by ELD's protocol (facts, section 11).

    Args:
        network: gives one image of the shape of its input in inference.
        pairs: what to test on.

    Returns:
        `psnr_x100`, `ssim_x100` and so on for every ratio in `pairs`, in dB and in 0 to 1;
        the arithmetic mean over the photographs.
    """
    return means(pairs, [eld_protocol(restore(network, pair.noisy), pair.clean) for pair in pairs])


def evaluate_input(pairs: Sequence[TestPair]) -> dict[str, float]:
    """The same for the noisy pictures as they are, whose brightness ELD does not correct."""
    values = [
        {"psnr": psnr(pair.noisy, pair.clean), "ssim": ssim(pair.noisy, pair.clean)}
        for pair in pairs
    ]
    return means(pairs, values)


def means(pairs: Sequence[TestPair], values: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """The means over the photographs, by measure and ratio."""
    lists: dict[str, list[float]] = {}
    for pair, measured in zip(pairs, values, strict=True):
        for name, value in measured.items():
            lists.setdefault(f"{name}_x{pair.ratio}", []).append(float(value))
    return {name: math.fsum(each) / len(each) for name, each in lists.items()}
