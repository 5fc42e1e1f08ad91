"""Training batches out of a prepared store: real pairs, or its long exposures with drawn noise.

Crops lie on the mosaic, on whole Bayer cells of phase RGGB; a mosaic of another phase is used
from its first red pixel on. Mirroring moves the phase by one pixel, so the mirrored axis is cut
one pixel further on; transposing RGGB only swaps its two greens, which are packed by place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from eslkit.errors import InputError
from eslkit_tsdn.data.crops import seeded
from eslkit_tsdn.data.sid import SidPair, select, split_of
from eslkit_tsdn.data.source import SID_RATIOS, NoisyBatch, Ratios
from eslkit_tsdn.data.store import Frame, Store
from eslkit_tsdn.noise import SONY_A7S2_ELD, CameraNoise, sample_noisy
from eslkit_tsdn.raw import Pattern, normalize_planes, pack

__all__ = ["LongSource", "PairSource", "Place", "cut", "tiles"]

_RGGB: Pattern = ((0, 1), (3, 2))
_SWAPPED = [0, 3, 2, 1]
"""Where the planes of a transposed mosaic come from: its greens change places."""


@dataclass(frozen=True)
class Place:
    """Where a crop lies in a mosaic, and how it is turned."""

    top: int
    """First row, in cells of 2x2 pixels from the mosaic's first red pixel on."""
    left: int
    """First column, in cells."""
    flip_rows: bool = False
    """Upside down."""
    flip_columns: bool = False
    """Left to right."""
    transpose: bool = False
    """Rows for columns, after the mirroring."""


def tiles(frame: Frame, *, size: int) -> list[Place]:
    """The crops that cover a frame side by side, without overlap, around its centre.

    A frame of SID, 1424x2128 packed pixels, has eight of 512x512.

    Args:
        frame: a file of the store.
        size: height and width of a crop in packed pixels.

    Raises:
        InputError: the frame is smaller than a crop.
    """
    rows, columns = _cells(frame, size=size)
    top, left = rows % size // 2, columns % size // 2
    return [
        Place(top + i * size, left + j * size)
        for i in range(rows // size)
        for j in range(columns // size)
    ]


def cut(store: Store, frame: Frame, place: Place, *, size: int) -> Tensor:
    """Reads one crop of a store, scaled so that black is 0 and white is 1, and clipped.

    The crop takes one row and column of pixels from beside its place where it is mirrored. Where
    the frame is no larger than the crop along an axis there is none, and it stays unmirrored.

    Args:
        store: a prepared store.
        frame: one of its files.
        place: where, and how turned.
        size: height and width in packed pixels.

    Returns:
        (4, size, size) float32 in [0, 1], order R, G1, B, G2 by place in the crop.
    """
    first_row, first_column = _red(frame)
    rows = _span(place.top, size=size, cells=(frame.height - first_row) // 2, flip=place.flip_rows)
    columns = _span(
        place.left, size=size, cells=(frame.width - first_column) // 2, flip=place.flip_columns
    )
    # Views of the file: pixels are read once, by `pack`, and stay uint16 until they are turned.
    mosaic = store.mosaic(frame)[first_row:, first_column:][rows, columns]
    planes, black = pack(mosaic, _RGGB), frame.black
    if place.transpose:
        planes = np.ascontiguousarray(planes[_SWAPPED].swapaxes(1, 2))
        black = tuple(black[plane] for plane in _SWAPPED)
    return torch.from_numpy(normalize_planes(planes, black=black, white=frame.white))


def _span(first: int, *, size: int, cells: int, flip: bool) -> slice:
    """The pixels along one axis, forwards or backwards, from a pixel of the first one's colour."""
    if not flip or cells <= size:
        return slice(2 * first, 2 * (first + size))
    last = 2 * (min(first, cells - size - 1) + size)
    return slice(last, last - 2 * size if last > 2 * size else None, -1)


def _red(frame: Frame) -> tuple[int, int]:
    """Row and column of the first red pixel; from there on the pattern is RGGB."""
    (a, b), (c, _) = frame.pattern
    return {a: (0, 0), b: (0, 1), c: (1, 0)}.get(0, (1, 1))


def _cells(frame: Frame, *, size: int) -> tuple[int, int]:
    """Rows and columns of cells from the first red pixel on; a crop must fit in."""
    first_row, first_column = _red(frame)
    rows, columns = (frame.height - first_row) // 2, (frame.width - first_column) // 2
    if min(rows, columns) < size:
        raise InputError(
            f"{frame.key} has {rows}x{columns} packed pixels, too few for crops of {size}x{size}: "
            "take smaller crops"
        )
    return rows, columns


def _turned(place: Place, generator: torch.Generator) -> Place:
    flip_rows, flip_columns, transpose = (torch.rand(3, generator=generator) < 0.5).tolist()
    return Place(place.top, place.left, flip_rows, flip_columns, transpose)


class _Epochs:
    """Items in an order that is shuffled for every epoch: item i of an endless sequence."""

    def __init__(self, num_items: int, *, seed: int | str) -> None:
        self.num_items, self.seed = num_items, seed
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __getitem__(self, index: int) -> int:
        epoch, position = divmod(index, self.num_items)
        return self._order(epoch)[position]

    def _shuffled(self, epoch: int) -> list[int]:
        generator = seeded("epoch", self.seed, epoch)
        return torch.randperm(self.num_items, generator=generator).tolist()


class PairSource:
    """Batches of real pairs: crops of short exposures, amplified, and of their long ones.

    The short exposure is scaled, clipped to [0, 1], amplified by the pair's ratio and clipped
    again; the long one only scaled and clipped (facts.md section 11, steps 2 and 3). Both are
    mirrored and transposed alike, each with probability one half.

    Args:
        store: a prepared store.
        split: whose pairs (`eslkit_tsdn.data.sid.SPLIT_SIZES`). `train-first`, 280 pairs, is what
            ELD and the paper train on: 8 crops of 512 each, 2,240 in an epoch.
        batch_size: crops in a batch.
        crop: height and width of a crop in packed pixels.
        seed: together with the number of the batch it decides everything.
        order: `tiles`: an epoch sees every crop that `tiles` gives of every pair once; `scenes`:
            as SID trains, an epoch sees every scene once, at a random place of one of its short
            exposures drawn at random (take the split `train`).

    Raises:
        InputError: no such split, none of its pairs in the store, or a frame smaller than a crop.
    """

    def __init__(
        self,
        store: Store,
        *,
        split: str = "train-first",
        batch_size: int = 1,
        crop: int = 512,
        seed: int | str = 0,
        order: Literal["tiles", "scenes"] = "tiles",
    ) -> None:
        self.store, self.batch_size, self.crop, self.seed = store, batch_size, crop, seed
        pairs = select(store.pairs, split)
        for pair in pairs:
            _cells(self._frames(pair)[0], size=crop)
        self._item = self._tile_items(pairs) if order == "tiles" else self._scene_items(pairs)

    def batch(self, index: int) -> NoisyBatch:
        """Batch number `index`: the same bits for the same seed, whenever it is asked for."""
        start = index * self.batch_size
        items = [self._crop(item) for item in range(start, start + self.batch_size)]
        noisy, clean, ratio = zip(*items, strict=True)
        return NoisyBatch(torch.stack(noisy), torch.stack(clean), torch.tensor(ratio))

    def batches(self, start: int, stop: int) -> Iterator[NoisyBatch]:
        """Batches `start` to `stop - 1`, in order."""
        return (self.batch(index) for index in range(start, stop))

    def _frames(self, pair: SidPair) -> tuple[Frame, Frame]:
        short = self.store.frame(pair.short, role="short")
        return short, self.store.frame(pair.long, role="long")

    def _crop(self, item: int) -> tuple[Tensor, Tensor, float]:
        generator = seeded("crop", self.seed, item)
        pair, place = self._item(item, generator)
        place = _turned(place, generator)
        short, long = (
            cut(self.store, frame, place, size=self.crop) for frame in self._frames(pair)
        )
        return short.mul_(pair.ratio).clamp_(max=1.0), long, pair.ratio

    def _tile_items(self, pairs: Sequence[SidPair]) -> _Item:
        items = [
            (pair, place)
            for pair in pairs
            for place in tiles(self._frames(pair)[0], size=self.crop)
        ]
        self.epoch_size = len(items)
        epochs = _Epochs(len(items), seed=self.seed)
        return lambda item, generator: items[epochs[item]]

    def _scene_items(self, pairs: Sequence[SidPair]) -> _Item:
        scenes: dict[str, list[SidPair]] = {}
        for pair in pairs:
            scenes.setdefault(pair.scene, []).append(pair)
        shorts = list(scenes.values())
        self.epoch_size = len(shorts)
        epochs = _Epochs(len(shorts), seed=self.seed)

        def draw(item: int, generator: torch.Generator) -> tuple[SidPair, Place]:
            mine = shorts[epochs[item]]
            pair = mine[int(torch.randint(len(mine), (), generator=generator))]
            return pair, _anywhere(self._frames(pair)[0], size=self.crop, generator=generator)

        return draw


_Item = Callable[[int, torch.Generator], tuple[SidPair, Place]]


def _anywhere(frame: Frame, *, size: int, generator: torch.Generator) -> Place:
    rows, columns = _cells(frame, size=size)
    top, left = (
        int(torch.randint(cells - size + 1, (), generator=generator)) for cells in (rows, columns)
    )
    return Place(top, left)


class LongSource:
    """Batches of long exposures with noise drawn from a camera's calibration (ELD's U-Net).

    Noise is drawn afresh for every crop, after it is mirrored and transposed: its rows are always
    the crop's rows, as a sensor gives them.

    Args:
        store: a prepared store; its short exposures are not needed.
        split: `train`, `val` or `test`: whose scenes.
        batch_size: crops in a batch.
        crop: height and width of a crop in packed pixels; 161 scenes of SID have 1,288 of 512.
        seed: together with the number of the batch it decides everything.
        ratios: exposure ratios of the drawn noise.
        camera: whose noise is drawn.
        gain: system gain K of the camera in DN per electron; None draws it per crop.

    Raises:
        InputError: the store has no long exposure of the split, or one smaller than a crop.
    """

    def __init__(
        self,
        store: Store,
        *,
        split: Literal["train", "val", "test"] = "train",
        batch_size: int = 1,
        crop: int = 512,
        seed: int | str = 0,
        ratios: Ratios = SID_RATIOS,
        camera: CameraNoise = SONY_A7S2_ELD,
        gain: float | None = None,
    ) -> None:
        frames = [frame for frame in store.longs if split_of(frame.name) == split]
        if not frames:
            raise InputError(f"the store {store.path} has no long exposure of the split {split}")
        self.store, self.batch_size, self.crop, self.seed = store, batch_size, crop, seed
        self.ratios, self.camera, self.gain = ratios, camera, gain
        self._items = [(frame, place) for frame in frames for place in tiles(frame, size=crop)]
        self.epoch_size = len(self._items)
        self._epochs = _Epochs(len(self._items), seed=seed)

    def batch(self, index: int) -> NoisyBatch:
        """Batch number `index`: the same bits for the same seed, whenever it is asked for."""
        start = index * self.batch_size
        clean = torch.stack([self._clean(i) for i in range(start, start + self.batch_size)])
        generator = seeded("noise", self.seed, index)
        ratio = self.ratios.draw(self.batch_size, generator=generator)
        noisy = sample_noisy(clean, ratio, camera=self.camera, generator=generator, K=self.gain)
        return NoisyBatch(noisy=noisy, clean=clean, ratio=ratio)

    def batches(self, start: int, stop: int) -> Iterator[NoisyBatch]:
        """Batches `start` to `stop - 1`, in order."""
        return (self.batch(index) for index in range(start, stop))

    def _clean(self, item: int) -> Tensor:
        frame, place = self._items[self._epochs[item]]
        turned = _turned(place, seeded("crop", self.seed, item))
        return cut(self.store, frame, turned, size=self.crop)
