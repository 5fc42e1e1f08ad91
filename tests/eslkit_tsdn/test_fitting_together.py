"""Processes that train one network together: what each sees, and that it is one training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from eslkit_tsdn.losses import stage_l1
from eslkit_tsdn.optimizer import make_optimizer
from tests.eslkit_tsdn import two_processes as script
from tests.tolerances import FLOAT32_FORWARD

ROOT = Path(__file__).parents[2]


def by_hand() -> torch.nn.Module:
    """The same in one process: the gradients of both batches, averaged."""
    model, source = script.network(), script.Noted()
    optimizer, scheduler = make_optimizer(model, lr=script.BUDGET.lr, iterations=4)
    for update in range(4):
        optimizer.zero_grad()
        for number in (2 * update, 2 * update + 1):
            batch = source.batch(number)
            (stage_l1(model(batch.noisy), batch.clean) / 2).backward()
        optimizer.step()
        scheduler.step()
    return model


def test_two_processes_see_their_own_batches_and_train_one_network(tmp_path):
    plain = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    done = subprocess.run(
        [sys.executable, str(Path(script.__file__)), str(tmp_path)],
        env={**plain, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert (tmp_path / "rank0.txt").read_text() == "0 2 4 6"
    assert (tmp_path / "rank1.txt").read_text() == "1 3 5 7"
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    kept = load_file(tmp_path / "fit" / "trained.safetensors")
    expected = by_hand().state_dict()
    for key, value in first.items():
        assert torch.equal(value, second[key]) and torch.equal(value, kept[key])
        FLOAT32_FORWARD.check(value, expected[key].detach())
