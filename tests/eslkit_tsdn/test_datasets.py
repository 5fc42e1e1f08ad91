"""One word for what is trained and tested on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eslkit.errors import InputError
from eslkit_tsdn import datasets
from eslkit_tsdn.data.pairs import StoredPairs
from eslkit_tsdn.data.store import Store
from eslkit_tsdn.data.store_sources import LongSource, PairSource
from eslkit_tsdn.datasets import Photographs, StoredSid, open_dataset
from tests.eslkit_tsdn.fakes import drawn_photos
from tests.eslkit_tsdn.sid_folder import make_sid
from tests.eslkit_tsdn.test_store_sources import store_of


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sid")
    store_of(make_sid(root / "raw"), root / "store")
    return root / "store"


def test_a_store_gives_real_pairs_or_drawn_noise(store):
    sid = open_dataset(store)
    assert isinstance(sid, StoredSid) and (sid.kind, sid.noise) == ("store", "real")
    real = sid.source(batch_size=2, crop=8, seed=1).batch(3)
    expected = PairSource(Store(store), batch_size=2, crop=8, seed=1).batch(3)
    assert torch.equal(real.noisy, expected.noisy)
    drawn = open_dataset(store, noise="synthetic")
    long = LongSource(Store(store), batch_size=2, crop=8, seed=1, gain=4.0)
    batch = drawn.source(batch_size=2, crop=8, seed=1, gain=4.0).batch(3)
    assert torch.equal(batch.noisy, long.batch(3).noisy)
    # 26x42 packed pixels: 3x5 crops; four first shots of the two training scenes.
    assert sid.num_crops(crop=8) == 4 * 15
    assert drawn.num_crops(crop=8) == 2 * 15
    assert sid.digest == drawn.digest


def test_test_pairs_of_a_store_are_its_splits(store):
    pairs = open_dataset(store).pairs(largest=16)
    assert [pair.name for pair in pairs] == [
        pair.name for pair in StoredPairs(Store(store), split="eld15", crop=16)
    ]
    whole = open_dataset(store).pairs(split="test", drop_misaligned=True, multiple=2)
    assert [(p.name[:5], tuple(p.clean.shape)) for p in whole] == [("10185", (1, 4, 26, 42))] * 3
    with pytest.raises(InputError, match="there is no split 'none'"):
        open_dataset(store).pairs(split="none")


def test_photographs(monkeypatch):
    monkeypatch.setattr(datasets, "packaged_photos", lambda: drawn_photos(4))
    data = open_dataset("packaged")
    assert isinstance(data, Photographs) and (data.kind, data.noise) == ("packaged", "synthetic")
    assert (len(data.train), len(data.test)) == (3, 1)
    assert data.num_crops(crop=16) == 3 * 2 * 3
    pairs = data.pairs(gain=4.0, largest=32)
    assert [(p.name, p.ratio) for p in pairs] == [("drawn-3", r) for r in (100, 250, 300)]
    assert "3 packaged photographs to train on, 1 others" in data.words
    with pytest.raises(InputError, match=r"split='eld15', but photographs have no named splits"):
        data.pairs(split="eld15")
    with pytest.raises(InputError, match=r"larger than a crop of 64x64.*the largest has 40x48"):
        data.num_crops(crop=64)


def test_a_folder_of_pictures(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(4):
        picture = rng.integers(0, 255, (80, 96, 3)).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    data = open_dataset(tmp_path)
    assert (data.kind, data.num_crops(crop=8)) == ("folder", 3 * 5 * 6)
    with pytest.raises(InputError, match="no prepared store, so it has no real pairs"):
        open_dataset(tmp_path, noise="real")


def test_the_dataset_as_it_comes_is_recognised(tmp_path):
    (tmp_path / "Sony" / "short").mkdir(parents=True)
    with pytest.raises(InputError, match=r"SID dataset as it comes; run `eslkit-tsdn prepare"):
        open_dataset(tmp_path)
