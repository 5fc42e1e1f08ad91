"""Batches and test pairs out of a store: against plain slicing of the decoded mosaics."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eslkit.errors import InputError, StoreError
from eslkit_tsdn.data.crops import seeded
from eslkit_tsdn.data.decoder import decode
from eslkit_tsdn.data.pairs import StoredPairs
from eslkit_tsdn.data.sid_folder import find_dataset
from eslkit_tsdn.data.store import Frame, Store, StoreManifest
from eslkit_tsdn.data.store_sources import LongSource, PairSource, Place, cut, tiles
from eslkit_tsdn.raw import normalize, pack, read_raw
from tests.eslkit_tsdn.dng import PHASES
from tests.eslkit_tsdn.sid_folder import SIZE, make_sid, mosaic_of, write_camera_file

CROP = 12  # the frames are 26 x 42 packed: two rows of three tiles


def store_of(folder: Path, out: Path) -> Store:
    """A store, decoded in this process."""
    dataset = find_dataset(folder)
    frames = tuple(decode(file, store=out) for file in dataset.files)
    pairs = tuple((pair.short, pair.long) for pair in dataset.pairs)
    manifest = StoreManifest(frames=frames, pairs=pairs).sealed()
    (out / "manifest.json").write_text(manifest.model_dump_json())
    return Store(out)


@pytest.fixture(scope="module")
def sid(tmp_path_factory) -> Path:
    return make_sid(tmp_path_factory.mktemp("sid"))


@pytest.fixture(scope="module")
def store(sid, tmp_path_factory) -> Store:
    return store_of(sid, tmp_path_factory.mktemp("store"))


def numbered(
    root: Path, *, size: tuple[int, int], pattern: tuple, step: int = 1
) -> tuple[Store, Frame]:
    """A store of one frame whose values tell where they stand: 200 * row + column + 1."""
    (root / "long").mkdir(parents=True, exist_ok=True)
    mosaic = 200 * np.arange(size[0])[:, None] + np.arange(size[1])[None, :] + 1
    np.save(root / "long" / "00001_00_10s.npy", mosaic.astype(np.uint16))
    frame = Frame(
        name="00001_00_10s.ARW",
        role="long",
        source_size=0,
        source_mtime_ns=0,
        size=128 + 2 * size[0] * size[1],
        sha256="",
        height=size[0],
        width=size[1],
        low=1,
        high=int(mosaic.max()),
        pattern=pattern,
        black=(0.0,) * 4,
        white=65536.0,
        white_balance=(2.0, 1.0, 2.0),
        color_matrix=None,
        exposure=10.0,
        iso=200,
        camera=None,
    )
    manifest = StoreManifest(frames=(frame,), pairs=()).sealed()
    (root / "manifest.json").write_text(manifest.model_dump_json())
    return Store(root), frame


CODES = {"RGGB": ((0, 1), (3, 2)), "GRBG": ((1, 0), (2, 3)), "GBRG": ((3, 2), (0, 1))}
CODES |= {"BGGR": ((2, 3), (1, 0))}


@given(data=st.data())
def test_crops_keep_the_bayer_phase_and_are_whole_pieces(data, tmp_path_factory) -> None:
    pattern = data.draw(st.sampled_from(sorted(CODES.values())))
    size = data.draw(st.tuples(st.integers(7, 20), st.integers(7, 20)))
    store, frame = numbered(tmp_path_factory.getbasetemp() / "n", size=size, pattern=pattern)
    side = data.draw(st.integers(1, 3))
    place = data.draw(st.sampled_from(tiles(frame, size=side)))
    flips = data.draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    place = Place(place.top, place.left, *flips)
    crop = cut(store, frame, place, size=side)
    assert crop.shape == (4, side, side)
    at = (crop * 65536 - 1).round().long()
    rows, columns = at // 200, at % 200
    # Every plane holds sites of its own colour; the greens may swap, each stays one of both.
    codes = torch.tensor(pattern)[rows % 2, columns % 2]
    assert (codes[0] == 0).all()
    assert (codes[2] == 2).all()
    assert set(codes[1].unique().tolist()) <= {1, 3}
    assert set(codes[3].unique().tolist()) <= {1, 3}
    # Together they are a whole piece of the mosaic, and no pixel stands there twice.
    assert at.unique().numel() == 4 * side * side
    assert rows.max() - rows.min() == columns.max() - columns.min() == 2 * side - 1
    # It is the asked place, moved by one pixel at most.
    (first_row,), (first_column,) = (axis.tolist() for axis in np.where(np.array(pattern) == 0))
    assert abs(int(rows.min()) - first_row - 2 * place.top) <= 1
    assert abs(int(columns.min()) - first_column - 2 * place.left) <= 1


def test_all_eight_turns_occur_and_an_unturned_crop_is_the_packed_slice(store, tmp_path) -> None:
    frame = store.longs[0]
    raw = pack(mosaic_of(frame.name), ((0, 1), (3, 2)))
    expected = np.clip((raw.astype(np.float32) - 512) / (16383 - 512), 0, 1)
    crop = cut(store, frame, Place(3, 5), size=CROP)
    assert np.array_equal(crop.numpy(), expected[:, 3 : 3 + CROP, 5 : 5 + CROP])
    turned = {
        tuple(cut(store, frame, Place(3, 5, a, b, c), size=CROP).flatten().tolist())
        for a in (False, True)
        for b in (False, True)
        for c in (False, True)
    }
    assert len(turned) == 8
    mirrored = cut(store, frame, Place(3, 5, flip_rows=True), size=CROP).numpy()
    assert np.array_equal(mirrored[0], expected[0, 4 : 4 + CROP, 5 : 5 + CROP][::-1])
    assert np.array_equal(mirrored[3], expected[3, 3 : 3 + CROP, 5 : 5 + CROP][::-1])


def test_a_frame_of_sid_has_eight_tiles_around_its_centre(store) -> None:
    frame = store.longs[0].model_copy(update={"height": 2848, "width": 4256})
    places = tiles(frame, size=512)
    assert [(place.top, place.left) for place in places] == [
        (200 + 512 * i, 40 + 512 * j) for i in range(2) for j in range(4)
    ]
    with pytest.raises(InputError, match="26x42 packed pixels, too few for crops of 27x27"):
        tiles(store.longs[0], size=27)


def test_an_epoch_sees_every_crop_once_in_an_order_of_its_own(store) -> None:
    source = PairSource(store, batch_size=1, crop=CROP, seed=3)
    assert source.epoch_size == 4 * 6  # four first shots of two training scenes, six tiles each
    epochs = [[source.batch(epoch * 24 + i) for i in range(24)] for epoch in range(2)]
    assert not torch.equal(epochs[0][0].clean, epochs[1][0].clean)
    ratios = [Counter(batch.ratio.item() for batch in epoch) for epoch in epochs]
    assert ratios[0] == ratios[1] == {100.0: 12, 250.0: 6, 300.0: 6}
    places = {
        (batch.ratio.item(), tuple(batch.noisy.flatten().sort().values.tolist()))
        for batch in epochs[0]
    }
    assert len(places) == 24


def test_a_batch_is_the_pair_amplified_and_depends_on_seed_and_number_alone(store) -> None:
    source = PairSource(store, batch_size=5, crop=CROP, seed=3)
    ahead = [source.batch(k) for k in range(8)]
    torch.manual_seed(99)
    again = PairSource(store, batch_size=5, crop=CROP, seed=3).batches(5, 8)
    for batch, before in zip(again, ahead[5:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, before, strict=True))
    other = PairSource(store, batch_size=5, crop=CROP, seed=4).batch(0)
    assert not torch.equal(other.noisy, ahead[0].noisy)
    batch = ahead[0]
    assert batch.noisy.shape == batch.clean.shape == (5, 4, CROP, CROP)
    assert batch.noisy.dtype == batch.clean.dtype == batch.ratio.dtype == torch.float32
    for noisy, ratio in zip(batch.noisy, batch.ratio, strict=True):
        # Short exposures hold values of 480 to 699 DN.
        steps = noisy / ratio * (16383 - 512)
        inside = noisy < 1
        assert (steps - steps.round()).abs()[inside].max() < 0.01
        assert noisy.min() == 0
        assert noisy.max() == 1


def test_short_and_long_are_cut_at_the_same_place(tmp_path) -> None:
    folder = make_sid(tmp_path / "sid", shots=(), lists=False)
    long = read_raw(folder / "Sony" / "long" / "00001_00_10s.ARW")
    # A short exposure that is the long one, 100 times darker than its range allows to clip.
    dark = 512 + (long.mosaic.astype(np.int64) - 512).clip(0) // 110
    write_camera_file(folder / "Sony" / "short", "00001_00_0.1s", mosaic=dark.astype(np.uint16))
    source = PairSource(store_of(folder, tmp_path / "store"), crop=CROP, seed=0)
    for batch in source.batches(0, 30):
        assert (batch.noisy * 110 / 100 - batch.clean).abs().max() < 110 / (16383 - 512)


def test_one_random_short_of_every_scene_as_sid_trains(store) -> None:
    source = PairSource(store, split="train", crop=CROP, order="scenes", seed=1)
    assert source.epoch_size == 2
    drawn = [[source._item(2 * epoch + i, seeded(epoch, i)) for i in (0, 1)] for epoch in range(60)]
    for epoch in drawn:
        assert {pair.scene for pair, _ in epoch} == {"00001", "00002"}
    assert {pair.short for epoch in drawn for pair, _ in epoch} == {
        pair.short for pair in store.pairs if pair.scene in ("00001", "00002")
    }
    places = {(place.top, place.left) for epoch in drawn for _, place in epoch}
    assert len(places) > 80  # of 15 * 31
    batch = source.batch(7)
    assert batch.clean.shape == (1, 4, CROP, CROP)


def test_drawn_noise_on_long_exposures(store, tmp_path) -> None:
    source = LongSource(store, batch_size=4, crop=CROP, seed=2, gain=2.0)
    assert source.epoch_size == 2 * 6
    first = source.batch(5)
    again = LongSource(store, batch_size=4, crop=CROP, seed=2, gain=2.0).batch(5)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    cleans = torch.cat([batch.clean for batch in source.batches(0, 3)])
    assert len({tuple(clean.flatten().sort().values.tolist()) for clean in cleans}) == 12
    assert ((first.ratio >= 100) & (first.ratio <= 300)).all()
    assert first.ratio.unique().numel() == 4
    assert (first.noisy - first.clean).abs().mean() > 0.01
    alone = make_sid(tmp_path / "sid", shots=(), longs=["20005_00_10s"], lists=False)
    other = store_of(alone, tmp_path / "store")
    with pytest.raises(InputError, match="no long exposure of the split train"):
        LongSource(other, crop=CROP)
    assert LongSource(other, split="val", crop=CROP).epoch_size == 6


def test_test_pairs_follow_the_protocol(sid, store) -> None:
    pairs = StoredPairs(store, split="eld15", crop=16)
    assert len(pairs) == 4
    assert [pair.ratio for pair in pairs] == [300, 250, 100, 100]
    for pair, known in zip(pairs, pairs.pairs, strict=True):
        short = normalize(read_raw(sid / "Sony" / "short" / known.short))
        clean = normalize(read_raw(sid / "Sony" / "long" / known.long))
        noisy = np.minimum(short * np.float32(known.ratio), 1)
        assert np.array_equal(pair.noisy[0].numpy(), noisy[:, 5:21, 13:29])
        assert np.array_equal(pair.clean[0].numpy(), clean[:, 5:21, 13:29])
        assert pair.name == known.name
        assert pair.white_balance == pytest.approx((2.0, 1.0, 2.5))
        assert pair.color_matrix.shape == (3, 3)
    whole = StoredPairs(store, split="sid129", crop=None, multiple=2)
    assert len(whole) == 6
    assert whole[0].clean.shape == (1, 4, SIZE[0] // 2, SIZE[1] // 2)
    assert [pair.name for pair in whole[1:3]] == [pair.name for pair in whole.pairs[1:3]]
    assert len(StoredPairs(store, split="sid129", crop=16, drop_misaligned=True)) == 5
    with pytest.raises(InputError, match="26x42 packed pixels"):
        StoredPairs(store, split="eld15", crop=16, multiple=32)


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_is_packed_by_colour_and_cut_from_its_first_red_pixel(tmp_path, phase) -> None:
    black = {"cfa": PHASES[phase], "black": (510, 511, 512, 513)}
    long = write_camera_file(tmp_path / "sid" / "long", "20005_00_10s", **black)
    write_camera_file(tmp_path / "sid" / "short", "20005_00_0.1s", **black)
    store = store_of(tmp_path / "sid", tmp_path / "store")
    [pair] = StoredPairs(store, split="val", crop=None, multiple=2)
    raw = read_raw(long)
    assert np.array_equal(pair.clean[0].numpy(), normalize(raw))
    # A crop starts at a red pixel, and the level of every site stays its own.
    [frame] = store.longs
    crop = cut(store, frame, Place(2, 3), size=CROP)
    (row,), (column,) = np.where(np.array(raw.pattern) == 0)
    cell = np.array([[raw.black[code] for code in line] for line in raw.pattern])
    levels = np.tile(cell, (SIZE[0] // 2, SIZE[1] // 2))
    unit = ((raw.mosaic - levels) / (16383 - levels)).clip(0, 1)
    piece = unit[row + 4 : row + 4 + 2 * CROP, column + 6 : column + 6 + 2 * CROP]
    assert crop.numpy() == pytest.approx(pack(piece, CODES["RGGB"]), abs=1e-6)


def test_a_store_that_changes_under_ones_feet_says_so(sid, tmp_path) -> None:
    store = store_of(sid, tmp_path / "store")
    path = store.path / store.longs[0].path
    np.save(path, np.zeros((4, 4), np.uint16))
    with pytest.raises(StoreError, match=r"it has 160 bytes, the manifest says 8864"):
        store.mosaic(store.longs[0])
    path.write_bytes(b"damaged")
    with pytest.raises(StoreError, match="cannot be read"):
        store.mosaic(store.longs[0])
    path.unlink()
    with pytest.raises(StoreError, match="eslkit-tsdn verify"):
        store.mosaic(store.longs[0])
