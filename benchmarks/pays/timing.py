"""What an update of each network costs in time, beside what it costs in FLOPs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import eslkit
from benchmarks.pays.tasks import Task, task
from benchmarks.pays.training import train
from eslkit.surgery.linear import expand_linearly, product_macs

__all__ = ["times"]

BLOCKS, UPDATES = 9, 60


def times(data: str) -> list[str]:
    """A line for each task, size and expansion: FLOPs and time of an update, as ratios.

    Blocks of updates of the two networks take turns on one thread; medians count.
    """
    torch.set_num_threads(1)
    lines: list[str] = []
    for name in ("denoise", "segment"):
        work = task(name, data)
        for size in work.sizes:
            small = work.small(size, seed=0)
            inside = work.small(size, seed=0)
            more = product_macs(inside) / (work.batch_size * _macs(small, work))
            expand_linearly(inside)
            base, slower = _side_by_side(_updates(small, work), _updates(inside, work))
            lines.append(_line(f"{name} {size}, linear 4", 1 + more, base, slower))
            for width, depth in ((1.5, 0), (2, 0), (2, 1)):
                made = eslkit.schedule(
                    small,
                    width=width,
                    depth=depth,
                    granularity="direct",
                    example_inputs=work.example,
                )
                macs = made.plan.steps[0].macs / made.plan.base_macs
                large = eslkit.expand(small, width=width, depth=depth, example_inputs=work.example)
                base, slower = _side_by_side(_updates(small, work), _updates(large, work))
                told = f"{name} {size}, width {width:g}, depth {depth}"
                lines.append(_line(told, macs, base, slower))
    return lines


def _macs(network: nn.Module, work: Task) -> int:
    return eslkit.cost(network, example_inputs=work.example).macs


def _line(told: str, macs: float, base: float, slower: float) -> str:
    return (
        f"{told}: {macs:.2f} times the FLOPs, {slower / base:.2f} times the time "
        f"({1e3 * base:.2f} and {1e3 * slower:.2f} ms)"
    )


def _updates(network: nn.Module, work: Task) -> Callable[[], None]:
    def run() -> None:
        train(
            network,
            work,
            iterations=UPDATES,
            seed=0,
            rate=lambda done: 1.0,
            lr=1e-4,
            warmup=0,
            clip=0.1,
        )

    return run


def _side_by_side(*runs: Callable[[], None]) -> list[float]:
    """Median seconds of an update of each, in turns."""
    found: list[list[float]] = [[] for _ in runs]
    for block in range(BLOCKS):
        for kept, run in zip(found, runs, strict=True):
            began = time.perf_counter()
            run()
            if block:  # the first warms up
                kept.append((time.perf_counter() - began) / UPDATES)
    return [statistics.median(kept) for kept in found]
