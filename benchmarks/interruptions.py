"""Kill runs of a small real schedule at random moments, and compare the bits that they end in.

Every run trains a two-level U-Net through its whole schedule with a plain loop that keeps its own
checkpoint in `step.folder`. It is killed with SIGKILL one to three times, resumed each time, and
its final weights are compared with those of an uninterrupted run.

    python benchmarks/interruptions.py --runs 50
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eslkit.plan import Plan
from eslkit.schedule import Schedule, schedule
from eslkit.trainer import StepContext

SIDE = 16
PROCESSES = multiprocessing.get_context("forkserver")


class UNet(nn.Module):
    """Two levels, BatchNorm, a transposed convolution and a concat skip."""

    def __init__(self, first: int = 2, second: int = 4) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, first, 3, padding=1)
        self.norm = nn.BatchNorm2d(first)
        self.low1 = nn.Conv2d(first, second, 3, padding=1)
        self.low2 = nn.Conv2d(second, second, 3, padding=1)
        self.up = nn.ConvTranspose2d(second, first, 2, stride=2)
        self.leave = nn.Conv2d(2 * first, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """A restored picture of the same shape, (batch, 1, height, width)."""
        skip = torch.relu(self.norm(self.enter(x)))
        low = torch.relu(self.low2(torch.relu(self.low1(F.max_pool2d(skip, 2)))))
        return self.leave(torch.cat([self.up(low), skip], dim=1))


def train(model: nn.Module, step: StepContext) -> Mapping[str, float]:
    """A plain loop; every fifth update a checkpoint with the optimizer and the generator."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    done, loss = 0, torch.zeros(())
    checkpoint = None if step.folder is None else step.folder / "last.pt"
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        done = saved["done"]
    for iteration in range(done, step.iterations or 1):
        clean = torch.rand(2, 1, SIDE, SIDE)
        loss = (model(clean + 0.1 * torch.randn_like(clean)) - clean).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if checkpoint is not None and iteration % 5 == 4 and iteration + 1 < (step.iterations or 1):
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "random": torch.get_rng_state(),
                "done": iteration + 1,
            }
            part = checkpoint.with_suffix(".part")
            torch.save(state, part)
            part.replace(checkpoint)
    return {"loss": float(loss.detach())}


def planned(plan: str | None = None) -> Schedule:
    """The schedule, planned anew or from a plan's JSON."""
    torch.manual_seed(7)
    example = (torch.zeros(1, 1, SIDE, SIDE),)
    if plan is not None:
        return Schedule(UNet(), Plan.from_json(plan), example)
    return schedule(UNet(), example_inputs=example, iterations=30)


def run(folder: str, plan: str) -> None:
    """A whole run, in a process of its own."""
    torch.set_num_threads(1)
    planned(plan).run(train, out=folder)


def start(folder: Path, plan: str) -> multiprocessing.process.BaseProcess:
    """A process that runs the schedule in a folder."""
    child = PROCESSES.Process(target=run, args=(str(folder), plan))
    child.start()
    return child


def kill_within(folder: Path, plan: str, seconds: float) -> bool:
    """Start the run, and kill it after so many seconds; whether it was still going on."""
    child = start(folder, plan)
    child.join(seconds)
    alive = child.is_alive()
    child.kill()
    child.join()
    return alive


def final_bytes(folder: Path) -> list[bytes]:
    """The weights of all steps, as they lie on disk."""
    return [path.read_bytes() for path in sorted(folder.glob("steps/*/weights.safetensors"))]


def main() -> None:
    """Print one line a run, and how many ended in the same bits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    PROCESSES.set_forkserver_preload(["eslkit.schedule"])
    plan = planned().plan.to_json()
    same = 0
    with tempfile.TemporaryDirectory() as temporary:
        began = time.monotonic()
        start(Path(temporary) / "whole", plan).join()
        seconds = time.monotonic() - began
        expected = final_bytes(Path(temporary) / "whole")
        print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
        print(f"uninterrupted: {seconds:.1f} s, {len(expected)} steps")
        for number in range(arguments.runs):
            folder, kills = Path(temporary) / str(number), 0
            for _ in range(draw.randint(1, 3)):
                kills += kill_within(folder, plan, draw.uniform(0, seconds / 2))
            while not kills:  # it was quicker than the first one: start over, kill earlier
                shutil.rmtree(folder)
                seconds *= 0.8
                kills += kill_within(folder, plan, draw.uniform(0, seconds / 2))
            start(folder, plan).join()
            equal = final_bytes(folder) == expected
            same += equal
            print(f"run {number + 1}: killed {kills} times, {'same' if equal else 'OTHER'} bits")
    print(f"{same} of {arguments.runs} runs ended in the same bits")
    raise SystemExit(same != arguments.runs)


if __name__ == "__main__":
    main()
