"""Two tasks of different kinds: raw denoising, and segmentation of drawn cells.

`denoise`: a U-Net for packed raw crops of photographs with the calibrated noise of a Sony A7S II
(L1; PSNR after ELD's correction of brightness). `segment`: MONAI's U-Net for drawn cells of two
kinds and their borders on uneven, noisy ground (cross entropy; mean intersection over union). Each
has two sizes of the small network; validation data choose, test data confirm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.pays.pools import CACHE, Pool

Score = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """Something that a network is trained for."""

    name: str
    sizes: Mapping[str, tuple[int, ...]]
    """Widths of the small networks, by name."""
    build: Callable[[tuple[int, ...]], nn.Module]
    example: Tensor
    batch_size: int
    pool: Pool
    loss: Callable[[Tensor, Tensor], Tensor]
    """(output, target) -> scalar."""
    agree: Callable[[Tensor, Tensor], Tensor]
    """(output, the teacher's output) -> scalar."""
    validate: Score
    test: Score
    measure: str
    """The figure that counts."""

    def small(self, size: str, *, seed: int) -> nn.Module:
        """The small network before any training."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build(self.sizes[size])

    def batch(self, index: int, *, seed: int) -> tuple[Tensor, Tensor]:
        """Input and target."""
        x, y = self.pool.batch(index, size=self.batch_size, seed=seed)
        return x.float(), y.float() if y.dtype == torch.float16 else y.long()


SCENES = "cells-1"
"""Version of the drawn scenes, in place of a hash."""

PHOTOGRAPHS = "photographs-2"
"""Version of how photographs are divided and drawn from, beside the hash of them."""


@lru_cache(maxsize=2)
def task(name: str, data: str) -> Task:
    """A task by name.

    Args:
        name: `denoise` or `segment`.
        data: pictures for `denoise`, as for `eslkit_tsdn.datasets.open_dataset`.
    """
    return {"denoise": _denoise, "segment": lambda _: _segment()}[name](data)


def digest(name: str, data: str) -> str:
    """What a task's data are, in a few digits."""
    from eslkit_tsdn.datasets import open_dataset

    if name == "segment":
        return SCENES
    return f"{PHOTOGRAPHS}-{open_dataset(data).digest[:16]}"


# Raw denoising


def _denoise(data: str) -> Task:
    from eslkit_tsdn.data.crops import BatchSource
    from eslkit_tsdn.data.folders import folder_photos, split_by_folder
    from eslkit_tsdn.data.photos import (
        RAW_SUFFIXES,
        evenly,
        packaged_photos,
        photos_digest,
        split,
    )
    from eslkit_tsdn.evaluation import evaluate, test_pairs
    from eslkit_tsdn.metrics import illuminance_correct, psnr
    from eslkit_tsdn.models import UNet

    if data == "packaged":
        photos = packaged_photos()
        learnt, test = split(photos)
        validation = learnt[::4]
        learnt = tuple(photo for photo in learnt if photo not in validation)
    else:
        photos = folder_photos(data)
        learnt, held = split_by_folder(photos, max_test=len(photos))
        test = tuple(held[index] for index in evenly(len(held), 24))
        # Camera files of odd colours would move the mean more than what is compared.
        rest = [p for p in held if p not in test and not p.name.lower().endswith(RAW_SUFFIXES)]
        validation = tuple(rest[index] for index in evenly(len(rest), 32))
    learnt = tuple(photo for photo in learnt if min(photo.packed.shape[1:]) > 32)

    def draw(block: int) -> tuple[np.ndarray, ...]:
        source = BatchSource(learnt, batch_size=256, crop=32, seed=f"pays/{block}", gain=4.0)
        batch = source.batch(0)
        return batch.noisy.half().numpy(), batch.clean.half().numpy()

    def compare(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"psnr": psnr(illuminance_correct(pred, target).clamp(0, 1), target)}

    def scored(photos: object, largest: int) -> Score:
        pairs = test_pairs(photos, gain=4.0, largest=largest)  # type: ignore[arg-type]
        return lambda network: evaluate(network, pairs, compare=compare)

    return Task(
        name="denoise",
        sizes={"4-8-16": (4, 8, 16), "8-16-32": (8, 16, 32)},
        build=UNet,
        example=torch.zeros(1, 4, 32, 32),
        batch_size=16,
        pool=Pool(CACHE / f"{PHOTOGRAPHS}-{photos_digest(photos)[:16]}", blocks=512, draw=draw),
        loss=F.l1_loss,
        agree=F.l1_loss,
        validate=scored(validation, 128),
        test=scored(test, 256),
        measure="psnr_x300",
    )


# Segmentation

SIDE = 64
CLASSES = ("background", "smooth cell", "grained cell", "border")


def scenes(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of cells as a microscope might show them, and what each pixel belongs to.

    Cells lie on each other, brighter or darker than what is around them; fibres that are none of
    them cross the picture; light is uneven and noise strong. Classes: 0 background and fibres,
    1 inside of a smooth cell, 2 inside of a grained one, 3 border of any cell.

    Returns:
        Grey pictures (count, 1, 64, 64), float32, and labels (count, 64, 64), uint8.
    """
    rng = np.random.default_rng((1871, seed))
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    pictures = np.empty((count, 1, SIDE, SIDE), np.float32)
    labels = np.zeros((count, SIDE, SIDE), np.uint8)
    for i in range(count):
        picture = 0.5 + 0.15 * _wave(rng, x, y, 0.15)
        for _ in range(rng.integers(1, 4)):
            picture += rng.uniform(-0.4, 0.4) * _fibre(rng, x, y)
        for _ in range(rng.integers(4, 9)):
            distance = _cell(rng, x, y)
            kind = int(rng.integers(1, 3))
            grain = 0.12 * (_wave(rng, x, y, 2.4) + _wave(rng, x, y, 2.4)) if kind == 2 else 0.0
            tone = rng.choice((-1, 1)) * rng.uniform(0.1, 0.35) + grain
            # As sharp as optics are.
            inside = 1 / (1 + np.exp(np.clip(distance / 0.6, -30, 30)))
            picture = picture * (1 - inside) + (0.5 + tone) * inside
            labels[i][distance < 0.8] = 3
            labels[i][distance < -0.8] = kind
        pictures[i, 0] = picture + rng.normal(0, rng.uniform(0.03, 0.15), picture.shape)
    return pictures, labels


def _wave(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, frequency: float) -> np.ndarray:
    angle, phase = rng.uniform(0, 2 * math.pi, 2)
    along = math.cos(angle) * x + math.sin(angle) * y
    return np.sin(frequency * rng.uniform(0.6, 1) * along + phase)


def _fibre(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle = rng.uniform(0, math.pi)
    u = math.cos(angle) * (x - rng.uniform(0, SIDE)) + math.sin(angle) * (y - rng.uniform(0, SIDE))
    return np.exp(-((u / rng.uniform(0.7, 1.5)) ** 2))


def _cell(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """About how many pixels outside its outline each pixel lies."""
    angle, size, thin = rng.uniform(0, 2 * math.pi), rng.uniform(4, 10), rng.uniform(0.6, 1)
    dx, dy = x - rng.uniform(0, SIDE), y - rng.uniform(0, SIDE)
    u = math.cos(angle) * dx + math.sin(angle) * dy
    v = (-math.sin(angle) * dx + math.cos(angle) * dy) / thin
    bumps = 1 + rng.uniform(0, 0.15) * np.cos(rng.integers(2, 5) * np.arctan2(v, u))
    return np.hypot(u, v) - size * bumps


def _segment() -> Task:
    from monai.networks.nets import UNet

    def build(widths: tuple[int, ...]) -> nn.Module:
        return UNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=len(CLASSES),
            channels=widths,
            strides=(2,) * (len(widths) - 1),
        )

    def draw(block: int) -> tuple[np.ndarray, ...]:
        pictures, labels = scenes(256, seed=1000 + block)
        return pictures.astype(np.float16), labels

    def scored(seed: int) -> Score:
        pictures, labels = (torch.from_numpy(a) for a in scenes(256, seed=seed))

        def score(network: nn.Module) -> dict[str, float]:
            training = network.training
            with torch.inference_mode():
                network.eval()
                found = torch.cat([network(part).argmax(1) for part in pictures.split(32)])
            network.train(training)
            unions: list[float] = []
            for kind in range(len(CLASSES)):
                a, b = found == kind, labels == kind
                unions.append(float((a & b).sum()) / max(1.0, float((a | b).sum())))
            return {"miou": 100 * sum(unions) / len(unions)}

        return score

    def agree(output: Tensor, told: Tensor) -> Tensor:
        ours, theirs = output.log_softmax(1), told.log_softmax(1)
        return F.kl_div(ours, theirs, log_target=True, reduction="none").sum(1).mean()

    return Task(
        name="segment",
        sizes={"4-8-16": (4, 8, 16), "8-16-32": (8, 16, 32)},
        build=build,
        example=torch.zeros(1, 1, SIDE, SIDE),
        batch_size=8,
        pool=Pool(CACHE / f"segment-{SCENES}", blocks=256, draw=draw),
        loss=F.cross_entropy,
        agree=agree,
        validate=scored(1),
        test=scored(2),
        measure="miou",
    )
