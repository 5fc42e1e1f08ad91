"""Files that break the decoder's process harm no other; damaged ones are read or refused."""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from eslkit.errors import InputError
from eslkit_tsdn.data import decoder
from eslkit_tsdn.data.decoder import Decoder
from eslkit_tsdn.data.prepare import BadFilesError, prepare
from eslkit_tsdn.data.sid import read_list
from eslkit_tsdn.data.sid_folder import CameraFile, find_dataset
from tests.eslkit_tsdn.damage import list_file, made_dngs, mutated, outcome
from tests.eslkit_tsdn.sid_folder import make_sid


def test_a_file_that_crashes_or_hangs_the_decoder_is_told_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (sys.executable, "-m", "tests.eslkit_tsdn.breaking_decoder")
    monkeypatch.setattr(decoder, "_COMMAND", command)
    scenes = ("00001", "00002", "10034", "20005", "20188")
    longs = [f"{scene}_00_10s" for scene in scenes]
    dataset = find_dataset(make_sid(tmp_path / "sid", shots=(), longs=longs, lists=False))
    with pytest.raises(BadFilesError, match="4 files") as caught:
        prepare(dataset, tmp_path / "store", processes=1, limit_s=8)
    reasons = {bad.file[5:10]: bad.reason for bad in caught.value.files}
    assert reasons.pop("00001").startswith("makes the decoder crash (SIGSEGV)")
    assert reasons.pop("00002").startswith("took longer than 8 s")
    assert reasons.pop("10034") == "makes the decoder fail (ZeroDivisionError: in a library)"
    assert reasons.pop("20005") == "needs more memory than there is"
    assert reasons == {}
    [path] = (tmp_path / "store" / "long").iterdir()
    assert path.name == "20188_00_10s.npy"


def test_damaged_camera_files_are_read_or_refused(tmp_path: Path) -> None:
    seeds, rng = made_dngs(tmp_path), random.Random(0)
    path, found = tmp_path / "00001_00_1s.ARW", Counter[str]()
    with Decoder(tmp_path / "store", limit_s=60) as process:
        for seed in seeds:
            path.write_bytes(seed)
            assert outcome(process, path) == "read"
        for _ in range(120):
            path.write_bytes(mutated(seeds, rng))
            found[outcome(process, path)] += 1
        with pytest.raises(InputError, match=r"absent\.ARW cannot be read"):
            process.decode(CameraFile("short", tmp_path / "absent.ARW"))
    assert set(found) == {"read", "refused"}
    assert min(found.values()) > 20


def test_damaged_lists_are_read_or_refused(tmp_path: Path) -> None:
    rng, found = random.Random(0), Counter[str]()
    path = tmp_path / "Sony_train_list.txt"
    for _ in range(300):
        path.write_bytes(list_file(rng))
        try:
            read_list(path)
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017
            found["refused"] += 1
        else:
            found["read"] += 1
    assert min(found.values()) > 30
