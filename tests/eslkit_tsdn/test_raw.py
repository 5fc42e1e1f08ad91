"""Camera files: real ones, made ones in all phases, and everything that is refused."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import rawpy
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from eslkit.errors import InputError
from eslkit_tsdn.color import camera_to_srgb, srgb_decode, srgb_encode
from eslkit_tsdn.data.photos import SONY_A7S2_MATRIX
from eslkit_tsdn.exif import plausible, read_camera, read_exposure
from eslkit_tsdn.raw import normalize, pack, read_raw, render, unpack
from tests.eslkit_tsdn.dng import PHASES, SONY_XYZ, write_dng

CAMERA_FILES = Path(__file__).parents[3] / "shared" / "data" / "raw"
CODES = {
    "RGGB": ((0, 1), (3, 2)),
    "GRBG": ((1, 0), (2, 3)),
    "GBRG": ((3, 2), (0, 1)),
    "BGGR": ((2, 3), (1, 0)),
}
SITES = {
    "RGGB": [(0, 0), (0, 1), (1, 1), (1, 0)],
    "GRBG": [(0, 1), (0, 0), (1, 0), (1, 1)],
    "GBRG": [(1, 0), (1, 1), (0, 1), (0, 0)],
    "BGGR": [(1, 1), (1, 0), (0, 0), (0, 1)],
}
"""Row and column of R, G1 (beside R), B, G2 (beside B), written down by hand."""

SID_NAME = "00001_00_0.1s.ARW"


def noise_mosaic(height: int = 48, width: int = 64) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(600, 16383, (height, width)).astype(np.uint16)


def camera_files() -> list[Path]:
    """Real camera files, or nothing where the project is developed without them."""
    return sorted((CAMERA_FILES / "digicam_corpus").rglob("*.CRW")) + sorted(
        (CAMERA_FILES / "digicam_corpus").rglob("*.KDC")
    )


def real_files() -> list[Path]:
    found = camera_files()
    if not found:
        pytest.skip(f"no camera files at {CAMERA_FILES}")
    return found


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("size", [(48, 64), (47, 63), (47, 64)])
def test_every_phase_and_size_comes_through_the_decoder(
    tmp_path: Path, phase: str, size: tuple[int, int]
) -> None:
    mosaic = noise_mosaic(*size)
    # Black levels are stored row by row of the 2x2 cell.
    path = write_dng(tmp_path / SID_NAME, mosaic, cfa=PHASES[phase], black=(510, 511, 512, 513))
    raw = read_raw(path)

    assert np.array_equal(raw.mosaic, mosaic)
    assert raw.pattern == CODES[phase]
    assert raw.black == tuple(510.0 + 2 * i + j for i, j in SITES[phase])
    assert raw.white == 16383.0
    assert raw.white_balance == pytest.approx((2.0, 1.0, 2.5))
    assert (raw.exposure, raw.iso, raw.path) == (0.1, 800, path)
    assert raw.color_matrix == pytest.approx(SONY_A7S2_MATRIX, abs=1e-3)

    even = mosaic[: size[0] // 2 * 2, : size[1] // 2 * 2]
    planes = pack(raw.mosaic, raw.pattern)
    for plane, (i, j) in zip(planes, SITES[phase], strict=True):
        assert np.array_equal(plane, even[i::2, j::2])
    assert np.array_equal(unpack(planes, raw.pattern), even)

    expected = (planes - np.reshape(raw.black, (4, 1, 1))) / (
        16383 - np.reshape(raw.black, (4, 1, 1))
    )
    assert normalize(raw).dtype == np.float32
    assert normalize(raw) == pytest.approx(np.clip(expected, 0, 1), abs=1e-6)


def test_the_visible_area_decides_the_phase(tmp_path: Path) -> None:
    # The pattern starts at the active area; LibRaw moves an odd margin on by one pixel.
    area = (50829, "I", 4, (1, 1, 47, 63), False)
    raw = read_raw(write_dng(tmp_path / "a.dng", noise_mosaic(), extra=[area]))
    assert raw.pattern == CODES["BGGR"]
    assert np.array_equal(raw.mosaic, noise_mosaic()[2:47, 2:63])


@given(
    st.sampled_from(sorted(CODES)), st.integers(2, 9), st.integers(2, 9), st.sampled_from("BHIfd")
)
def test_unpack_undoes_pack(phase: str, height: int, width: int, dtype: str) -> None:
    pattern = CODES[phase]
    stack = np.arange(3 * height * width).reshape(3, height, width).astype(dtype)
    even = stack[:, : height // 2 * 2, : width // 2 * 2]
    planes = pack(stack, pattern)
    assert planes.dtype == stack.dtype
    assert planes.shape == (3, 4, height // 2, width // 2)
    assert np.array_equal(unpack(planes, pattern), even)
    assert np.array_equal(pack(unpack(planes, pattern), pattern), planes)


def test_pack_says_what_it_cannot_take() -> None:
    with pytest.raises(InputError, match="no Bayer phase"):
        pack(np.zeros((4, 4)), ((0, 1), (1, 2)))
    with pytest.raises(InputError, match="no full 2x2"):
        pack(np.zeros((1, 4)), CODES["RGGB"])
    with pytest.raises(InputError, match="shape"):
        unpack(np.zeros((3, 4, 4)), CODES["RGGB"])


def test_real_camera_files_agree_with_rawpy() -> None:
    for path in real_files():
        raw = read_raw(path)
        with rawpy.imread(str(path)) as reference:
            assert np.array_equal(raw.mosaic, reference.raw_image_visible)
            height, width = np.array(raw.mosaic.shape) // 2 * 2
            colors = reference.raw_colors_visible[:height, :width]
            planes = pack(raw.mosaic, raw.pattern)
            for code in range(4):
                chosen = raw.mosaic[:height, :width][colors == code]
                assert np.array_equal(planes[code].ravel(), chosen), (path, code)
            assert raw.black == tuple(map(float, reference.black_level_per_channel))
            assert raw.white == reference.white_level
        assert raw.exposure is not None, path
        assert 1e-3 < raw.exposure < 1, path
        assert raw.iso in (50, 84, 160), path
        assert np.isfinite(normalize(raw)).all(), path


def test_real_camera_files_are_what_their_makers_say() -> None:
    for path in real_files():
        raw = read_raw(path)
        if path.suffix == ".CRW":
            assert raw.pattern == CODES["RGGB"]
            assert raw.mosaic.shape == (1720, 2312)
            assert raw.black == (32.0,) * 4
            assert raw.white == 1023.0
            assert raw.color_matrix is not None
            assert min(raw.white_balance) >= 1
        else:
            # Their stored gains are [0, 1, 0, 0]: not known, so none are applied.
            assert raw.pattern == CODES["GRBG"]
            assert raw.white_balance == (1.0, 1.0, 1.0)
            assert raw.color_matrix is None


def test_a_real_file_cut_short_is_refused(tmp_path: Path) -> None:
    files = real_files()
    for path in (files[0], files[-1]):
        whole = path.read_bytes()
        for part in (0.001, 0.3, 0.99):
            cut = tmp_path / path.name
            cut.write_bytes(whole[: int(part * len(whole))])
            with pytest.raises(InputError, match=rf"{path.name} is .*cut short"):
                read_raw(cut)


def test_a_dump_without_header_is_refused() -> None:
    dump = CAMERA_FILES / "mushfiqulalam_isp" / "DSC_1339_768x512_rggb.raw"
    if not dump.exists():
        pytest.skip(f"no file {dump}")
    # LibRaw takes it for an 8-bit camera's file, by its length alone.
    with rawpy.imread(str(dump)) as guessed:
        assert guessed.raw_image.shape == (768, 1024)
    with pytest.raises(InputError, match="dump without a header"):
        read_raw(dump)


def test_a_text_of_a_length_that_libraw_knows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.ARW"
    path.write_bytes(b"words " * (768 * 1024 // 6))
    with pytest.raises(InputError, match=r"notes\.ARW is a text file"):
        read_raw(path)


@pytest.mark.parametrize(
    "content, kind",
    [
        (b"shopping list\n" * 9, "a text file"),
        (b"", "an empty file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "a PNG picture"),
        (b"\xff\xd8\xff\xe0" + bytes(99), "a JPEG picture"),
        (b"FOVb" + bytes(99), "Foveon"),
        (b"PK\x03\x04" + bytes(99), "zip"),
        (bytes(range(256)) * 9, "recognised"),
        (b"II*\0" + bytes(99), "cut short"),
    ],
)
def test_what_is_no_raw_file_is_named(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / SID_NAME
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{SID_NAME} is .*{kind}"):
        read_raw(path)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.ARW does not exist"):
        read_raw(tmp_path / "x.ARW")
    with pytest.raises(InputError, match="is a folder"):
        read_raw(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.ARW")
        with pytest.raises(InputError, match=r"pipe\.ARW is a device or a pipe"):
            read_raw(tmp_path / "pipe.ARW")
    with (tmp_path / "huge.ARW").open("wb") as file:
        file.truncate(2**34)  # nothing is stored, nor read
    with pytest.raises(InputError, match=r"huge\.ARW is not a raw file that can be recognised"):
        read_raw(tmp_path / "huge.ARW")
    if hasattr(os, "getuid") and os.getuid() != 0:
        path = write_dng(tmp_path / "locked.dng", noise_mosaic())
        path.chmod(0)
        with pytest.raises(InputError, match="cannot be read"):
            read_raw(path)


XTRANS = [1, 1, 0, 1, 1, 2, 1, 1, 2, 1, 1, 0, 2, 0, 1, 0, 2, 1]
XTRANS += [1, 1, 2, 1, 1, 0, 1, 1, 0, 1, 1, 2, 0, 2, 1, 2, 0, 1]


def test_other_colour_filters_are_refused(tmp_path: Path) -> None:
    path, mosaic = tmp_path / "f.dng", noise_mosaic()
    write_dng(path, mosaic[:, :60], cfa=XTRANS, period=(6, 6), black=(512,) * 36)
    with pytest.raises(InputError, match=r"f\.dng is an X-Trans file"):
        read_raw(path)
    write_dng(path, mosaic, cfa=(3, 4, 5, 1))
    with pytest.raises(InputError, match="colour filter GMCY"):
        read_raw(path)
    write_dng(path, np.stack([mosaic] * 3, -1), photometric=34892)
    with pytest.raises(InputError, match="several colours at every pixel"):
        read_raw(path)


def test_several_frames_are_refused(tmp_path: Path) -> None:
    path = write_dng(tmp_path / "burst.dng", noise_mosaic(), num_frames=3)
    with pytest.raises(InputError, match=r"burst\.dng is a file of several frames"):
        read_raw(path)


def test_levels_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    path = write_dng(tmp_path / "f.dng", noise_mosaic(), black=(900,) * 4, white=800)
    with pytest.raises(InputError, match="white level of 800"):
        read_raw(path)


def test_libraw_is_kept_from_printing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_dng(tmp_path / "f.dng", noise_mosaic())
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match="cut short"):
        read_raw(path)
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


def test_files_with_broken_bytes_are_read_or_refused(tmp_path: Path) -> None:
    whole = write_dng(tmp_path / "f.dng", noise_mosaic()).read_bytes()
    rng = random.Random(0)
    num_refused = 0
    for _ in range(150):
        broken = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            broken[rng.randrange(520)] = rng.randrange(256)
        path = tmp_path / "broken.dng"
        path.write_bytes(broken)
        try:
            raw = read_raw(path)
        except InputError as error:
            num_refused += 1
            assert "broken.dng" in str(error)  # noqa: PT017
        else:
            assert normalize(raw).shape[0] == 4
    assert 20 < num_refused < 150


def test_exposure_is_read_from_either_directory_and_never_guessed(tmp_path: Path) -> None:
    path = write_dng(tmp_path / "f.dng", noise_mosaic(), exposure=(1, 30), iso=3200)
    assert read_exposure(path) == (pytest.approx(1 / 30), 3200)
    write_dng(path, noise_mosaic(), exposure=(1, 0), iso=0)
    assert read_exposure(path) == (None, None)
    path.write_bytes(b"MM\0*\0\0\0\x08\0\x01\x88\x27\0\x03\0\0\0\x01\x01\x90\0\0")
    assert read_exposure(path) == (None, 400)
    for content in (b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"II*\0\x04\0\0\0" * 9, b"FUJIFILM"):
        path.write_bytes(content)
        assert read_exposure(path) == (None, None)


def test_the_matrix_is_the_one_that_sid_states() -> None:
    matrix = camera_to_srgb(np.reshape(SONY_XYZ, (3, 3)))
    assert matrix == pytest.approx(SONY_A7S2_MATRIX, abs=1e-3)
    assert matrix is not None
    assert matrix.sum(axis=1) == pytest.approx(np.ones(3))
    assert camera_to_srgb(np.zeros((4, 3))) is None
    assert camera_to_srgb(np.ones((3, 3))) is None


def test_the_srgb_curve() -> None:
    # Reference points of IEC 61966-2-1.
    assert srgb_encode([0.0, 0.0031308, 0.2140411, 1.0, 2.0]) == pytest.approx(
        [0.0, 0.04045, 0.5, 1.0, 1.0], abs=1e-5
    )
    levels = np.linspace(0, 1, 256)
    assert srgb_encode(srgb_decode(levels)) == pytest.approx(levels, abs=1e-12)


def test_render_keeps_grey_grey_and_white_white() -> None:
    gains = (2.0, 1.0, 2.5)
    grey = np.stack([np.full((2, 3), 0.2 / gain) for gain in (2.0, 1.0, 2.5, 1.0)])
    picture = render(grey, white_balance=gains, color_matrix=SONY_A7S2_MATRIX)
    assert picture.shape == (2, 3, 3)
    assert picture.dtype == np.uint8
    assert (picture == np.round(255 * srgb_encode(0.2))).all()
    white = render(np.ones((4, 2, 2)), white_balance=gains, color_matrix=SONY_A7S2_MATRIX)
    assert (white == 255).all()
    with pytest.raises(InputError, match="packed planes"):
        render(np.ones((3, 2, 2)), white_balance=gains, color_matrix=None)


def test_numbers_that_no_camera_has_are_not_known(tmp_path: Path) -> None:
    assert plausible(0.1, 200.4) == (0.1, 200)
    for nonsense in (0.0, -1.0, float("inf"), float("nan"), 1e30):
        assert plausible(nonsense, nonsense) == (None, None)


def test_the_camera_is_named_once_and_never_guessed(tmp_path: Path) -> None:
    path = write_dng(tmp_path / "f.dng", noise_mosaic())
    assert read_raw(path).camera == read_camera(path) == "SONY ILCE-7SM2"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"ILCE-7SM2\0", b"Sony\x01 \xe9X \0"))
    assert read_camera(path) == "Sony X"
    for content in (b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"FUJIFILM", whole[:100]):
        path.write_bytes(content)
        assert read_camera(path) is None
    for place in range(8, 300):
        path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        read_camera(path)
        read_exposure(path)


def packed_rows(mosaic: np.ndarray, bits: int) -> np.ndarray:
    """Rows of bytes that hold values of so many bits, the highest bit first."""
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((mosaic[..., None] >> shifts & 1).reshape(len(mosaic), -1), axis=1)


@pytest.mark.parametrize(
    "bits, packed",
    [(8, False), (10, False), (12, False), (14, False), (16, False), (10, True), (12, True)],
)
def test_every_depth_from_8_to_16_bit_keeps_its_values(
    tmp_path: Path, bits: int, packed: bool
) -> None:
    white = 2**bits - 1
    mosaic = np.random.default_rng(bits).integers(0, white + 1, (40, 48))
    mosaic[0, :2] = 0, white
    mosaic = mosaic.astype(np.uint8 if bits == 8 else np.uint16)
    levels = {"black": (4,) * 4, "white": white}
    if packed:
        path = write_dng(tmp_path / "f.dng", packed_rows(mosaic, bits), **levels)
        with tifffile.TiffFile(path, mode="r+b") as file:
            file.pages[0].tags[256].overwrite(48)
            file.pages[0].tags[258].overwrite(bits)
    else:
        path = write_dng(tmp_path / "f.dng", mosaic, **levels)
    raw = read_raw(path)
    assert raw.mosaic.dtype == np.uint16
    assert np.array_equal(raw.mosaic, mosaic)
    assert raw.white == white
    assert normalize(raw).min() == 0.0
    assert normalize(raw).max() == 1.0
