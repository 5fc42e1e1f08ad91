"""What the commands train and test on, opened from one word: pictures, batches, test pairs.

The word is `packaged` (photographs that come with scikit-image and scikit-learn), a store that
`eslkit-tsdn prepare` has made of SID, or a folder of photographs and camera files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eslkit.errors import InputError
from eslkit_tsdn.data.crops import BatchSource
from eslkit_tsdn.data.folders import folder_photos, split_by_folder
from eslkit_tsdn.data.pairs import StoredPairs, TestPair
from eslkit_tsdn.data.photos import Photo, packaged_photos, photos_digest, split
from eslkit_tsdn.data.source import SID_RATIOS, Ratios, Source
from eslkit_tsdn.data.store import MANIFEST, Store
from eslkit_tsdn.data.store_sources import LongSource, PairSource
from eslkit_tsdn.evaluation import test_pairs

__all__ = ["PACKAGED", "Dataset", "Noise", "Photographs", "StoredSid", "open_dataset"]

PACKAGED = "packaged"
"""The word for the photographs that come with the packages."""

Noise = Literal["real", "synthetic"]
"""`real`: pairs of short and long exposures. `synthetic`: long ones with drawn noise."""

_WHOLE = 1 << 20  # pixels a side: more than any picture has


@dataclass(frozen=True)
class Photographs:
    """Clean pictures, with noise drawn from the calibration of the Sony A7S II."""

    kind: Literal["packaged", "folder"]
    """Where they come from."""
    train: tuple[Photo, ...]
    """Trained on."""
    test: tuple[Photo, ...]
    """Tested on."""
    digest: str
    """SHA-256 over names and pixels of all."""
    noise: Noise = "synthetic"
    """Always drawn."""

    @property
    def words(self) -> str:
        """What it is, for people."""
        where = "packaged photographs" if self.kind == PACKAGED else "pictures of a folder"
        return f"{len(self.train)} {where} to train on, {len(self.test)} others to test on"

    def source(
        self,
        *,
        batch_size: int,
        crop: int,
        seed: int | str,
        gain: float | None = None,
        ratios: Ratios = SID_RATIOS,
    ) -> Source:
        """Training batches, from the photographs that a crop fits in.

        Raises:
            InputError: it fits in none.
        """
        usable = [photo for photo in self.train if min(photo.packed.shape[1:]) > crop]
        return BatchSource(
            usable or self.train,
            batch_size=batch_size,
            crop=crop,
            seed=seed,
            gain=gain,
            ratios=ratios,
        )

    def num_crops(self, *, crop: int) -> int:
        """Crops without overlap in the training pictures: what an epoch sees.

        Raises:
            InputError: a crop fits in none of them.
        """
        sizes = [photo.packed.shape[1:] for photo in self.train]
        if all(min(size) <= crop for size in sizes):
            largest = max(sizes, key=min)
            raise InputError(
                f"No picture is larger than a crop of {crop}x{crop} packed pixels; the largest has "
                f"{largest[0]}x{largest[1]}. Take smaller crops (--crop), another preset, such as "
                "mini, or larger pictures."
            )
        return sum((height // crop) * (width // crop) for height, width in sizes)

    def pairs(
        self,
        *,
        split: str | None = None,
        largest: int | None = None,
        gain: float | None = None,
        multiple: int = 16,
        drop_misaligned: bool = False,
    ) -> Sequence[TestPair]:
        """The test pictures at x100, x250 and x300, never trained on.

        Args:
            split: None; photographs have no named splits.
            largest: the centre of so many packed pixels a side; None for all of them.
            gain: system gain K of the noise in DN per electron; None draws one per picture.
            multiple: sides are cut to multiples of this, so that networks can halve them.
            drop_misaligned: does not count: no picture is misaligned with itself.

        Raises:
            InputError: a split was asked for; photographs have none.
        """
        if split is not None:
            raise InputError(
                f"split={split!r}, but photographs have no named splits; leave it out (--split), "
                "or pass a prepared SID store."
            )
        return test_pairs(self.test, gain=gain, largest=largest or _WHOLE, multiple=multiple)


@dataclass(frozen=True)
class StoredSid:
    """SID in a prepared store."""

    store: Store
    """Opened."""
    noise: Noise = "real"
    """Real pairs, or drawn noise on the long exposures (ELD's way)."""

    @property
    def kind(self) -> Literal["store"]:
        """A store."""
        return "store"

    @property
    def digest(self) -> str:
        """SHA-256 over the manifest, which holds those of all files."""
        return self.store.manifest.expected_seal()

    @property
    def words(self) -> str:
        """What it is, for people."""
        how = "real pairs" if self.noise == "real" else "drawn noise on its long exposures"
        return f"{self.store.path}, {how}"

    def source(
        self,
        *,
        batch_size: int,
        crop: int,
        seed: int | str,
        gain: float | None = None,
        ratios: Ratios = SID_RATIOS,
    ) -> PairSource | LongSource:
        """Training batches: an epoch sees every crop of the training scenes once.

        Raises:
            InputError: the store has no training scenes, or the crop is larger than a frame.
        """
        if self.noise == "real":
            return PairSource(self.store, batch_size=batch_size, crop=crop, seed=seed)
        return LongSource(
            self.store, batch_size=batch_size, crop=crop, seed=seed, gain=gain, ratios=ratios
        )

    def num_crops(self, *, crop: int) -> int:
        """Crops without overlap in the training pairs; SID has 2,240 of 512 in all."""
        return self.source(batch_size=1, crop=crop, seed=0).epoch_size

    def pairs(
        self,
        *,
        split: str | None = None,
        largest: int | None = None,
        gain: float | None = None,
        multiple: int = 16,
        drop_misaligned: bool = False,
    ) -> Sequence[TestPair]:
        """Real pairs of a named split, read when they are asked for.

        Args:
            split: as for `StoredPairs`; None for `eld15`.
            largest: the centre of so many packed pixels a side; None for whole frames.
            gain: does not count: the noise is real.
            multiple: sides are cut to multiples of this.
            drop_misaligned: leave out SID's three misaligned scenes.

        Raises:
            InputError: no such split, or none of its pairs in the store.
        """
        return StoredPairs(
            self.store,
            split=split or "eld15",
            crop=largest,
            multiple=multiple,
            drop_misaligned=drop_misaligned,
        )


Dataset = Photographs | StoredSid
"""Pictures to train on and pictures to test on."""


def open_dataset(where: str | Path, *, noise: Noise | None = None) -> Dataset:
    """Opens what a command was pointed to.

    Args:
        where: `packaged`, the folder of a prepared store, or a folder of pictures.
        noise: where the noise comes from; None for real pairs where there are any.

    Raises:
        InputError: there is nothing that can be used, or it has no real pairs.
        StoreError: the store is damaged.
    """
    path = Path(where)
    if (path / MANIFEST).is_file() and str(where) != PACKAGED:
        return StoredSid(Store(path), noise or "real")
    if noise == "real":
        raise InputError(
            f"{where} is no prepared store, so it has no real pairs of short and long exposures; "
            "prepare SID with `eslkit-tsdn prepare`, or leave the noise synthetic."
        )
    if str(where) == PACKAGED:
        photos = packaged_photos()
        return Photographs(PACKAGED, *split(photos), photos_digest(photos))
    if (path / "Sony" / "short").is_dir() or (path / "short").is_dir():
        raise InputError(
            f"{path} looks like the SID dataset as it comes; run `eslkit-tsdn prepare {path}` "
            "once, and pass the store that it makes."
        )
    photos = folder_photos(path)
    return Photographs("folder", *split_by_folder(photos), photos_digest(photos))
