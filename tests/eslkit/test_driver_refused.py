"""What the system refuses to a run: space, permission, size. One sentence, and nothing is lost."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from eslkit import files
from eslkit.driver import Event
from eslkit.errors import StoreError
from eslkit.store import RunStore
from eslkit.trainer import StepContext
from tests.eslkit.small_walk import (
    Loop,
    run,
    small_plan,
)


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    full = [False]

    def fsync(descriptor: int) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    def fill(model: nn.Module, step: StepContext) -> None:
        full[0] = step.name == "CSL1"

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(StoreError, match=r"No space left to write .*weights\.safetensors"):
        run(tmp_path, fill)
    full[0] = False
    assert not list(tmp_path.rglob("*.part"))
    assert RunStore(tmp_path).num_finished() == 1
    run(tmp_path)
    assert RunStore(tmp_path).num_finished() == 3


def test_too_little_space_is_said_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: usage)
    loop = Loop()
    with pytest.raises(StoreError, match=r"0\.0 KiB free, the weights .* need 0\.\d KiB"):
        run(tmp_path, loop)
    assert loop.fitted == []


@pytest.mark.parametrize(
    "code, match",
    [
        (errno.EACCES, "No permission to write"),
        (errno.EROFS, "mounted read-only"),
        (errno.EIO, "cannot be written"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, match: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreError, match=match):
        run(tmp_path / "run")


def test_a_finished_run_is_answered_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = run(tmp_path)

    def refuse(*_: object, **__: object) -> str:
        raise StoreError("mounted read-only")

    monkeypatch.setattr("eslkit.files.FolderLock.acquire", refuse)
    monkeypatch.setattr("eslkit.store.write_atomically", refuse)
    again, _ = run(tmp_path)
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    with pytest.raises(StoreError, match="another plan"):
        run(tmp_path, plan=small_plan(iterations=77))


def test_a_disk_that_is_full_before_a_step_marks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, num_bytes: int) -> None:
        raise StoreError("The disk is full")

    monkeypatch.setattr("eslkit.store.check_free_space", full)
    events: list[Event] = []
    with pytest.raises(StoreError, match="The disk is full"):
        run(tmp_path, events=events)
    assert [(event.kind, event.reason) for event in events] == [("failed", "The disk is full")]
    assert RunStore(tmp_path).manifest().steps[0].state == "failed"


def limited(folder: Path, **how: Any) -> subprocess.CompletedProcess[str]:
    """The small walk in a process that the system keeps from writing as it would."""
    command = [sys.executable, "-m", "tests.eslkit.small_walk", str(folder), "4", "0"]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, **how)


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_the_systems_own_limit_on_files_is_one_sentence(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))

    done = limited(tmp_path, preexec_fn=limit)
    assert done.returncode == 1
    assert "is larger than this process may write" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"
)
def test_a_folder_of_somebody_else_is_one_sentence() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary).chmod(0o755)
        folder = Path(temporary) / "run"
        run(folder)
        store = RunStore(folder)
        store.rewind(store.manifest().steps[-1].name)  # a finished run needs no writing
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(["tests.eslkit.test_driver_refused"])
        here, there = processes.Pipe()
        child = processes.Process(target=run_as_nobody, args=(folder, there))
        child.start()
        assert here.poll(60)
        assert re.fullmatch(r"StoreError: No permission to write .*\. Grant it, or .*", here.recv())
        child.join()
        assert {path: path.read_bytes() for path in before} == before


def run_as_nobody(folder: Path, answer: Connection) -> None:
    os.seteuid(65534)
    try:
        run(folder)
    except Exception as error:  # noqa: BLE001  told to the other process
        answer.send(f"{type(error).__name__}: {error}")
    else:
        answer.send("it could be written")


def test_a_disk_that_is_really_full_loses_nothing(tmp_path: Path) -> None:
    """A file system of 256 KiB in memory, where the system lets us mount one."""
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path)],
            capture_output=True,
            check=False,
        ).returncode
    ):
        pytest.skip("file systems cannot be mounted here")
    try:
        filler = tmp_path / "filler"

        def fill(model: nn.Module, step: StepContext) -> None:
            if step.name == "CSL1":
                with suppress(OSError), filler.open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))

        with pytest.raises(StoreError, match=r"No space left to write .*CSL1"):
            run(tmp_path / "run", fill)
        filler.unlink()
        assert RunStore(tmp_path / "run").num_finished() == 1
        loop = Loop()
        run(tmp_path / "run", loop)
        assert loop.fitted == ["CSL1", "CSL2"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_file_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(StoreError, match="a file is in the way"):
        run(tmp_path / "run")
