"""A walk in a process of its own that is killed, at any moment, from outside."""

from __future__ import annotations

import multiprocessing
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eslkit.errors import StoreError
from eslkit.store import RunStore
from tests.eslkit.small_walk import final_bytes, run
from tests.eslkit.small_walk import main as walk_small


def start_child(folder: Path, *, pause: float = 0.01) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.eslkit.small_walk", str(folder), "4", str(pause)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)


def wait_for_state(folder: Path, state: str) -> None:
    for _ in range(600):
        manifest = folder / "manifest.json"
        if manifest.exists() and f'"{state}"' in manifest.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"no step became {state}")


def test_killed_at_random_moments_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["torch", "tests.eslkit.small_walk"])
    draw = random.Random(4)
    num_killed = 0
    for repeat in range(6):
        folder = tmp_path / str(repeat)
        for _ in range(draw.randint(1, 3)):
            child = processes.Process(target=walk_small, args=(str(folder), "4", "0.01"))
            child.start()
            child.join(draw.uniform(0.05, 0.4))
            num_killed += child.is_alive()
            child.kill()
            child.join()
        run(folder)
        assert final_bytes(folder) == final_bytes(tmp_path / "whole")
    assert num_killed > 0


def test_sigterm_marks_the_step(tmp_path: Path) -> None:
    child = start_child(tmp_path, pause=1)
    wait_for_state(tmp_path, "running")
    store = RunStore(tmp_path)
    assert store.is_running()
    with pytest.raises(StoreError, match=r"Another process is running in .*Wait until it has"):
        run(tmp_path)
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 128 + signal.SIGTERM
    entry = store.manifest().steps[0]
    assert (entry.state, entry.reason) == ("interrupted", "SIGTERM")
    assert not store.is_running()
