"""DNG files: what goes in comes out of LibRaw, to the bit and to the tag."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import rawpy
import tifffile
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from eslkit.errors import InputError, StoreError
from eslkit_tsdn.color import camera_to_srgb
from eslkit_tsdn.dng import encode_dng, write_dng
from eslkit_tsdn.raw import RawImage, read_raw
from eslkit_tsdn.shot import Shot, read_shot
from tests.eslkit_tsdn.dng import SONY_XYZ
from tests.eslkit_tsdn.dng import write_dng as write_camera_file
from tests.eslkit_tsdn.test_raw import CODES, real_files

MATRIX = np.reshape(SONY_XYZ, (3, 3))


def raw_of(mosaic: np.ndarray, **changes: object) -> RawImage:
    made = RawImage(
        mosaic=mosaic,
        pattern=CODES["RGGB"],
        black=(512.0,) * 4,
        white=16383.0,
        white_balance=(2.0, 1.0, 2.5),
        color_matrix=None,
        exposure=0.1,
        iso=800,
        path=Path("00001_00_0.1s.ARW"),
    )
    return replace(made, **changes)


@st.composite
def photographs(draw: st.DrawFn) -> tuple[RawImage, Shot]:
    height, width = draw(st.integers(24, 70)), draw(st.integers(24, 70))
    white = draw(st.sampled_from([255, 1023, 4095, 16383, 65535]))
    levels = [float(draw(st.integers(0, white // 4))) for _ in range(4)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    gains = draw(st.tuples(*[st.floats(0.4, 4.0)] * 2))
    raw = raw_of(
        rng.integers(0, white + 1, (height, width)).astype(np.uint16),
        pattern=CODES[draw(st.sampled_from(sorted(CODES)))],
        black=tuple(levels),
        white=float(white),
        exposure=draw(st.sampled_from([1 / 8000, 1 / 30, 0.033, 0.1, 1.3, 30.0])),
        iso=draw(st.sampled_from([50, 100, 25600, 65535])),
    )
    shot = Shot(
        make=draw(st.sampled_from(["SONY", "Nobody & Sons"])),
        model=draw(st.sampled_from(["ILCE-7SM2", "Box 3"])),
        lens=draw(st.sampled_from([None, "FE 55mm F1.8 ZA"])),
        artist=draw(st.sampled_from([None, "Somebody"])),
        taken=draw(st.datetimes(datetime(1990, 1, 2), datetime(2037, 1, 1))).replace(microsecond=0),
        aperture=draw(st.sampled_from([1.4, 2.8, 11.0])),
        focal_length=draw(st.sampled_from([7.1, 55.0])),
        orientation=draw(st.integers(1, 8)),
        camera_from_xyz=MATRIX,
        as_shot=(gains[0], 1.0, gains[1]),
        crop=draw(st.sampled_from([None, (2, 4, 16, 18)])),
    )
    return raw, shot


@settings(max_examples=40, phases=[Phase.generate])
@given(photographs())
def test_a_dng_says_all_that_the_camera_said(
    tmp_path_factory: pytest.TempPathFactory, photograph: tuple[RawImage, Shot]
) -> None:
    raw, shot = photograph
    path = tmp_path_factory.mktemp("dng") / "a.dng"
    write_dng(raw.mosaic, path, raw=raw, shot=shot)
    back = read_raw(path)
    assert np.array_equal(back.mosaic, raw.mosaic)
    assert (back.pattern, back.black, back.white) == (raw.pattern, raw.black, raw.white)
    assert back.white_balance == pytest.approx(shot.as_shot, rel=1e-4)
    assert back.exposure == pytest.approx(raw.exposure, rel=1e-4)
    assert back.iso == raw.iso
    # The rows' scale is the white's, which the white balance has.
    assert back.color_matrix == pytest.approx(camera_to_srgb(MATRIX), abs=1e-4)
    seen = read_shot(path)
    colors = {code: value for code, *_, value in seen.profile}
    written = np.reshape(colors[50721], (3, 3, 2))
    assert written[..., 0] / written[..., 1] == pytest.approx(MATRIX, abs=1e-5)
    same = ("make", "model", "lens", "artist", "taken", "orientation", "crop")
    assert [getattr(seen, name) for name in same] == [getattr(shot, name) for name in same]
    assert seen.aperture == pytest.approx(shot.aperture, rel=1e-5)
    assert seen.focal_length == pytest.approx(shot.focal_length, rel=1e-5)


def test_the_picture_of_a_real_file_is_the_same_from_its_dng(tmp_path: Path) -> None:
    for file in real_files()[::4]:
        raw, shot = read_raw(file), read_shot(file)
        path = tmp_path / "a.dng"
        write_dng(raw.mosaic, path, raw=raw, shot=shot)
        again = read_raw(path)
        assert np.array_equal(again.mosaic, raw.mosaic)
        assert (again.pattern, again.black, again.white) == (raw.pattern, raw.black, raw.white)
        assert (again.iso, again.exposure) == (raw.iso, pytest.approx(raw.exposure, rel=1e-4))
        seen = read_shot(path)
        assert (seen.make, seen.model, seen.taken) == (shot.make, shot.model, shot.taken)
        assert (seen.orientation, seen.crop) == (shot.orientation, shot.crop)
        assert seen.pixel_aspect == pytest.approx(shot.pixel_aspect, rel=1e-5)
        if shot.camera_from_xyz is not None:
            assert seen.camera_from_xyz == pytest.approx(shot.camera_from_xyz, abs=1e-5)
            pictures = []
            for each in (file, path):
                with rawpy.imread(str(each)) as opened:
                    pictures.append(opened.postprocess(use_camera_wb=True, half_size=True))
            apart = np.abs(pictures[0].astype(int) - pictures[1].astype(int))
            assert apart.max() <= 1, "rounding of the white balance to fractions"


def test_makers_of_real_files_are_found() -> None:
    for file in real_files():
        shot = read_shot(file)
        assert shot.make in ("Canon", "Eastman Kodak Company")
        assert shot.model is not None and file.parent.name.split("_")[-1] in shot.model
        assert shot.taken is not None and shot.aperture is not None


def test_a_dng_s_own_profile_is_taken_over(tmp_path: Path) -> None:
    """Two matrices, a profile's name and a gain map: what one matrix cannot say."""
    second = tuple(int(v) for value in SONY_XYZ for v in (round(value * 9000), 10000))
    extra = [
        (50722, "2i", 9, second, False),
        (50779, "H", 1, 17, False),
        (50936, "s", 0, "Camera Standard", False),
        (50730, "2i", 1, (1, 2), False),
        (51009, 7, 8, bytes(8), False),
    ]
    mosaic = np.full((48, 64), 900, dtype=np.uint16)
    source = write_camera_file(tmp_path / "camera.dng", mosaic, extra=extra)
    raw, shot = read_raw(source), read_shot(source)
    write_dng(mosaic, tmp_path / "a.dng", raw=raw, shot=shot, brighten=2.0)
    with tifffile.TiffFile(source) as a, tifffile.TiffFile(tmp_path / "a.dng") as b:
        there, here = a.pages.first.tags, b.pages.first.tags
        for code in (50721, 50722, 50728, 50778, 50779, 50936, 51009):
            assert here[code].value == there[code].value, code
        assert here[50730].value == (5, 2)


def test_what_is_not_known_is_not_made_up(tmp_path: Path) -> None:
    raw = raw_of(np.full((32, 32), 900, dtype=np.uint16), exposure=None, iso=None)
    write_dng(raw.mosaic, tmp_path / "a.dng", raw=raw, shot=Shot())
    with tifffile.TiffFile(tmp_path / "a.dng") as file:
        tags = file.pages.first.tags
        exif = tags[34665].value
        assert not {50728, 50730, 306, 315} & {tag.code for tag in tags}
    assert set(exif) == {"ExifVersion"}
    back = read_raw(tmp_path / "a.dng")
    assert (back.exposure, back.iso, back.white_balance) == (
        None,
        None,
        pytest.approx((1, 1, 1), abs=1e-3),
    )
    # Without a matrix the camera's colours stand for those of sRGB.
    assert back.color_matrix == pytest.approx(np.eye(3), abs=1e-4)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    raw = raw_of(np.zeros((32, 32), dtype=np.uint16))
    with pytest.raises(InputError, match=r"\(30, 32\) \(uint16\) cannot stand for"):
        write_dng(raw.mosaic[:30], tmp_path / "a.dng", raw=raw, shot=Shot())
    with pytest.raises(InputError, match="float64"):
        encode_dng(raw.mosaic.astype(float), raw=raw, shot=Shot())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="a file is in the way"):
        write_dng(raw.mosaic, tmp_path / "file" / "a.dng", raw=raw, shot=Shot())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
def test_exiftool_finds_nothing_wrong(tmp_path: Path) -> None:
    raw = raw_of(np.full((33, 47), 900, dtype=np.uint16), iso=102400)
    shot = Shot("SONY", "ILCE-7SM2", "lens", "me", datetime(2024, 5, 6, 7, 8, 9), 2.8, 55.0, 6)
    write_dng(raw.mosaic, tmp_path / "a.dng", raw=raw, shot=replace(shot, as_shot=(2.0, 1.0, 2.5)))
    command = ["exiftool", "-validate", "-warning", "-error", "-a", str(tmp_path / "a.dng")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.split(":", 1)[1].strip() == "OK", told
