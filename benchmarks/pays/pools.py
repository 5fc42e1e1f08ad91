"""Training samples drawn once and kept on disk, so that a batch costs next to nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CACHE = Path(tempfile.gettempdir()) / "eslkit-pays"
"""Where samples, networks and runs under way are; it can be taken away."""

Draw = Callable[[int], tuple[np.ndarray, ...]]
"""Number of a block -> arrays of as many samples, (samples, ...) each."""


class Pool:
    """Samples in one file an array; each a pair, or more, of arrays.

    Args:
        folder: where they are kept; drawn when they are not there.
        blocks: how many blocks are drawn.
        draw: draws one.
    """

    def __init__(self, folder: Path, *, blocks: int, draw: Draw) -> None:
        if not (folder / "done").exists():
            self._fill(folder, blocks, draw)
        names = sorted(folder.glob("*.npy"))
        self.arrays = [np.load(name, mmap_mode="r") for name in names]
        self.size = len(self.arrays[0])
        self._drawn, self._order = (-1, -1), np.arange(0)

    @staticmethod
    def _fill(folder: Path, blocks: int, draw: Draw) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        kept: list[Any] = []
        for block in range(blocks):
            for index, array in enumerate(draw(block)):
                if block == 0:
                    shape = (blocks * len(array), *array.shape[1:])
                    part = folder / f"{index}.npy.{os.getpid()}"
                    kept.append((part, np.lib.format.open_memmap(part, "w+", array.dtype, shape)))
                kept[index][1][block * len(array) : (block + 1) * len(array)] = array
        for index, (part, array) in enumerate(kept):
            array.flush()
            part.replace(folder / f"{index}.npy")
        (folder / "done").touch()

    def batch(self, index: int, *, size: int, seed: int) -> tuple[Tensor, ...]:
        """Batch number `index` of a training; every sample once, then all in another order."""
        each = self.size // size
        epoch, place = divmod(index, each)
        if (seed, epoch) != self._drawn:
            self._order = np.random.default_rng((seed, epoch)).permutation(self.size)
            self._drawn = (seed, epoch)
        chosen = np.sort(self._order[place * size : (place + 1) * size])
        return tuple(torch.from_numpy(np.array(array[chosen])) for array in self.arrays)
