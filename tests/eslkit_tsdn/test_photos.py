"""Photographs as packed raw: they look like themselves again, and are divided by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage import data as skimage_data
from sklearn.datasets import load_sample_image

from eslkit.errors import InputError
from eslkit_tsdn.data import photos as photos_module
from eslkit_tsdn.data.photos import (
    SONY_A7S2_MATRIX,
    TEST_NAMES,
    WHITE_BALANCES,
    Photo,
    packaged_photos,
    raw_photos,
    split,
    unprocess,
)
from eslkit_tsdn.raw import render
from tests.eslkit_tsdn.dng import PHASES, write_dng

CAMERA_FILES = Path(__file__).parents[3] / "shared" / "data" / "raw"
NAMES = [
    *("astronaut", "chelsea", "china", "coffee", "flower"),
    *("hubble", "ihc", "motorcycle", "retina", "rocket"),
]


@pytest.fixture(scope="module")
def photos() -> dict[str, Photo]:
    return {photo.name: photo for photo in packaged_photos()}


def half_size(rgb: np.ndarray) -> np.ndarray:
    """Mean over 2x2 pixels."""
    rows, columns = rgb.shape[0] // 2, rgb.shape[1] // 2
    cells = rgb[: 2 * rows, : 2 * columns].astype(float)
    return cells.reshape(rows, 2, columns, 2, 3).mean((1, 3))


def test_the_packages_have_ten_photographs(photos: dict[str, Photo]) -> None:
    assert list(photos) == NAMES
    for photo in photos.values():
        assert photo.packed.dtype == torch.float32
        assert photo.packed.shape[0] == 4
        assert min(photo.packed.shape[1:]) >= 128
        assert 0 <= photo.packed.min() < photo.packed.max() <= 1
        assert photo.white_balance in WHITE_BALANCES
        assert photo.packed.is_contiguous()


@pytest.mark.parametrize(
    "name, picture",
    [
        ("astronaut", skimage_data.astronaut),
        ("chelsea", skimage_data.chelsea),
        ("coffee", skimage_data.coffee),
        ("rocket", skimage_data.rocket),
        ("china", lambda: load_sample_image("china.jpg")),
        ("flower", lambda: load_sample_image("flower.jpg")),
    ],
)
def test_rendered_photographs_look_like_themselves(
    photos: dict[str, Photo], name: str, picture: object
) -> None:
    photo = photos[name]
    original = half_size(picture())  # type: ignore[operator]
    shown = render(
        photo.packed, white_balance=photo.white_balance, color_matrix=photo.color_matrix
    ).astype(float)
    assert shown.shape == original.shape
    # What differs is detail at the scale of one pixel: the means of 8x8 blocks hardly do.
    rows, columns = (side // 8 for side in shown.shape[:2])
    blocks = [
        image[: rows * 8, : columns * 8].reshape(rows, 8, columns, 8, 3).mean((1, 3))
        for image in (original, shown)
    ]
    assert np.abs(blocks[0] - blocks[1]).mean() < 2.5
    assert np.abs(original.mean((0, 1)) - shown.mean((0, 1))).max() < 2.5


def test_the_same_every_time(photos: dict[str, Photo]) -> None:
    for photo in packaged_photos():
        assert torch.equal(photo.packed, photos[photo.name].packed)
        assert photo.white_balance == photos[photo.name].white_balance


def test_white_balances_are_those_that_occur_in_sid() -> None:
    # Facts, section 9: R 1.71-2.74, B 1.79-3.10 (rounded there).
    for red, green, blue in WHITE_BALANCES:
        assert 1.71 <= red <= 2.74
        assert green == 1
        assert 1.78 <= blue <= 3.10
    assert len(set(WHITE_BALANCES)) == len(WHITE_BALANCES)


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"moon": (("skimage", "data"), "no_such.png", 1)}
    monkeypatch.setattr(photos_module, "_FILES", gone)
    with pytest.raises(InputError, match=r"no_such\.png of skimage is not installed"):
        packaged_photos()
    monkeypatch.setattr(photos_module, "_FILES", {"moon": (("no_such_package", "."), "a", 1)})
    with pytest.raises(InputError, match="of no_such_package is not installed"):
        packaged_photos()


@given(
    st.tuples(*[st.integers(20, 230)] * 3),
    st.sampled_from(WHITE_BALANCES),
    st.booleans(),
)
def test_grey_and_muted_colours_come_back(
    color: tuple[int, int, int], white_balance: tuple[float, float, float], low_pass: bool
) -> None:
    # Colours near grey lie inside both gamuts, so nothing is clipped on the way.
    muted = np.array([round(0.15 * channel + 0.85 * sum(color) / 3) for channel in color])
    rgb = np.broadcast_to(muted, (6, 8, 3)).astype(np.uint8)
    packed = unprocess(
        rgb, white_balance=white_balance, color_matrix=SONY_A7S2_MATRIX, low_pass=low_pass
    )
    assert packed.shape == (4, 3, 4)
    assert torch.equal(packed[1], packed[3])
    shown = render(packed, white_balance=white_balance, color_matrix=SONY_A7S2_MATRIX)
    assert np.abs(shown.astype(int) - rgb[:3, :4]).max() <= 1


def test_white_saturates_every_plane_and_black_none() -> None:
    chosen = {"white_balance": (2.0, 1.0, 2.5), "color_matrix": SONY_A7S2_MATRIX}
    white = np.full((4, 4, 3), 255, dtype=np.uint8)
    assert (unprocess(white, **chosen) > 0.99).all()
    assert (unprocess(white * 0, **chosen) == 0).all()


@pytest.mark.parametrize("level", range(200, 256, 5))
def test_bright_grey_gets_no_tint(level: int) -> None:
    chosen = {"white_balance": (1.7, 1.0, 2.8), "color_matrix": SONY_A7S2_MATRIX}
    grey = np.full((4, 4, 3), level, dtype=np.uint8)
    shown = render(unprocess(grey, **chosen), **chosen)
    assert np.abs(shown.astype(int) - level).max() <= 8


def test_unprocess_samples_the_mosaic() -> None:
    """Without matrix, gains and filter: every plane is the photograph at its own sites."""
    rgb = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    packed = unprocess(rgb, white_balance=(1, 1, 1), color_matrix=None, low_pass=False)
    back = render(packed, white_balance=(1, 1, 1), color_matrix=None)
    assert np.abs(back[..., 0].astype(int) - rgb[0:6:2, 0:8:2, 0]).max() <= 1
    assert np.abs(back[..., 2].astype(int) - rgb[1:6:2, 1:8:2, 2]).max() <= 1


def test_smoothstep_is_undone() -> None:
    values = np.arange(0, 256, 5, dtype=np.uint8)
    rgb = np.repeat(np.repeat(values[None, :, None], 2, 0), 3, 2).repeat(2, 1)
    flat = {"white_balance": (1, 1, 1), "color_matrix": None, "low_pass": False}
    bent = render(
        unprocess(rgb, smoothstep=True, **flat), white_balance=(1, 1, 1), color_matrix=None
    )
    x = bent[0, :, 1] / 255
    assert 255 * (3 * x**2 - 2 * x**3) == pytest.approx(values, abs=1.5)


def test_unprocess_says_what_it_cannot_take() -> None:
    with pytest.raises(InputError, match="uint8"):
        unprocess(np.zeros((4, 4, 3)), white_balance=(1, 1, 1), color_matrix=None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="H x W x 3"):
        unprocess(np.zeros((4, 4), np.uint8), white_balance=(1, 1, 1), color_matrix=None)


def named(*names: str) -> list[Photo]:
    return [Photo(name, torch.zeros(4, 2, 2), (1.0, 1.0, 1.0), None) for name in names]


def test_packaged_photographs_are_divided_by_name(photos: dict[str, Photo]) -> None:
    train, test = split(tuple(photos.values()))
    assert tuple(photo.name for photo in test) == TEST_NAMES
    assert len(train) == 7
    assert not {photo.name for photo in train} & set(TEST_NAMES)


@given(st.sets(st.text("abc", min_size=1), min_size=2, max_size=30), st.randoms())
def test_any_photographs_are_divided_by_name_alone(names: set[str], random: object) -> None:
    shuffled = sorted(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    train, test = ([photo.name for photo in part] for part in split(named(*shuffled)))
    assert train + test == sorted(names)
    assert len(test) == max(1, len(names) // 4)


def test_split_of_few_or_equal_names() -> None:
    train, test = split(named("chelsea", "china"))
    assert [photo.name for photo in (*train, *test)] == ["chelsea", "china"]
    with pytest.raises(InputError, match="two or more photographs"):
        split(named("chelsea"))
    with pytest.raises(InputError, match="different names"):
        split(named("a", "a", "b"))


def shoot(folder: Path, name: str, *, iso: int = 100, phase: str = "RGGB") -> Path:
    mosaic = np.random.default_rng(0).integers(600, 16000, (48, 64)).astype(np.uint16)
    return write_dng(folder / name, mosaic, cfa=PHASES[phase], iso=iso)


def test_a_folder_of_camera_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for index, phase in enumerate(PHASES):
        shoot(tmp_path / "b", f"{index}.ARW", phase=phase)
    shoot(tmp_path, "a.dng")
    (tmp_path / "LICENSE.txt").write_text("not a picture")
    (tmp_path / "thumb.jpg").write_bytes(b"\xff\xd8\xff")
    found = raw_photos(tmp_path)
    assert [photo.name for photo in found] == ["a.dng", *(f"b/{i}.ARW" for i in range(4))]
    assert all(photo.packed.shape == (4, 24, 32) for photo in found)
    assert found[0].white_balance == pytest.approx((2.0, 1.0, 2.5))


def test_many_large_and_dark_files(tmp_path: Path) -> None:
    for index in range(9):
        shoot(tmp_path, f"{index}.dng", iso=100 if index else 6400)
    names = [photo.name for photo in raw_photos(tmp_path, max_photos=3)]
    assert names == ["4.dng", "8.dng"]  # the first of the three is too noisy
    assert len(raw_photos(tmp_path)) == 8
    cut, whole = raw_photos(tmp_path, max_side=10)[0], raw_photos(tmp_path)[0]
    assert torch.equal(cut.packed, whole.packed[:, 7:17, 11:21])
    with pytest.raises(InputError, match="9 camera files, all above ISO 50"):
        raw_photos(tmp_path, max_iso=50)


def test_a_folder_without_camera_files_or_with_a_bad_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        raw_photos(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no camera file"):
        raw_photos(tmp_path)
    (tmp_path / "bad.NEF").write_text("a text, not a picture")
    with pytest.raises(InputError, match=r"bad\.NEF is a text file"):
        raw_photos(tmp_path)


def test_real_camera_files() -> None:
    if not CAMERA_FILES.is_dir():
        pytest.skip(f"no camera files at {CAMERA_FILES}")
    found = raw_photos(CAMERA_FILES, max_side=256)
    assert len(found) == 11
    train, test = split(found)
    assert (len(train), len(test)) == (9, 2)
    assert all(photo.packed.min() >= 0 and photo.packed.max() <= 1 for photo in found)
