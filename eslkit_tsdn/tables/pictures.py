"""What a reproduction learns from and is tested on, as recipes name it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eslkit_tsdn.data.pairs import TestPair
from eslkit_tsdn.data.source import Source
from eslkit_tsdn.datasets import PACKAGED, Dataset, open_dataset
from eslkit_tsdn.presets import Preset
from eslkit_tsdn.recipes.values import Data

__all__ = ["Pictures", "open_pictures"]


@dataclass(frozen=True)
class Pictures:
    """The opened pictures of a reproduction."""

    dataset: Dataset
    """What networks learn from and are tested on."""
    drawn: Dataset
    """The same pictures with drawn noise; equal where all noise is drawn."""
    real: Data
    """`dataset` as recipes name it."""
    synthetic: Data
    """`drawn` as recipes name it."""
    pairs: Sequence[TestPair]
    """What everything is tested on."""

    def source(self, data: Data, word: str) -> Source:
        """The batches of some data; the word decides which."""
        dataset = self.drawn if data.synthetic else self.dataset
        return dataset.source(batch_size=data.batch_size, crop=data.crop, seed=word, gain=data.gain)


def open_pictures(preset: Preset, where: str | None) -> Pictures:
    """Read what a reproduction works with.

    Args:
        preset: sizes of batches and crops.
        where: as for `open_dataset`; None for the packaged photographs.

    Raises:
        InputError: the pictures cannot be used.
        StoreError: the store is damaged.
    """
    dataset = open_dataset(where or PACKAGED)
    drawn = dataset
    if dataset.noise == "real":
        drawn = open_dataset(where or PACKAGED, noise="synthetic")
    return Pictures(
        dataset=dataset,
        drawn=drawn,
        real=_data(dataset, preset),
        synthetic=_data(drawn, preset),
        pairs=dataset.pairs(largest=preset.largest, gain=preset.gain),
    )


def _data(dataset: Dataset, preset: Preset) -> Data:
    synthetic = dataset.noise == "synthetic"
    return Data(
        kind=dataset.kind,
        digest=dataset.digest,
        synthetic=synthetic,
        batch_size=preset.batch_size,
        crop=preset.crop,
        gain=preset.gain if synthetic else None,
        largest=preset.largest,
    )
