from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
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


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun(kind: str, folder: Path, pause: float = 0.0) -> subprocess.Popen[bytes]:
    """Two ranks of a real schedule, as a user starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    script = str(Path(__file__).parent / "ranked_schedule.py")
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [*command, script, kind, str(folder), str(pause)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def ranks_of(launcher: subprocess.Popen[bytes]) -> list[int]:
    """The processes that a launcher has started."""
    listed = subprocess.run(
        ["ps", "--ppid", str(launcher.pid), "-o", "pid="],
        capture_output=True,
        text=True,
        check=False,
    )
    return [int(line) for line in listed.stdout.split()]


@pytest.mark.parametrize(
    "kind, victim", [("loop", 0), pytest.param("lightning", 1, marks=pytest.mark.slow)]
)
def test_a_schedule_under_torchrun_ends_in_the_bits_that_the_store_holds(
    tmp_path: Path, kind: str, victim: int
) -> None:
    """One rank is killed in the middle of a step; the launcher ends the other; all start again."""
    assert torchrun(kind, tmp_path / "whole").wait(120) == 0
    store = RunStore(tmp_path / "whole")
    stored = store.weights(len(store.plan().steps))
    for number in range(2):
        ended = load_file(tmp_path / "whole" / f"rank{number}.safetensors")
        assert all(bool((ended[key] == stored[key]).all()) for key in stored)

    folder = tmp_path / "killed"
    launcher = torchrun(kind, folder, pause=0.5)
    try:
        while not (folder / "steps" / "02-CSL1" / "trainer").exists():
            time.sleep(0.02)
            assert launcher.poll() is None
        time.sleep(0.8)
        os.kill(sorted(ranks_of(launcher))[victim], signal.SIGKILL)
        assert launcher.wait(120) != 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
    assert RunStore(folder).num_finished() == 1
    assert torchrun(kind, folder).wait(120) == 0
    for path in sorted((tmp_path / "whole").glob("steps/*/weights.safetensors")):
        assert (folder / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
