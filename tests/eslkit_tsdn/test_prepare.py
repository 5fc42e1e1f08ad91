"""A small SID folder through the real decoder into a store, with everything that can be amiss."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from eslkit.errors import InputError, StoreError
from eslkit_tsdn.cli import app
from eslkit_tsdn.data import prepare as preparing
from eslkit_tsdn.data.decoder import decode
from eslkit_tsdn.data.prepare import BadFilesError, prepare
from eslkit_tsdn.data.sid_folder import CameraFile, find_dataset
from eslkit_tsdn.data.store import Frame, Store, verify_store
from eslkit_tsdn.raw import read_raw
from tests.eslkit_tsdn.sid_folder import LONGS, SHOTS, make_sid, write_camera_file


@pytest.fixture(scope="module")
def sid(tmp_path_factory) -> Path:
    return make_sid(tmp_path_factory.mktemp("sid"))


@pytest.fixture(scope="module")
def prepared(sid, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "store"
    prepare(find_dataset(sid), out, processes=2)
    return out


class InThisProcess:
    """Decodes without a process of its own, whose start takes seconds: it imports torch."""

    def __init__(self, store: Path, *, limit_s: float) -> None:
        self.store = store

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def decode(self, file: CameraFile) -> Frame:
        return decode(file, store=self.store)


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(preparing, "Decoder", InThisProcess)


@pytest.fixture
def store(prepared, tmp_path) -> Path:
    """A store of one's own, to spoil."""
    return shutil.copytree(prepared, tmp_path / "store")


@pytest.fixture
def folder(sid, tmp_path) -> Path:
    """A SID folder of one's own, to spoil; times of change are kept."""
    return shutil.copytree(sid, tmp_path / "sid")


def names_and_reasons(error: BadFilesError) -> dict[str, str]:
    return {bad.file: bad.reason for bad in error.files}


def test_a_folder_is_found_by_its_lists_or_its_names(sid, tmp_path) -> None:
    listed = find_dataset(sid)
    assert [len(listed.files), len(listed.pairs), len(listed.lists)] == [18, 12, 3]
    assert (listed.amiss, listed.num_unlisted) == ((), 0)
    inner = find_dataset(sid / "Sony")
    assert (inner.files, inner.pairs, inner.lists) == (listed.files, listed.pairs, listed.lists)
    scanned = find_dataset(shutil.copytree(sid / "Sony", tmp_path / "Sony"))
    assert (scanned.pairs, scanned.lists) == (listed.pairs, ())
    first = find_dataset(sid, shots="first")
    assert {pair.shot for pair in first.pairs} == {"00"}
    assert first.num_unlisted == 0
    none = find_dataset(sid, shots="none")
    assert (len(none.files), none.pairs, none.amiss) == (6, (), ())


def test_the_store_holds_what_the_decoder_gives(sid, prepared) -> None:
    store = Store(prepared)
    assert [len(store.frames), len(store.pairs), len(store.longs)] == [18, 12, 6]
    for frame in store.frames.values():
        raw = read_raw(sid / "Sony" / frame.role / frame.name)
        mosaic = store.mosaic(frame)
        assert isinstance(mosaic, np.memmap)
        assert np.array_equal(mosaic, raw.mosaic)
        assert (frame.pattern, frame.black, frame.white) == (raw.pattern, raw.black, raw.white)
        assert (frame.white_balance, frame.exposure) == (raw.white_balance, raw.exposure)
        assert (frame.iso, frame.camera) == (200, "SONY ILCE-7SM2")
        assert np.array_equal(np.array(frame.color_matrix), raw.color_matrix)
    assert {pair.name for pair in store.pairs} == set(SHOTS)
    assert verify_store(store) == ()
    assert sorted(path.name for path in prepared.iterdir()) == [
        *(".lock", "long", "manifest.json", "short")
    ]
    with pytest.raises(InputError, match=r"without short/00009_00_0\.1s\.ARW"):
        store.frame("00009_00_0.1s.ARW", role="short")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("lists", [True, False])
def test_long_exposures_alone_are_enough(tmp_path, lists) -> None:
    folder = make_sid(tmp_path / "sid", lists=lists)
    shutil.rmtree(folder / "Sony" / "short")
    dataset = find_dataset(folder)
    assert (len(dataset.files), dataset.pairs, dataset.amiss) == (6, (), ())
    store = prepare(dataset, tmp_path / "store")
    assert (len(store.longs), store.pairs) == (6, ())


@pytest.mark.usefixtures("quick")
def test_the_white_level_of_sid_is_that_of_its_protocols(tmp_path) -> None:
    # What LibRaw has stated for compressed files of a sister model.
    for camera, expected in ((None, 16383.0), ("NEX-5", 17220.0)):
        folder = tmp_path / str(camera)
        extra = [] if camera is None else [(272, "s", 0, camera, False)]
        for stem in ("00001_00_0.1s", "00001_00_10s"):
            role = "short" if "0.1" in stem else "long"
            path = write_camera_file(folder / role, stem, white=17220)
            if camera:
                path.write_bytes(path.read_bytes().replace(b"ILCE-7SM2\0", b"NEX-5\0\0\0\0\0"))
        store = prepare(find_dataset(folder), tmp_path / f"store-{camera}", processes=1)
        assert {frame.white for frame in store.frames.values()} == {expected}, extra


def test_a_damaged_black_level_keeps_the_level_that_the_file_states(tmp_path) -> None:
    path = write_camera_file(tmp_path, "00001_00_0.1s", black=(512, 17000, 512, 512), white=65535)
    frame = decode(CameraFile("short", path), store=tmp_path / "store")
    assert (frame.black, frame.white) == ((512.0, 17000.0, 512.0, 512.0), 65535.0)


@pytest.mark.usefixtures("quick")
def test_everything_amiss_is_told_at_once_and_can_be_left_out(folder, tmp_path) -> None:
    sony = folder / "Sony"
    (sony / "short" / "00001_00_0.04s.ARW").unlink()
    (sony / "long" / "20005_00_10s.ARW").unlink()
    (sony / "short" / "00001_00_0.1s.ARW").write_text("shopping list\n" * 20)
    whole = (sony / "short" / "00002_00_0.1s.ARW").read_bytes()
    (sony / "short" / "00002_00_0.1s.ARW").write_bytes(whole[:-3000])
    write_camera_file(sony / "short", "10185_00_0.1s", mosaic=np.full((50, 84), 600, np.uint16))
    write_camera_file(sony / "short", "10185_00_0.04s", black=(500,) * 4)
    write_camera_file(sony / "short", "10185_00_0.033s", cfa=(1, 0, 2, 1))
    write_camera_file(sony / "short", "20188_00_0.1s", exposure=(10, 1))
    path = sony / "short" / "10034_00_0.1s.ARW"
    path.write_bytes(path.read_bytes().replace(b"ILCE-7SM2\0", b"NEX-5\0\0\0\0\0"))

    out = tmp_path / "store"
    with pytest.raises(BadFilesError, match="9 files are missing") as caught:
        prepare(find_dataset(folder), out, processes=2)
    reasons = names_and_reasons(caught.value)
    expected = {
        "long/20005_00_10s.ARW": "missing",
        "short/00001_00_0.04s.ARW": "missing",
        "short/00001_00_0.1s.ARW": "is a text file",
        "short/00002_00_0.1s.ARW": "cut short",
        "short/10185_00_0.1s.ARW": "size 50x84, its long exposure 52x84",
        "short/10185_00_0.04s.ARW": "black level",
        "short/10185_00_0.033s.ARW": "colour filter",
        "short/10034_00_0.1s.ARW": "camera SONY NEX-5, its long exposure SONY ILCE-7SM2",
        "short/20188_00_0.1s.ARW": "its name says 0.1 s, the file was exposed for 10 s",
    }
    assert list(reasons) == sorted(expected)
    for file, reason in expected.items():
        assert reason in reasons[file], file
    listed = (out / "problems.txt").read_text().splitlines()
    assert listed == [f"{file}: {reason}" for file, reason in reasons.items()]
    with pytest.raises(StoreError, match="preparing it has not finished"):
        Store(out)

    done: list[int] = []
    store = prepare(
        find_dataset(folder), out, skip_bad=True, progress=lambda num, total: done.append(num)
    )
    assert done[0] == 13  # nothing that could be read was decoded again
    assert {bad.file for bad in store.manifest.skipped} == set(expected)
    assert {pair.name for pair in store.pairs} == {
        *("00001_01_0.04s", "00001_01_0.1s", "00002_00_0.033s")
    }
    assert verify_store(store) == ()


def test_names_that_tell_nothing_are_amiss(folder, tmp_path) -> None:
    for path in folder.glob("Sony_*_list.txt"):
        path.unlink()
    sony = folder / "Sony"
    write_camera_file(sony / "short", "00003_00_0.1s")
    write_camera_file(sony / "long", "00002_00_30s")
    write_camera_file(sony / "short", "90001_00_0.1s")
    shutil.copy(sony / "short" / "00001_00_0.1s.ARW", sony / "short" / "IMG_1.ARW")
    shutil.copy(sony / "short" / "00001_00_0.1s.ARW", sony / "short" / "00001_00_0.1s.DNG")
    (sony / "short" / "._00001_00_0.1s.ARW").write_bytes(b"")
    (sony / "short" / "Thumbs.db").write_bytes(b"")
    reasons = {bad.file: bad.reason for bad in find_dataset(folder).amiss}
    assert reasons.pop("short/00003_00_0.1s.ARW") == "no long exposure of its scene"
    assert "no split" in reasons.pop("short/90001_00_0.1s.ARW")
    assert "not one of SID's" in reasons.pop("short/IMG_1.ARW")
    for name in ("00002_00_10s", "00002_00_30s"):
        assert reasons.pop(f"long/{name}.ARW") == "its scene has 2 long exposures; keep one"
    for name in ("00001_00_0.1s.ARW", "00001_00_0.1s.DNG"):
        assert "two files of this name" in reasons.pop(f"short/{name}")
    assert reasons == {}


def test_a_folder_of_another_kind_says_what_to_do(sid, prepared, tmp_path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        find_dataset(tmp_path / "absent")
    with pytest.raises(InputError, match=r"holds neither Sony/long nor long"):
        find_dataset(tmp_path)
    inner = shutil.copytree(sid, tmp_path / "outer" / "SID")
    with pytest.raises(InputError, match=rf"Did you mean {inner}\?"):
        find_dataset(tmp_path / "outer")
    with pytest.raises(InputError, match="is a prepared store already"):
        find_dataset(prepared)
    (tmp_path / "Sony.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"Unpack Sony\.zip first"):
        find_dataset(tmp_path)
    (tmp_path / "Sony" / "long").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no camera file"):
        find_dataset(tmp_path)
    shutil.copy(next((sid / "Sony" / "long").iterdir()), tmp_path / "Sony" / "long")
    for name in ("Sony_train_list.txt", "Sony_test_list.txt"):
        shutil.copy(sid / "Sony_train_list.txt", tmp_path / name)
    with pytest.raises(InputError, match="stands in another list too"):
        find_dataset(tmp_path)


def test_killed_at_any_moment_it_goes_on(sid, tmp_path) -> None:
    out = tmp_path / "store"
    command = [sys.executable, "-m", "tests.eslkit_tsdn.prepare_slowly", str(sid), str(out)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    journal = out / preparing.JOURNAL
    end = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 3):
        assert time.monotonic() < end, "nothing was decoded"
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (out / "manifest.json").exists()
    num_kept = journal.read_bytes().count(b"\n")
    with journal.open("ab") as file:
        file.write(b'{"name": "00001_')  # as a crash leaves it
    (out / "short" / "00009_00_0.1s.npy.part").write_bytes(b"half")

    done: list[int] = []
    store = prepare(
        find_dataset(sid), out, processes=1, progress=lambda num, total: done.append(num)
    )
    assert done[0] == num_kept
    assert done[-1] == len(SHOTS) + len(LONGS)
    assert verify_store(store) == ()
    assert not list(out.rglob("*.part"))

    again: list[int] = []
    prepare(find_dataset(sid), out, progress=lambda num, total: again.append(num))
    assert again == [18]


@pytest.mark.usefixtures("quick")
def test_a_changed_or_lost_file_is_decoded_again(folder, tmp_path) -> None:
    out = tmp_path / "store"
    first = prepare(find_dataset(folder), out, processes=1)
    changed = write_camera_file(folder / "Sony" / "short", "00001_00_0.1s", iso=400)
    os.utime(changed, ns=(0, 0))
    (out / "long" / "20005_00_10s.npy").unlink()
    done: list[int] = []
    second = prepare(
        find_dataset(folder), out, processes=1, progress=lambda num, total: done.append(num)
    )
    assert done[0] == 16
    assert verify_store(second) == ()
    assert first.frames["short/00001_00_0.1s.ARW"].iso == 200
    assert second.frames["short/00001_00_0.1s.ARW"].iso == 400


def test_what_is_decoded_is_never_thrown_away_by_other_options(sid, store, tmp_path) -> None:
    with pytest.raises(StoreError, match="holds 12 files that were not asked for now"):
        prepare(find_dataset(sid, shots="none"), store)
    assert verify_store(Store(store)) == ()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(StoreError, match="holds other files"):
        prepare(find_dataset(sid), tmp_path / "mine")


@pytest.mark.usefixtures("quick")
def test_a_disk_that_is_too_small_is_noticed_early(sid, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        preparing.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1)
    )
    with pytest.raises(StoreError, match=r"17 more files of 0\.0 MiB need 0\.1 GiB"):
        prepare(find_dataset(sid), tmp_path / "store", processes=1)


def test_two_at_once_are_kept_apart(sid, store) -> None:
    lock = preparing.FolderLock(store / ".lock")
    lock.acquire()
    try:
        with pytest.raises(StoreError, match="Another process is running"):
            prepare(find_dataset(sid), store)
    finally:
        lock.release()


@pytest.mark.parametrize(
    "spoil, file, reason",
    [
        (lambda path: path.unlink(), "long/10185_00_10s.npy", "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-2]), "long/10185_00_10s.npy", "bytes"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"),
            "long/10185_00_10s.npy",
            "SHA-256",
        ),
        (lambda path: shutil.copy(path, path.with_name("x.npy")), "long/x.npy", "does not know"),
    ],
)
def test_verify_finds_what_is_wrong(store, spoil, file, reason) -> None:
    spoil(store / "long" / "10185_00_10s.npy")
    [bad] = verify_store(Store(store))
    assert bad.file == file
    assert reason in bad.reason


def test_a_damaged_store_is_told_from_another_folder(store, tmp_path) -> None:
    manifest = store / "manifest.json"
    content = json.loads(manifest.read_text())
    content["frames"][0]["white"] = 20000.0
    manifest.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="was changed after it was written"):
        Store(store)
    content["frames"][0]["name"] = "../../secret.ARW"
    manifest.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="not a plain file name"):
        Store(store)
    manifest.write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        Store(store)
    with pytest.raises(StoreError, match=r"no manifest\.json"):
        Store(tmp_path)
    with pytest.raises(StoreError, match="is not a folder"):
        Store(tmp_path / "absent")


@pytest.mark.usefixtures("quick")
def test_the_commands_tell_what_they_did(folder, tmp_path) -> None:
    out, runner = tmp_path / "store", CliRunner()
    (folder / "Sony" / "short" / "00001_00_0.1s.ARW").write_text("text")
    arguments = ["prepare", str(folder), "--out", str(out), "--processes", "1"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert "short/00001_00_0.1s.ARW: is a text file" in result.stderr
    assert "1 files are missing, unreadable or mismatched" in result.stderr
    result = runner.invoke(app, [*arguments, "--skip-bad"])
    assert result.exit_code == 0, result.output
    assert "18 files, 12 pairs by Sony_train_list.txt" in result.stdout
    assert "17 files, 0.00 GB, 11 pairs, without 1 files" in result.stdout
    assert "eld15 4 of 45" in result.stdout
    result = runner.invoke(app, ["verify", str(out)])
    assert result.exit_code == 0
    assert "is sound: 17 files, 11 pairs" in result.stdout
    (out / "long" / "20005_00_10s.npy").unlink()
    result = runner.invoke(app, ["verify", str(out)])
    assert result.exit_code == 1
    assert "long/20005_00_10s.npy: missing" in result.stderr
    result = runner.invoke(app, ["verify", str(folder)])
    assert result.exit_code == 2
    assert "it is no store" in result.stderr
