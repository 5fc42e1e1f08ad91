"""Test pairs out of a prepared store, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eslkit.errors import InputError
from eslkit_tsdn.data.sid import SidPair, select
from eslkit_tsdn.data.store import Frame, Store
from eslkit_tsdn.raw import normalize_planes, pack

__all__ = ["StoredPairs", "TestPair"]


@dataclass(frozen=True, eq=False)
class TestPair:
    """A noisy short exposure, amplified, and the clean long one of the same scene."""

    __test__ = False  # not a test of pytest's

    name: str
    """Where it comes from: 10003_00_0.04s."""
    ratio: int
    """Exposure ratio, to a whole number; the noisy picture is amplified by the exact one."""
    noisy: Tensor
    """(1, 4, h, w) float32 in [0, 1], order R, G1, B, G2."""
    clean: Tensor
    """(1, 4, h, w) float32 in [0, 1]."""
    white_balance: tuple[float, float, float]
    """Gains of R, G, B that make grey grey, G = 1."""
    color_matrix: NDArray[np.float64] | None
    """3x3, white-balanced camera colours to linear sRGB; None where unknown."""


class StoredPairs(Sequence[TestPair]):
    """The test pairs of a named split, each read from the store when it is asked for.

    Prepared as ELD's protocol says (facts.md section 11, steps 1 to 4): packed, scaled by the
    black level of each channel and the white level, clipped to [0, 1]; the short exposure then
    amplified by the ratio and clipped again; the centre cut out before the network.

    Args:
        store: a prepared store.
        split: a name in `eslkit_tsdn.data.sid.SPLIT_SIZES`.
        crop: side of the centre crop in packed pixels, 512 in ELD's protocol; None for the whole
            frame. A shorter side is kept whole.
        multiple: sides are cut to multiples of this, so that networks can halve them.
        drop_misaligned: leave out SID's three misaligned scenes.

    Raises:
        InputError: no such split, none of its pairs in the store, or a picture smaller than
            `multiple`.
    """

    def __init__(
        self,
        store: Store,
        *,
        split: str = "eld15",
        crop: int | None = 512,
        multiple: int = 16,
        drop_misaligned: bool = False,
    ) -> None:
        self.store, self.split, self.crop, self.multiple = store, split, crop, multiple
        self.pairs = select(store.pairs, split, drop_misaligned=drop_misaligned)
        for pair in self.pairs:
            _window(store.frame(pair.short, role="short"), crop=crop, multiple=multiple)

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> TestPair: ...

    @overload
    def __getitem__(self, index: slice) -> list[TestPair]: ...

    def __getitem__(self, index: int | slice) -> TestPair | list[TestPair]:
        """Reads one pair, or several."""
        if isinstance(index, slice):
            return [self._read(pair) for pair in self.pairs[index]]
        return self._read(self.pairs[index])

    def __iter__(self) -> Iterator[TestPair]:
        """Reads one pair after the other."""
        return map(self._read, self.pairs)

    def _read(self, pair: SidPair) -> TestPair:
        short = self.store.frame(pair.short, role="short")
        long = self.store.frame(pair.long, role="long")
        noisy = self._packed(short).mul_(pair.ratio).clamp_(max=1.0)
        matrix = None if long.color_matrix is None else np.array(long.color_matrix)
        clean = self._packed(long)
        return TestPair(pair.name, round(pair.ratio), noisy, clean, long.white_balance, matrix)

    def _packed(self, frame: Frame) -> Tensor:
        """The frame's centre, (1, 4, h, w) in [0, 1]."""
        rows, columns = _window(frame, crop=self.crop, multiple=self.multiple)
        planes = pack(self.store.mosaic(frame)[rows, columns], frame.pattern)
        unit = normalize_planes(planes, black=frame.black, white=frame.white)
        return torch.from_numpy(unit)[None]


def _window(frame: Frame, *, crop: int | None, multiple: int) -> tuple[slice, slice]:
    """Rows and columns of the mosaic's centre, whole Bayer cells."""
    slices: list[slice] = []
    for cells in (frame.height // 2, frame.width // 2):
        side = min(cells, crop or cells) // multiple * multiple
        if not side:
            raise InputError(
                f"{frame.key} has {frame.height // 2}x{frame.width // 2} packed pixels; to test on "
                f"it, both sides of the crop must have {multiple} at least"
            )
        start = (cells - side) // 2
        slices.append(slice(2 * start, 2 * (start + side)))
    return slices[0], slices[1]
