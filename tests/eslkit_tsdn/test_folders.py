"""Folders of photographs: what is read, what is scaled down, what is tested on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from eslkit.errors import InputError
from eslkit_tsdn.data.folders import blockiness, folder_photos, split_by_folder
from eslkit_tsdn.data.photos import Photo


def smooth(height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """A picture with detail, but without blocks."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    for axis in (0, 1):
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, 2, axis)
    return np.clip(128 + 20 * noise, 0, 255).astype(np.uint8)


def blocky(height: int, width: int) -> NDArray[np.uint8]:
    """The same with a step around every square of 8 x 8."""
    steps = np.random.default_rng(1).integers(0, 60, (-(-height // 8), -(-width // 8), 1))
    large = np.kron(steps, np.ones((8, 8, 1)))[:height, :width]
    return np.clip(smooth(height, width) * 0.5 + large, 0, 255).astype(np.uint8)


def photo(name: str) -> Photo:
    return Photo(name, torch.zeros(4, 8, 8), (1.0, 1.0, 1.0), None)


def test_blocks_are_told_from_detail() -> None:
    assert blockiness(smooth(128, 160)) < 1.08
    assert blockiness(blocky(128, 160)) > 1.5


def test_blocky_jpegs_are_halved_and_others_kept(tmp_path: Path) -> None:
    Image.fromarray(blocky(160, 192)).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(blocky(160, 192)).save(tmp_path / "b.png")  # no JPEG: blocks are its subject
    Image.fromarray(smooth(160, 192)).save(tmp_path / "sub.png")
    shapes = {each.name: tuple(each.packed.shape) for each in folder_photos(tmp_path)}
    assert shapes == {"a.jpg": (4, 40, 48), "b.png": (4, 80, 96), "sub.png": (4, 80, 96)}


def test_large_ones_are_scaled_until_they_fit(tmp_path: Path) -> None:
    Image.fromarray(smooth(300, 500)).save(tmp_path / "large.png")
    [large] = folder_photos(tmp_path, max_side=100)
    assert large.packed.shape == (4, 50, 83)  # by 3: 500 pixels are 250 packed ones
    assert 0 <= large.packed.min() < large.packed.max() <= 1


def test_the_same_name_has_the_same_colours(tmp_path: Path) -> None:
    Image.fromarray(smooth(64, 64)).save(tmp_path / "one.png")
    [first], [second] = folder_photos(tmp_path), folder_photos(tmp_path)
    assert first.white_balance == second.white_balance
    assert torch.equal(first.packed, second.packed)


def test_too_small_pictures_are_left_out(tmp_path: Path) -> None:
    Image.fromarray(smooth(32, 200)).save(tmp_path / "icon.png")
    with pytest.raises(InputError, match="holds no picture that can be used"):
        folder_photos(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_broken_picture_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.png is no picture that can be read"):
        folder_photos(tmp_path)


def test_no_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        folder_photos(tmp_path / "nowhere")


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 9), min_size=1),
    st.integers(1, 20),
)
def test_every_folder_is_divided(folders: dict[str, int], max_test: int) -> None:
    photos = [photo(f"{name}/{i:02d}") for name, count in folders.items() for i in range(count)]
    if len(photos) < 2:
        with pytest.raises(InputError, match="two or more pictures"):
            split_by_folder(photos, max_test=max_test)
        return
    train, test = split_by_folder(photos, max_test=max_test)
    names, tests = {p.name for p in train}, {p.name for p in test}
    assert names
    assert tests
    assert not names & tests
    assert len(test) <= max_test
    for name, count in folders.items():
        kept = sum(each.startswith(f"{name}/") for each in names)
        assert kept >= count - max(1, count // 4)
