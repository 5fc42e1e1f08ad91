"""What a reproduction learns from and is tested on: photographs as stand-in, or SID itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eslkit_tsdn.data.crops import BatchSource
from eslkit_tsdn.data.folders import folder_photos, split_by_folder
from eslkit_tsdn.data.pairs import StoredPairs, TestPair
from eslkit_tsdn.data.photos import Photo, packaged_photos, photos_digest, split
from eslkit_tsdn.data.source import Source
from eslkit_tsdn.data.store import MANIFEST, Store
from eslkit_tsdn.data.store_sources import LongSource, PairSource
from eslkit_tsdn.evaluation import test_pairs
from eslkit_tsdn.recipes.scale import Scale
from eslkit_tsdn.recipes.values import Data

__all__ = ["Pictures", "open_pictures"]


@dataclass(frozen=True)
class Pictures:
    """The opened pictures of a reproduction."""

    words: str
    """What they are."""
    real: Data
    """What networks learn from."""
    synthetic: Data
    """The same with drawn noise; equal where there is no other."""
    crops: int | None
    """Crops in an epoch, where there are epochs."""
    source: Callable[[Data, str], Source]
    """Makes the batches of some data; the word decides which."""
    pairs: Sequence[TestPair]
    """What everything is tested on."""


def open_pictures(scale: Scale, path: str | None) -> Pictures:
    """Read what a reproduction works with.

    Args:
        scale: sizes of batches and crops.
        path: a prepared SID store, or a folder of photographs and camera files; None for the
            packaged photographs.

    Raises:
        InputError: the pictures cannot be used, or do not go with the preset.
        StoreError: the store is damaged.
    """
    if path is None:
        train, test = split(packaged_photos())
        words = "photographs that come with scikit-image and scikit-learn"
        return _photographs(scale, train, test, words=words, kind="packaged")
    if (Path(path) / MANIFEST).is_file():
        return _stored(scale, Store(path))
    photos = folder_photos(path, max_side=scale.largest)
    train, test = split_by_folder(photos)
    words = f"{len(photos)} photographs and camera files of a folder"
    return _photographs(scale, train, test, words=words, kind="folder")


def _photographs(
    scale: Scale, train: Sequence[Photo], test: Sequence[Photo], *, words: str, kind: str
) -> Pictures:
    usable = [photo for photo in train if min(photo.packed.shape[1:]) > scale.crop]
    data = Data.model_validate(
        {
            "kind": kind,
            "digest": photos_digest([*usable, *test]),
            "batch_size": scale.batch_size,
            "crop": scale.crop,
            "gain": scale.gain,
            "largest": scale.largest,
        }
    )

    def source(data: Data, word: str) -> Source:
        return BatchSource(
            usable, batch_size=data.batch_size, crop=data.crop, gain=data.gain, seed=word
        )

    return Pictures(
        words=f"{words}, {len(usable)} to train on and {len(test)} to test on",
        real=data,
        synthetic=data,
        crops=None,
        source=source,
        pairs=test_pairs(test, gain=scale.gain, largest=scale.largest),
    )


def _stored(scale: Scale, store: Store) -> Pictures:
    """SID itself: the first short exposures of the training scenes, ELD's 15 scenes to test on."""
    real = Data(
        kind="store",
        digest=store.manifest.expected_seal(),
        synthetic=False,
        batch_size=scale.batch_size,
        crop=scale.crop,
        largest=scale.largest,
    )
    synthetic = real.model_copy(update={"synthetic": True, "gain": scale.gain})

    def source(data: Data, word: str) -> PairSource | LongSource:
        size, crop = data.batch_size, data.crop
        if data.synthetic:
            return LongSource(store, batch_size=size, crop=crop, seed=word, gain=data.gain)
        return PairSource(store, batch_size=size, crop=crop, seed=word)

    first = source(real, "size")
    pairs = StoredPairs(store, crop=scale.largest)
    return Pictures(
        words=f"{first.epoch_size} crops of real pairs to train on, {len(pairs)} pairs to test on",
        real=real,
        synthetic=synthetic,
        crops=first.epoch_size,
        source=source,
        pairs=pairs,
    )
