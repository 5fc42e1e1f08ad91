"""What a network does to test pictures at fixed exposure ratios: PSNR, SSIM, noise that is left.

Pairs may be read when they are asked for: one at a time is looked at, and none is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eslkit.errors import InputError
from eslkit_tsdn.data.crops import seeded
from eslkit_tsdn.data.pairs import TestPair
from eslkit_tsdn.data.photos import Photo
from eslkit_tsdn.metrics import Protocol, eld_protocol, plain_protocol, residual_noise
from eslkit_tsdn.models import TSDN
from eslkit_tsdn.noise import SONY_A7S2_ELD, CameraNoise, sample_noisy

__all__ = [
    "TEST_RATIOS",
    "Measured",
    "Restore",
    "evaluate",
    "evaluate_input",
    "means",
    "measured",
    "restore",
    "stage_images",
    "test_pairs",
]

TEST_RATIOS = (100, 250, 300)
"""The exposure ratios of SID's test pictures, as in the paper's tables."""


Restore = Callable[[nn.Module, Tensor], Tensor]
"""(network, noisy) -> restored, each (batch, 4, h, w); the restored one on the CPU."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one picture."""

    name: str
    """Of the test pair."""
    ratio: int
    """Exposure ratio."""
    values: Mapping[str, float]
    """By name, as `measured` gives them."""


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
            pairs.append(
                TestPair(photo.name, ratio, noisy, clean, photo.white_balance, photo.color_matrix)
            )
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
    first = next(network.parameters(), None)  # a filter such as BM3D has none
    device = noisy.device if first is None else first.device
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            return network(noisy.to(device)).float().cpu()
    finally:
        network.train(training)


def stage_images(
    network: nn.Module, noisy: Tensor, *, restore: Restore = restore
) -> tuple[Tensor, ...]:
    """The images of all stages in inference, the last being the network's own.

    Args:
        network: a `TSDN`, whose stages restore one after the other, or any other network.
        noisy: (batch, 4, h, w).
        restore: runs a network, or one of its stages, on an image.

    Returns:
        One image for each stage of a TSDN, one for any other network; (batch, 4, h, w).
    """
    if not isinstance(network, TSDN):
        return (restore(network, noisy),)
    images = [noisy]
    for stage in network.stages:
        images.append(restore(stage, images[-1]))
    return tuple(images[1:])


def measured(
    network: nn.Module,
    pairs: Iterable[TestPair],
    *,
    protocol: Protocol,
    restore: Restore = restore,
) -> Iterator[Measured]:
    """Measures a network on one pair after the other.

    Args:
        network: gives one image of the shape of its input in inference; it is left as it was.
        pairs: what to test on; each is read once.
        protocol: how pictures are cut and compared.
        restore: runs a network on an image; another one may go through tiles.

    Yields:
        Values of one picture: `psnr` (dB) and `ssim` of the output, `input_psnr` and `input_ssim`
        of the noisy picture, and what is left of the noise (the paper's Table VI), in units of
        the white level: `noise_mean_input`, `noise_std_input` and so on at `input`, at `middle`
        (the first stage's image, where there are several) and at `output`.
    """
    for pair in pairs:
        noisy, clean = protocol.cut(pair.noisy), protocol.cut(pair.clean)
        images = stage_images(network, noisy, restore=restore)
        plain = plain_protocol(noisy, clean)
        values = {
            **protocol.compare(images[-1], clean),
            **{f"input_{name}": value for name, value in plain.items()},
        }
        places = {"input": noisy, "middle": images[0], "output": images[-1]}
        for place, image in places.items():
            if place != "middle" or len(images) > 1:
                left = residual_noise(image, clean)
                values |= {f"noise_{name}_{place}": value for name, value in left.items()}
        yield Measured(pair.name, pair.ratio, _floats(values))


def evaluate(
    network: nn.Module,
    pairs: Iterable[TestPair],
    *,
    compare: Callable[[Tensor, Tensor], Mapping[str, Tensor]] = eld_protocol,
) -> dict[str, float]:
    """Mean PSNR and SSIM of a network by ELD's protocol (facts, section 11).

    Args:
        network: gives one image of the shape of its input in inference.
        pairs: what to test on, cut to the centre where that is wanted; each is read once.
        compare: (output, target) -> values by name, instead of PSNR and SSIM.

    Returns:
        `psnr_x100`, `ssim_x100` and so on for every ratio in `pairs`, in dB and in 0 to 1;
        the arithmetic mean over the pictures.
    """
    return means(
        Measured(pair.name, pair.ratio, _floats(compare(restored, pair.clean)))
        for pair in pairs
        for restored in (restore(network, pair.noisy),)
    )


def evaluate_input(pairs: Iterable[TestPair]) -> dict[str, float]:
    """The same for the noisy pictures as they are, whose brightness ELD does not correct."""
    return means(
        Measured(pair.name, pair.ratio, _floats(plain_protocol(pair.noisy, pair.clean)))
        for pair in pairs
    )


def means(results: Iterable[Measured]) -> dict[str, float]:
    """The arithmetic means over the pictures, by measure and ratio: `psnr_x100` and so on."""
    lists: dict[str, list[float]] = {}
    for result in results:
        for name, value in result.values.items():
            lists.setdefault(f"{name}_x{result.ratio}", []).append(value)
    return {name: math.fsum(each) / len(each) for name, each in lists.items()}


def _floats(values: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
