"""A camera's file through a network and back: pixels, command, and everything that is refused."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from click.testing import Result
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import eslkit_tsdn.denoise as module
from eslkit.errors import InputError
from eslkit_tsdn.backends import Backend, Part, make_backend, parts_of
from eslkit_tsdn.cli import app
from eslkit_tsdn.denoise import denoise, encode, mosaic_of
from eslkit_tsdn.dng import write_dng
from eslkit_tsdn.models import TSDN, UNet
from eslkit_tsdn.raw import RawImage, read_raw
from eslkit_tsdn.reach import Reach
from eslkit_tsdn.shot import Shot, read_shot
from eslkit_tsdn.tiles import pad_to_multiple
from eslkit_tsdn.weights import save_network
from tests.eslkit_tsdn.test_dng import MATRIX, raw_of
from tests.eslkit_tsdn.test_raw import CODES, real_files
from tests.tolerances import FLOAT32_FORWARD

SHOT = Shot(
    *("SONY", "ILCE-7SM2", None, None, datetime(2024, 5, 6, 7, 8, 9), 2.8, 55.0, 6, MATRIX),
    as_shot=(2.0, 1.0, 2.5),
)
NOTHING = Backend("nothing", "cpu", (Part(lambda x: x, Reach(4, 0), 64.0),), {})
"""Gives back what it is given: what comes out of a file is then what was in it."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def dark(height: int = 61, width: int = 83, **changes: object) -> RawImage:
    """A dark photograph of odd sides."""
    rng = np.random.default_rng(0)
    mosaic = rng.integers(512, 700, (height, width)).astype(np.uint16)
    return raw_of(mosaic, **changes)


def write_camera_file(path: Path, raw: RawImage | None = None) -> Path:
    raw = raw or dark()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dng(raw.mosaic, path, raw=raw, shot=SHOT)
    return path


# Pixels


@pytest.mark.parametrize("phase", sorted(CODES))
@pytest.mark.parametrize("size", [(61, 83), (60, 83), (2, 3)])
def test_a_network_that_does_nothing_changes_nothing(phase: str, size: tuple[int, int]) -> None:
    """At ratio 1 the same bits come back, odd rows and columns included."""
    raw = dark(*size, pattern=CODES[phase], black=(510.0, 511.0, 512.0, 509.0))
    denoised = denoise(raw, NOTHING, ratio=1.0)
    assert denoised.clean.shape == (4, (size[0] + 1) // 2, (size[1] + 1) // 2)
    assert np.array_equal(mosaic_of(denoised, raw), raw.mosaic)


def test_the_mosaic_is_amplified_into_the_cameras_own_levels() -> None:
    raw = dark()
    got = mosaic_of(denoise(raw, NOTHING, ratio=20.0), raw).astype(float)
    expected = np.minimum(512 + 20.0 * (raw.mosaic.astype(float) - 512), 16383)
    assert np.abs(got - expected).max() <= 0.51


def test_a_kept_exposure_keeps_highlights() -> None:
    raw = dark()
    raw.mosaic[10:20, 10:20] = 15000
    denoised = denoise(raw, NOTHING, ratio=50.0)
    assert mosaic_of(denoised, raw)[15, 15] == 16383
    kept = mosaic_of(denoised, raw, keep_exposure=True)
    assert np.array_equal(kept, raw.mosaic), "a network that does nothing, and nothing is cut"


def test_an_odd_row_is_continued_by_its_own_colours() -> None:
    seen: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    raw = dark(5, 4)
    denoise(raw, Backend("look", "cpu", (Part(look, Reach(1, 0), 64.0),), {}), ratio=1.0)
    [packed] = seen
    assert packed.shape == (1, 4, 3, 2)
    assert torch.equal(packed[0, 2, 2], packed[0, 2, 1]), "below it: the row two before"


def test_memory_decides_how_many_parts_there_are_and_not_what_comes_out() -> None:
    network = TSDN((4, 6), stages=2).eval()
    backend = make_backend(network, backend="torch")
    raw = dark(300, 400)
    calls: list[int] = []
    much = denoise(raw, backend, ratio=30.0, memory=64.0, advance=calls.append)
    few = len(calls)
    little = denoise(raw, backend, ratio=30.0, memory=1e-3, advance=calls.append)
    assert few == 2 and len(calls) > 20
    assert sum(calls[:few]) == sum(calls[few:]) == 2 * 150 * 200
    FLOAT32_FORWARD.check(torch.from_numpy(little.clean), torch.from_numpy(much.clean))
    with torch.inference_mode():
        noisy = torch.from_numpy(much.noisy)[None]
        whole = network(pad_to_multiple(noisy, 2))[..., :150, :200].clamp(0, 1)
    FLOAT32_FORWARD.check(torch.from_numpy(much.clean)[None], whole)


def test_later_parts_are_not_cut_smaller_than_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first part has left behind in the process is there for the next one to use."""
    taken = iter([0.2, 0.9, 0.9, 0.9])
    monkeypatch.setattr(module, "_resident", lambda: next(taken) * 2**30)
    sizes: list[int] = []

    def spy(run: object, image: Tensor, *, max_pixels: int, **_: object) -> Tensor:
        sizes.append(max_pixels)
        return image

    monkeypatch.setattr(module, "run_tiled", spy)
    twice = Backend("twice", "cpu", 2 * (Part(lambda x: x, Reach(1, 0), 4096.0),), {})
    module.restore_large(torch.zeros(1, 4, 8, 8), twice, memory=1.0)
    assert sizes[0] == sizes[1] == int((0.8 * 2**30 - 5 * 16 * 64) / 4096)


def test_what_cannot_be_denoised_is_refused() -> None:
    with pytest.raises(InputError, match="expected 1"):
        denoise(dark(), NOTHING, ratio=0.5)
    three = Backend("three", "cpu", (Part(lambda x: x[:, :3], Reach(1, 0), 64.0),), {})
    with pytest.raises(InputError, match="gives 3 planes"):
        denoise(dark(), three, ratio=1.0)
    raw = dark()
    denoised = denoise(raw, NOTHING, ratio=1.0)
    with pytest.raises(InputError, match="kind='jpg'"):
        encode(denoised, kind="jpg", raw=raw, shot=SHOT)
    with pytest.raises(InputError, match="Only a DNG can keep its exposure"):
        encode(denoised, kind="png", raw=raw, shot=SHOT, keep_exposure=True)


# Backends


def test_a_tsdn_runs_stage_by_stage() -> None:
    network = TSDN((2, 3), stages=3)
    assert list(parts_of(network)) == list(network.stages)
    single = UNet((2, 3))
    assert parts_of(single) == (single,)


def run(backend: Backend, x: Tensor) -> Tensor:
    for part in backend.parts:
        x = part.run(x)
    return x


def test_backends_agree() -> None:
    network = TSDN((2, 3), stages=1).train()
    told: list[str] = []
    x = torch.rand(1, 4, 24, 38)
    with torch.inference_mode():
        expected = network.eval()(x)
    network.train()
    for name in ("torch", "onnxruntime", "auto"):
        backend = make_backend(network, backend=name, tell=told.append)
        FLOAT32_FORWARD.check(run(backend, x), expected)
        assert [part.reach.multiple for part in backend.parts] == [2]
    assert network.training, "the caller's network is left as it was"
    assert len(told) == 1, "made once, then kept"
    assert set(backend.seconds) == {"torch", "onnxruntime"}
    assert backend.name == min(backend.seconds, key=lambda name: backend.seconds[name])
    half = make_backend(network, backend="auto", bf16=True)
    assert half.name == "torch"
    assert 0 < (run(half, x) - expected).abs().max() < 0.05


def test_backends_that_there_are_not_are_refused() -> None:
    network = UNet((2, 3))
    with pytest.raises(InputError, match="known are auto, torch, onnxruntime"):
        make_backend(network, backend="tpu")
    with pytest.raises(InputError, match="no bfloat16"):
        make_backend(network, backend="onnxruntime", bf16=True)
    for device in ("cuda" if not torch.cuda.is_available() else "xpu", "nowhere"):
        with pytest.raises(InputError, match=f"device='{device}' cannot be used"):
            make_backend(network, device=device)


# The command


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    network = UNet((4, 4))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, 0.25)
    save_network(network, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["denoise", *map(str, arguments), "--backend", "torch"])


def test_a_dng_for_the_photographers_own_converter(tmp_path: Path, weights: Path) -> None:
    photo, out = write_camera_file(tmp_path / "dark.ARW"), tmp_path / "out.dng"
    result = command(photo, "-o", out, "--weights", weights, "--compare")
    assert result.exit_code == 0, result.output
    assert f"Weights: {weights} (UNet 4-4" in result.output
    assert "Run by torch on cpu" in result.output
    before, after = read_raw(photo), read_raw(out)
    assert after.mosaic.shape == before.mosaic.shape == (61, 83)
    assert (after.mosaic == 512 + round(0.25 * (16383 - 512))).all()
    for name in ("pattern", "black", "white", "exposure", "iso", "white_balance"):
        assert getattr(after, name) == getattr(before, name), name
    there, here = read_shot(photo), read_shot(out)
    for name in ("make", "model", "taken", "orientation", "aperture", "focal_length"):
        assert getattr(here, name) == getattr(there, name), name
    with Image.open(tmp_path / "out-compare.png") as sheet:
        assert sheet.mode == "RGB" and sheet.width > sheet.height / 2


def test_pictures_are_developed(tmp_path: Path, weights: Path) -> None:
    photo = write_camera_file(tmp_path / "dark.dng")
    for name in ("out.tif", "out.png"):
        assert command(photo, "-o", tmp_path / name, "--weights", weights).exit_code == 0
    tif = tifffile.imread(tmp_path / "out.tif")
    with Image.open(tmp_path / "out.png") as opened:
        png = np.asarray(opened)
        assert opened.info["icc_profile"]
    assert tif.dtype == np.uint16 and png.dtype == np.uint8
    assert tif.shape == png.shape == (83, 61, 3), "turned upright: the camera was held on its side"
    assert np.abs(tif / 257.0 - png).max() <= 0.51


def test_kept_exposure_asks_to_be_brightened(tmp_path: Path, weights: Path) -> None:
    photo, out = write_camera_file(tmp_path / "dark.dng"), tmp_path / "out.dng"
    asked = ("--ratio", 64, "--keep-exposure")
    assert command(photo, "-o", out, "--weights", weights, *asked).exit_code == 0
    with tifffile.TiffFile(out) as file:
        assert file.pages.first.tags[50730].value == (6, 1)
    result = command(photo, "-o", tmp_path / "a.png", "--weights", weights, "--keep-exposure")
    assert result.exit_code == 2 and "--keep-exposure is for DNG files" in result.output


def test_of_several_files_the_good_ones_are_done(tmp_path: Path, weights: Path) -> None:
    good = [write_camera_file(tmp_path / name) for name in ("a.ARW", "c.ARW")]
    bad = tmp_path / "b.ARW"
    bad.write_text("a shopping list\n")
    result = command(good[0], bad, good[1], "-o", tmp_path / "out", "--weights", weights)
    assert result.exit_code == 1
    assert "b.ARW is a text file" in result.output
    assert "2 of 3 done; not: b.ARW." in result.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.dng", "c.dng"]
    # The same command goes on: what is there is left.
    times = [p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()]
    write_camera_file(bad)
    result = command(good[0], bad, good[1], "-o", tmp_path / "out", "--weights", weights)
    assert result.exit_code == 0 and "a.dng is there already and is left" in result.output
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert set(times) <= {p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    result = command(bad.with_name("none.ARW"), "-o", tmp_path / "n.dng", "--weights", weights)
    assert result.exit_code == 2 and "none.ARW does not exist" in result.output


def test_without_a_name_it_lies_beside_the_photograph(tmp_path: Path, weights: Path) -> None:
    photo = write_camera_file(tmp_path / "dark.ARW")
    assert command(photo, "--weights", weights, "--to", "png").exit_code == 0
    assert (tmp_path / "dark-denoised.png").is_file()


def test_without_weights_those_that_come_along_are_used(tmp_path: Path) -> None:
    photo = write_camera_file(tmp_path / "dark.ARW")
    result = command(photo, "-o", tmp_path / "out.dng")
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "Weights: those that come with eslkit (TSDN 16-32-64-128 x 2 stages, 964,456" in told
    assert (tmp_path / "out.dng").is_file()
    bright = command(photo, "-o", tmp_path / "bright.dng", "--ratio", 2)
    assert "Below 48 times these weights take away detail" in " ".join(bright.output.split())
    assert "take away detail" not in command(photo, "--overwrite", "--ratio", 60).output


def test_every_wrong_wish_is_answered_in_a_sentence(tmp_path: Path, weights: Path) -> None:
    photo = write_camera_file(tmp_path / "dark.dng")
    twin = write_camera_file(tmp_path / "other" / "dark.dng")
    (tmp_path / "there.dng").write_bytes(b"kept")
    (tmp_path / "file").write_text("in the way")

    def refused(match: str, *arguments: object, w: Path = weights) -> None:
        result = command(*arguments, "--weights", w)
        assert result.exit_code == 2, result.output
        assert match in " ".join(result.output.split()), result.output
        assert "Traceback" not in result.output

    refused("cannot write '.jpg' files", photo, "-o", tmp_path / "a.jpg")
    refused("contradict each other", photo, "-o", tmp_path / "a.dng", "--to", "png")
    refused("--to jpg: expected one of dng, tif, png", photo, "--to", "jpg")
    refused("there already; pass --overwrite", photo, "-o", tmp_path / "there.dng")
    refused("would replace the photograph itself", photo, "-o", photo, "--overwrite")
    refused("would both become", photo, twin, "-o", tmp_path / "out")
    refused("names one file for several", photo, twin, "-o", tmp_path / "a.dng")
    refused("a file is in the way", photo, "-o", tmp_path / "file" / "a.dng")
    refused("expected 1 (as it is) to 300", photo, "-o", tmp_path / "a.dng", "--ratio", 500)
    refused("expected GiB, above 0", photo, "-o", tmp_path / "a.dng", "--memory", 0)
    refused("no.safetensors does not exist", photo, w=tmp_path / "no.safetensors")
    refused("model='best' is not known", photo, "--model", "best")
    refused("device='nowhere' cannot be used", photo, "--device", "nowhere")
    assert (tmp_path / "there.dng").read_bytes() == b"kept"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"dark.dng", "other", "there.dng", "file", "net.safetensors"}
    result = command(photo, "-o", tmp_path / "there.dng", "--overwrite", "--weights", weights)
    assert result.exit_code == 0 and read_raw(tmp_path / "there.dng").white == 16383


def test_real_camera_files_go_through(tmp_path: Path, weights: Path) -> None:
    for file in (real_files()[0], real_files()[-1]):
        out = tmp_path / f"{file.stem}.dng"
        result = command(file, "-o", out, "--weights", weights, "--ratio", 1)
        assert result.exit_code == 0, result.output
        before, after = read_raw(file), read_raw(out)
        assert after.mosaic.shape == before.mosaic.shape
        assert (after.pattern, after.black, after.white) == (
            *(before.pattern, before.black, before.white),
        )
        level = round(before.black[0] + 0.25 * (before.white - before.black[0]))
        assert np.abs(after.mosaic.astype(int) - level).max() <= 1
