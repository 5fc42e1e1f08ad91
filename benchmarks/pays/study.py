"""Which runs there are, and what is known of them already."""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.pays.ways import Way, carry_out
from eslkit.recipes import recipe_of

__all__ = ["RESULTS", "Run", "carry_out_all", "known_data", "read", "runs_of"]

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


def _begin() -> None:
    import torch

    torch.set_num_threads(1)


def _done(given: tuple[Run, str]) -> dict[str, Any]:
    import torch

    from benchmarks.pays.tasks import CACHE, task

    run, data = given
    work, began = task(run.task, data), time.perf_counter()
    outcome = carry_out(run.way, work, run.size, budget=run.budget, seed=run.seed)
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
        "seconds": round(time.perf_counter() - began, 1),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, one thread",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def carry_out_all(
    runs: Iterable[Run], *, data: str, processes: int, hours: float
) -> Iterator[dict[str, Any]]:
    """Carry out what is not known yet, the cheapest first; stopped, it goes on where it was."""
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
                    yield record
                    following = next(pending, None)
                    if following is not None:
                        waiting.append(pool.apply_async(_done, (following,)))
                    break


PAPER: dict[str, Any] = {}
"""`eslkit.schedule` as it comes is the paper's ESL3."""

STEPS = {"denoise": 7, "segment": 6}
"""Trainings of ESL, the expanded network's among them: so often does the control restart."""

BASELINES: dict[str, Way] = {
    "scratch": Way(),
    "restarts": Way(restarts=0),
    "ESL": Way(walk=PAPER, by_width=True),
    "ESL one-shot": Way(walk={"granularity": "one-shot"}, by_width=True),
    "prune and finetune": Way(
        walk={"granularity": "direct", "init": "l1"}, spread="flops", by_width=True
    ),
    "distillation": Way(distil=True, by_width=True),
}
"""Other ways to spend a budget, each with the learning rates that suit it best (the part `tuning`);
the control that restarts does so as often as ESL has trainings."""


def _preset() -> Way:
    """The library's recipe, its options written out."""
    told = recipe_of("thrifty")
    share = told.shares["last"] if told.shares else ""
    return Way(
        walk={
            "width": told.width,
            "depth": told.depth,
            "granularity": told.granularity,
            "init": told.init,
        },
        spread=f"last {float(str(share).rstrip('%')) / 100:g}",
        by_width=told.scale_rates,
    )


PRESET: dict[str, Way] = {"thrifty": _preset()}
"""What the library offers."""


def _walks(**walk: Any) -> Way:
    return Way(walk=walk, spread="flops", by_width=True)


KNOBS: dict[str, Way] = {
    "equal FLOPs a step": _walks(),
    "equal updates a step": Way(walk=PAPER, by_width=True),
    "one learning rate": Way(walk=PAPER, spread="flops"),
    "half for the last step": Way(walk=PAPER, spread="last 0.5", by_width=True),
    "half for the first step": Way(walk=PAPER, spread="first 0.5", by_width=True),
    "lr 4e-3": replace(_walks(), lr=4e-3),
    "depth 0": _walks(depth=0),
    "width 1.5": _walks(width=1.5),
    "width 1.5, depth 0": _walks(width=1.5, depth=0),
    "one-shot": _walks(granularity="one-shot"),
    "direct": _walks(granularity="direct"),
    "last": _walks(init="last"),
    "combined": _walks(init="combined"),
    "l1": _walks(init="l1"),
    "taylor": _walks(init="taylor"),
    "least squares": _walks(init="least_squares"),
    "inwards": _walks(order="inwards"),
    "factor 0.75": _walks(factor=0.75),
    "rates once": _walks(rates="once"),
    "rates 0.3": _walks(rates=0.3),
    "rates 0.1": _walks(rates=0.1),
    "teach 0.5": _walks(teach=0.5),
    "teach 1": _walks(teach=1.0),
    "carry": replace(_walks(), carry=True),
    "soft": _walks(factor=0.9, rates="once", init="l1"),
    "soft, carry": replace(_walks(factor=0.9, rates="once", init="l1"), carry=True),
    "average 0.99": replace(_walks(), average=0.99),
    "early stop": replace(_walks(), early=0.05),
    "trained start, preserve": replace(_walks(expand_init="preserve", depth=0), start=0.3),
    "trained start, split and merge": replace(
        _walks(expand_init="split", init="merge", depth=0), start=0.3
    ),
}
"""Each knob alone, against ESL with as much computation in each step."""


def _of_task(task: str) -> dict[str, Way]:
    """Knobs that need the names of a network's layers or levels."""
    outer = {"denoise": 0, "segment": 1}[task]
    inner = [f"level {level}" for level in range(3, outer, -1)]
    gently = [*inner, {f"level {outer}": 0.75}, "channels", "fine layers"]
    decoder = {
        "denoise": [
            "level 3",
            ["middle.conv2.level.exit.conv", "middle.conv2.body", "decoder.1.up"],
            ["decoder.1.conv*", "decoder.0.up"],
            "decoder.0.conv*",
        ],
        "segment": ["level 3", ["*.exit.conv", "*.body.*"], "model.1.submodule.2.conv"],
    }[task]
    return {
        "gently at full resolution": _walks(granularity=gently),
        "the decoder first": _walks(granularity=[*decoder, "fine channels", "fine layers"]),
    }


NARROW = {"width": 1.5, "depth": 0, "granularity": "direct", "init": "taylor"}
"""Not much larger, and back at once."""

COMBINED: dict[str, Way] = {
    "half for the last step, by width": Way(walk=PAPER, spread="last 0.5", by_width=True),
    "0.7 for the last step, by width": Way(walk=PAPER, spread="last 0.7", by_width=True),
    "0.7 for the last step, by width, once": Way(
        walk={"rates": "once"}, spread="last 0.7", by_width=True
    ),
    "0.7 for the last step, by width, once, taylor": Way(
        walk={"rates": "once", "init": "taylor"}, spread="last 0.7", by_width=True
    ),
    "direct, taylor, 0.7 for the last step, by width": Way(
        walk={"granularity": "direct", "init": "taylor"}, spread="last 0.7", by_width=True
    ),
    "direct, taylor, 0.7 for the last step, by width, once": Way(
        walk={"granularity": "direct", "init": "taylor", "rates": "once"},
        spread="last 0.7",
        by_width=True,
    ),
    "width 1.5, depth 0, 0.7 for the last step, by width, once, taylor": Way(
        walk={"width": 1.5, "depth": 0, "rates": "once", "init": "taylor"},
        spread="last 0.7",
        by_width=True,
    ),
    **{
        f"width {width}, depth {depth}, direct, taylor, 0.7 for the last step, by width": Way(
            walk={"width": width, "depth": depth, "granularity": "direct", "init": "taylor"},
            spread="last 0.7",
            by_width=True,
        )
        for width, depth in ((1.5, 0), (1.5, 1), (2, 0), (3, 0))
    },
    **{
        f"depth 0, one-shot, {f'factor {factor}, ' if factor else ''}{init}, rates {rates}, "
        f"half for the last step, by width": Way(
            walk={
                "depth": 0,
                "granularity": "one-shot",
                "factor": factor,
                "init": init,
                "rates": rates,
            },
            spread="last 0.5",
            by_width=True,
        )
        for factor, rates, init in (
            (0.75, "restart", "taylor"),
            (0.75, "once", "taylor"),
            (0.75, "once", "taylor, least squares"),
            (0.9, "once", "taylor"),
            (0.9, "once", "taylor, least squares"),
            (0.9, 0.3, "taylor, least squares"),
            (None, "once", "taylor, least squares"),
            (None, 0.3, "taylor, least squares"),
        )
    },
    **{
        f"depth 0, direct, taylor, {part} for the last step, {cycles} cycles, by width": Way(
            walk={"depth": 0, "granularity": "direct", "init": "taylor"},
            spread=f"last {part}",
            by_width=True,
            cycles=cycles,
        )
        for part, cycles in ((0.5, 3),)
    },
    **{
        f"width {width}, depth 0, direct, taylor, 0.7 for the last step, teach {weight}": Way(
            walk={**NARROW, "width": width, "teach": weight}, spread="last 0.7", by_width=True
        )
        for width, weight in ((1.5, 0.5), (2, 0.5), (2, 2))
    },
    **{
        f"width 2, depth 0, direct, taylor, {part} for the last step, lr {lr:g} by width": Way(
            walk={"depth": 0, "granularity": "direct", "init": "taylor"},
            spread=f"last {part}",
            by_width=True,
            lr=lr,
        )
        for part, lr in ((0.7, 1.6e-2), (0.5, 1.6e-2), (0.5, 8e-3), (0.85, 1.6e-2))
    },
    **{
        f"start {start:g}, {rounds} x (width 1.5, depth 0, {expand}, direct, taylor)": Way(
            walk={**NARROW, "expand_init": expand},
            spread="last 0.6",
            by_width=True,
            start=start,
            rounds=rounds,
        )
        for start, rounds, expand in (
            (0.25, 1, "split"),
            (0.2, 3, "split"),
            (0.2, 3, "first"),
            (0, 3, "first"),
        )
    },
}
"""Knobs together."""

CUTS: dict[str, Way] = {
    init: Way(
        walk={"width": 2, "depth": 0, "granularity": "direct", "init": init},
        spread="last 0.7",
        by_width=True,
    )
    for init in (
        *("first", "last", "combined", "l1", "l2", "paths", "taylor", "least_squares"),
        "taylor, least squares",
    )
}
"""Which channels stay, when the same expanded network is cut back at once."""

CEILING: dict[str, tuple[Way, int]] = {
    "restarts": (Way(restarts=0), 128000),
    "direct, taylor": (
        Way(walk={"granularity": "direct", "init": "taylor"}, spread="last 0.4", by_width=True),
        160000,
    ),
    **{
        f"width {width}, depth 0, direct, taylor": (
            Way(
                walk={"width": width, "depth": 0, "granularity": "direct", "init": "taylor"},
                spread="last 0.5",
                by_width=True,
            ),
            128000,
        )
        for width in (2, 3)
    },
}
"""Whether a network that comes down from a much better one ends higher at all, whatever it costs:
in both the small network alone trains for a multiple of what saturates it."""

PARTS = (
    "rate",
    "saturation",
    "ceiling",
    "baselines",
    "half",
    "plain",
    "tuning",
    "knobs",
    "cuts",
    "combined",
)
"""What `runs_of` knows."""

BUDGETS = (1000, 4000, 16000, 64000)


def known_data() -> dict[str, str]:
    """Task -> digest of the data that the last known runs have."""
    return {record["task"]: record["data"] for record in read().values()}


def runs_of(part: str, data: Mapping[str, str]) -> list[Run]:
    """The runs of a part of the study.

    Args:
        part: its name.
        data: task -> digest of its data; tasks that are not there are left out.
    """
    both = [(t, s) for t in data for s in ("4-8-16", "8-16-32")]
    if part == "rate":
        return [
            Run(t, s, f"scratch, lr {lr:g}", Way(lr=lr), 4000, 0, data[t])
            for t, s in both
            for lr in (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
        ]
    if part == "saturation":
        return [
            Run(t, s, "scratch", Way(), budget, seed, data[t])
            for t, s in both
            for budget in (2000, 8000, 32000, 128000)
            for seed in range(3)
        ]
    if part == "baselines":
        return [
            Run(t, s, name, way if way.restarts else Way(restarts=STEPS[t]), budget, seed, data[t])
            for t, s in both
            for budget in BUDGETS
            for name, way in {**BASELINES, **PRESET}.items()
            for seed in range(3)
        ]
    if part == "half":
        return [
            Run(t, s, name, way, budget // 2, seed, data[t])
            for t, s in both
            for budget in BUDGETS
            for name, way in PRESET.items()
            for seed in range(3)
        ]
    if part == "knobs":
        return [
            Run(t, "4-8-16", name, way, 16000, seed, data[t])
            for t in data
            for name, way in {**KNOBS, **_of_task(t)}.items()
            for seed in range(2)
        ]
    if part == "ceiling":
        return [
            Run(t, s, name, way if way.restarts else replace(way, restarts=STEPS[t]), cost, seed, d)
            for t, d in data.items()
            for s in ("4-8-16", "8-16-32")
            for name, (way, cost) in CEILING.items()
            for seed in range(3)
        ]
    if part == "plain":
        # One learning rate for all, unless the name says otherwise.
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
    if part == "tuning":
        return [
            Run(t, "4-8-16", f"{name}, {_rated(rated)}", rated, 16000, 0, data[t])
            for t in data
            for name, way in BASELINES.items()
            for rated in _rates(way if way.restarts else replace(way, restarts=STEPS[t]))
        ]
    if part == "cuts":
        return [
            Run(t, "4-8-16", f"cut by {name}", way, 16000, seed, data[t])
            for t in data
            for name, way in CUTS.items()
            for seed in range(3)
        ]
    if part == "combined":
        return [
            Run(t, "4-8-16", name, way, budget, seed, data[t])
            for t in data
            for budget in (16000, 64000)
            for name, way in COMBINED.items()
            for seed in range(2)
        ]
    raise SystemExit(f"There is no part {part!r}; there are {', '.join(PARTS)}.")


def _rates(way: Way) -> list[Way]:
    """The same way with other learning rates."""
    plain = [replace(way, lr=lr, by_width=False) for lr in (2e-3, 4e-3, 8e-3, 1.6e-2)]
    if way.walk is None and not way.distil:
        return plain
    return plain[:-1] + [replace(way, lr=lr, by_width=True) for lr in (4e-3, 8e-3, 1.6e-2)]


def _rated(way: Way) -> str:
    return f"lr {way.lr:g}{' by width' if way.by_width else ''}"
