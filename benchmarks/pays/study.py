"""Which runs there are, and what is known of them already."""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice, product
from pathlib import Path
from typing import Any

from benchmarks.pays.catalogue import (
    BASELINES,
    CEILING,
    COMBINED,
    CUTS,
    KNOBS,
    LENGTHS,
    LINEAR,
    PRESET,
    STEPS,
    knobs_of_task,
    other_rates,
    rate_of,
)
from benchmarks.pays.pools import CACHE
from benchmarks.pays.progress import Progress
from benchmarks.pays.ways import Way, carry_out

__all__ = ["PARTS", "RESULTS", "Run", "carry_out_all", "known_data", "read", "runs_of"]

RESULTS = Path(__file__).with_name("results.jsonl")


@dataclass(frozen=True)
class Run:
    """One way, one task, one size, one budget, one seed."""

    task: str
    size: str
    name: str
    """What the way is called."""
    way: Way
    budget: int
    seed: int
    data: str
    """Digest of what it learns from."""

    def told(self) -> dict[str, Any]:
        """For a file."""
        return {
            "task": self.task,
            "size": self.size,
            "way": self.way.told(),
            "budget": self.budget,
            "seed": self.seed,
            "data": self.data,
        }

    @property
    def id(self) -> str:
        """Of all that counts."""
        return hashlib.sha256(json.dumps(self.told(), sort_keys=True).encode()).hexdigest()[:12]


def read() -> dict[str, dict[str, Any]]:
    """What is known, by identity."""
    if not RESULTS.exists():
        return {}
    lines = (json.loads(line) for line in RESULTS.read_text("utf-8").splitlines())
    return {line["id"]: line for line in lines}


def _keep(record: dict[str, Any]) -> None:
    with RESULTS.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(record) + "\n")


def _under_way(identity: str) -> Path:
    return CACHE / "under way" / identity


def _begin() -> None:
    import torch

    torch.set_num_threads(1)


def _done(given: tuple[Run, str]) -> dict[str, Any]:
    import torch

    from benchmarks.pays.tasks import task

    run, data = given
    work, progress = task(run.task, data), Progress(_under_way(run.id))
    outcome = carry_out(
        run.way, work, run.size, budget=run.budget, seed=run.seed, progress=progress
    )
    networks = CACHE / "networks"
    networks.mkdir(exist_ok=True)
    torch.save(outcome.network.state_dict(), networks / f"{run.id}.pt")
    return {
        "id": run.id,
        "name": run.name,
        **run.told(),
        "cost": round(outcome.cost, 1),
        "iterations": outcome.iterations,
        "validation": work.validate(outcome.network),
        "test": work.test(outcome.network),
        "steps": outcome.steps,
        "seconds": round(progress.seconds, 1),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, one thread",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def carry_out_all(
    runs: Iterable[Run], *, data: str, processes: int, hours: float
) -> Iterator[dict[str, Any]]:
    """Carry out what is not known yet, the cheapest first.

    Stopped at any moment, it goes on there: what has ended is known, and a training under way has
    its last checkpoint (`Progress`).
    """
    known, end = read(), time.monotonic() + 3600 * hours
    left = sorted(
        {run.id: run for run in runs if run.id not in known}.values(),
        key=lambda run: (run.budget, run.seed),
    )
    pending = ((run, data) for run in left if time.monotonic() < end)
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, initializer=_begin) as pool:
        waiting = [pool.apply_async(_done, (each,)) for each in islice(pending, processes)]
        while waiting:
            for result in waiting:
                result.wait(0.2)
                if result.ready():
                    waiting.remove(result)
                    record = result.get()
                    _keep(record)
                    Progress(_under_way(record["id"])).clear()
                    yield record
                    following = next(pending, None)
                    if following is not None:
                        waiting.append(pool.apply_async(_done, (following,)))
                    break


BUDGETS = (1000, 4000, 16000, 64000)
SMALL, BOTH = ("4-8-16",), ("4-8-16", "8-16-32")
SEEDS = range(3)

Data = Mapping[str, str]


def known_data() -> dict[str, str]:
    """Task -> digest of the data that the last known runs have."""
    return {record["task"]: record["data"] for record in read().values()}


def _runs(
    data: Data,
    ways: Mapping[str, Way],
    budgets: Iterable[int],
    *,
    sizes: Iterable[str] = BOTH,
    seeds: Iterable[int] = SEEDS,
) -> list[Run]:
    """Each way with each budget, on each task, at each size, with each seed."""
    return [
        Run(task, size, name, _restarting(way, task), budget, seed, digest)
        for task, digest in data.items()
        for size, budget, (name, way), seed in product(sizes, budgets, ways.items(), seeds)
    ]


def _restarting(way: Way, task: str) -> Way:
    """The way; the control that restarts does so as often as ESL has trainings."""
    return way if way.restarts else replace(way, restarts=STEPS[task])


def _rate(data: Data) -> list[Run]:
    rates = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
    return _runs(data, {f"scratch, lr {lr:g}": Way(lr=lr) for lr in rates}, [4000], seeds=[0])


def _saturation(data: Data) -> list[Run]:
    return _runs(data, {"scratch": Way()}, (2000, 8000, 32000, 128000, 256000))


def _ceiling(data: Data) -> list[Run]:
    return [
        run for name, (way, cost) in CEILING.items() for run in _runs(data, {name: way}, [cost])
    ]


def _baselines(data: Data) -> list[Run]:
    return _runs(data, {**BASELINES, **PRESET}, BUDGETS)


def _half(data: Data) -> list[Run]:
    return _runs(data, PRESET, [budget // 2 for budget in BUDGETS])


def _plain(data: Data) -> list[Run]:
    """One learning rate for all, unless the name says otherwise."""
    return [
        replace(run, way=replace(run.way, warmup=0, clip=0.0, **how))
        for how, parts in (
            ({"by_width": False}, ("baselines", "knobs")),
            ({}, ("ceiling", "rate", "tuning", "combined")),
        )
        for part in parts
        for run in runs_of(part, data)
        if run.seed == 0
    ]


def _tuning(data: Data) -> list[Run]:
    rated = {
        f"{name}, {rate_of(other)}": other
        for name, way in BASELINES.items()
        for other in other_rates(way)
    }
    return _runs(data, rated, [16000], sizes=SMALL, seeds=[0])


def _knobs(data: Data) -> list[Run]:
    return [
        run
        for task, digest in data.items()
        for run in _runs(
            {task: digest},
            {**KNOBS, **knobs_of_task(task)},
            [16000],
            sizes=SMALL,
            seeds=range(2),
        )
    ]


def _cuts(data: Data) -> list[Run]:
    ways = {f"cut by {name}": way for name, way in CUTS.items()}
    return _runs(data, ways, [16000], sizes=SMALL)


def _combined(data: Data) -> list[Run]:
    return _runs(data, COMBINED, (16000, 64000), sizes=SMALL)


def _linear(data: Data) -> list[Run]:
    return _runs(data, LINEAR, BUDGETS)


def _lengths(data: Data) -> list[Run]:
    budgets = (4000, 16000, 64000, 128000, 256000)
    return [run for name, way in LENGTHS.items() for run in _runs(data, {name: way}, budgets)]


PARTS: Mapping[str, Callable[[Data], list[Run]]] = {
    "rate": _rate,
    "saturation": _saturation,
    "ceiling": _ceiling,
    "baselines": _baselines,
    "half": _half,
    "plain": _plain,
    "tuning": _tuning,
    "knobs": _knobs,
    "cuts": _cuts,
    "combined": _combined,
    "linear": _linear,
    "lengths": _lengths,
}
"""Name -> runs of a part of the study."""


def runs_of(part: str, data: Data) -> list[Run]:
    """The runs of a part of the study.

    Args:
        part: its name.
        data: task -> digest of its data; tasks that are not there are left out.
    """
    if part not in PARTS:
        raise SystemExit(f"There is no part {part!r}; there are {', '.join(PARTS)}.")
    return PARTS[part](data)
