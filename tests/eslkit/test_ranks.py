from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from eslkit.ranks import rank
from eslkit.store import RunStore


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, 0),
        ({"RANK": "3", "LOCAL_RANK": "1"}, 3),
        ({"LOCAL_RANK": "1"}, 1),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, 2),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "LOCAL_RANK": "1"}, 1),
        ({"RANK": ""}, 0),
    ],
)
def test_the_rank_is_that_of_the_launcher(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: int
) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert rank() == expected


def start(folder: Path, pause: float = 0.0) -> list[subprocess.Popen[bytes]]:
    """Both ranks, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "tests.eslkit.ranked_walk", str(folder), str(pause)]
    return [
        subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            env={**os.environ, **shared, "RANK": str(number), "LOCAL_RANK": str(number)},
            stderr=subprocess.DEVNULL,
        )
        for number in range(2)
    ]


def final_bytes(folder: Path) -> bytes:
    return next(folder.glob("steps/03-*/weights.safetensors")).read_bytes()


def finish(folder: Path) -> None:
    for process in start(folder):
        assert process.wait(60) == 0


@pytest.mark.slow
def test_two_ranks_end_in_the_same_bits_killed_or_not(tmp_path: Path) -> None:
    finish(tmp_path / "whole")
    stored = RunStore(tmp_path / "whole").weights(3)
    for number in range(2):
        ended = load_file(tmp_path / "whole" / f"rank{number}.safetensors")
        assert all(bool((ended[key] == stored[key]).all()) for key in stored)

    folder = tmp_path / "killed"
    processes = start(folder, pause=0.2)
    while not (folder / "steps" / "02-CSL1" / "trainer").exists():
        time.sleep(0.02)
        assert all(process.poll() is None for process in processes)
    processes[0].send_signal(signal.SIGKILL)
    time.sleep(0.2)
    for process in processes:
        process.kill()
        process.wait()
    assert RunStore(folder).num_finished() == 1
    finish(folder)
    assert final_bytes(folder) == final_bytes(tmp_path / "whole")
