"""The library's own share of a run: planning, surgery, checking, hashing, writing.

The trainer takes no time at all, so that every second that is measured is the library's. Three ways
are measured, each in a process of its own: planned and run in one go (with the folder on disk);
run from a plan on disk, where every step is traced and proved again; and resumed after the last
but one step, where all networks before are built again. The share is that of trainings of 60 s.

    python benchmarks/overhead.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

import eslkit
from eslkit.plan import Plan
from eslkit.schedule import Schedule
from eslkit.trainer import StepContext
from eslkit_tsdn.models.tsdn import TSDN
from eslkit_tsdn.models.unet import UNet

T = TypeVar("T")

SECONDS_A_STEP = 60.0
INPUTS = (1, 4, 64, 64)
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {"TSDN": (TSDN, 1), "U-Net": (UNet, 0)}
PROCESSES = multiprocessing.get_context("spawn")


def nothing(model: nn.Module, step: StepContext) -> Mapping[str, float]:
    """A training that takes no time."""
    return {}


class Stop:
    """Nothing, until the last step is interrupted."""

    def fit(self, model: nn.Module, step: StepContext) -> Mapping[str, float]:
        if step.index == step.num_steps:
            raise KeyboardInterrupt
        return {}


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """What it gives, and the seconds that it took: by the clock, and of this process's CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    return made, time.perf_counter() - wall, time.process_time() - cpu


def measure(name: str, folder: str, way: str, answer: multiprocessing.queues.Queue[object]) -> None:
    """One way, in a fresh process: steps, wall and CPU seconds of planning and of running."""
    torch.set_num_threads(1)
    make, depth = MODELS[name]
    x, path = torch.zeros(INPUTS), Path(folder)
    model, planning = make(), (0.0, 0.0)
    eslkit.trace(model, example_inputs=x)  # torch loads parts of itself when it is first used
    if way == "planned and run":
        made, *planning = timed(lambda: eslkit.schedule(model, depth=depth, example_inputs=x))
        (path / "plan.json").write_text(made.plan.to_json())
    else:
        made = Schedule(model, Plan.from_json((path / "plan.json").read_text()), x)
    out = path / way.replace(" ", "-")
    if way == "resumed":
        try:
            made.run(Stop(), out=out)
        except KeyboardInterrupt:
            made = Schedule(model, made.plan, x)
    _, *running = timed(lambda: made.run(nothing, out=out))
    answer.put((len(made.steps), *planning, *running))


def main() -> None:
    """Print a row for each model and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(f"{platform.machine()}, {os.cpu_count()} cores, 1 thread, torch {torch.__version__}")
    print(f"load {os.getloadavg()[0]:.1f} before; inputs {INPUTS}; median of {repeats}")
    print(f"seconds by the clock (of CPU); share of trainings of {SECONDS_A_STEP:.0f} s a step")
    print(f"{'model':8} {'way':17} steps {'planning':>14} {'running':>14} {'a step':>14} share")
    for name in MODELS:
        rows: dict[str, list[tuple[float, ...]]] = {}
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                for way in ("planned and run", "plan from disk", "resumed"):
                    answer = PROCESSES.Queue()
                    child = PROCESSES.Process(target=measure, args=(name, folder, way, answer))
                    child.start()
                    rows.setdefault(way, []).append(answer.get())
                    child.join()
        for way, found in rows.items():
            _report(name, way, [statistics.median(column) for column in zip(*found, strict=True)])


def _report(name: str, way: str, medians: list[float]) -> None:
    steps, plan_wall, plan_cpu, run_wall, run_cpu = medians
    wall, cpu = (plan_wall + run_wall) / steps, (plan_cpu + run_cpu) / steps
    pairs = ((plan_wall, plan_cpu), (run_wall, run_cpu), (wall, cpu))
    cells = " ".join(f"{a:7.2f} ({b:4.2f})" for a, b in pairs)
    print(f"{name:8} {way:17} {steps:5.0f} {cells} {wall / SECONDS_A_STEP:.2%}", flush=True)


if __name__ == "__main__":
    main()
