"""The ways that are compared, by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.pays.ways import Way
from eslkit.recipes import recipe_of

__all__ = [
    "BASELINES",
    "CEILING",
    "COMBINED",
    "CUTS",
    "KNOBS",
    "LENGTHS",
    "LINEAR",
    "PRESET",
    "STEPS",
    "knobs_of_task",
    "other_rates",
    "rate_of",
]

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


INSIDE = {"width": 1, "depth": 0, "linear": 4}
"""Linear expansion of the small network alone."""


def _thrifty() -> Way:
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


PRESET: dict[str, Way] = {"thrifty": _thrifty(), "linear": Way(walk=INSIDE, lr=4e-3)}
"""What the library offers; `linear` learns at half the rate, as its `scale_rates` has it."""


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


def knobs_of_task(task: str) -> dict[str, Way]:
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
    "depth 0, direct, taylor, 0.5 for the last step, 3 cycles, by width": Way(
        walk={"depth": 0, "granularity": "direct", "init": "taylor"},
        spread="last 0.5",
        by_width=True,
        cycles=3,
    ),
    **{
        f"width {width}, depth 0, direct, taylor, 0.7 for the last step, teach {weight}": Way(
            walk={**NARROW, "width": width, "teach": weight}, spread="last 0.7", by_width=True
        )
        for width, weight in ((1.5, 0.5), (2, 0.5))
    },
    **{
        f"width 2, depth 0, direct, taylor, {part} for the last step, lr {lr:g} by width": Way(
            walk={"depth": 0, "granularity": "direct", "init": "taylor"},
            spread=f"last {part}",
            by_width=True,
            lr=lr,
        )
        for part, lr in ((0.7, 1.6e-2), (0.5, 8e-3))
    },
    **{
        f"start {start:g}, depth 0, direct, split and merge, {part} for the last step": Way(
            walk={"depth": 0, "granularity": "direct", "expand_init": "split", "init": "merge"},
            spread=f"last {part}",
            by_width=True,
            start=start,
        )
        for start, part in ((0.3, 0.5), (0.3, 0.7))
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

LINEAR: dict[str, Way] = {
    "linear": PRESET["linear"],
    "linear, one rate": Way(walk=INSIDE),
    **{
        f"linear {times}": Way(walk={**INSIDE, "linear": times}, by_width=True)
        for times in (1, 2, 8, 16)
    },
    "thrifty, linear": replace(
        PRESET["thrifty"], walk={**(PRESET["thrifty"].walk or {}), "linear": 4}
    ),
}
"""Linear expansion: of the small network alone, more or less of it, and beside another."""

LENGTHS: dict[str, Way] = {
    f"{name}, lr {lr:g}": replace(way, lr=lr)
    for name, way in {**{n: BASELINES[n] for n in ("scratch", "restarts")}, **PRESET}.items()
    for lr in (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
}
"""What the table of results compares last, with other learning rates: long trainings want lower
ones than short ones. `linear` has the number as it stands here, not half of it."""

CEILING: dict[str, tuple[Way, int]] = {
    "scratch": (Way(), 128000),
    "restarts": (Way(restarts=0), 128000),
    "thrifty": (PRESET["thrifty"], 128000),
    "linear": (PRESET["linear"], 128000),
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


def other_rates(way: Way) -> list[Way]:
    """The same way with other learning rates."""
    plain = [replace(way, lr=lr, by_width=False) for lr in (2e-3, 4e-3, 8e-3, 1.6e-2)]
    if way.walk is None and not way.distil:
        return plain
    return plain[:-1] + [replace(way, lr=lr, by_width=True) for lr in (4e-3, 8e-3, 1.6e-2)]


def rate_of(way: Way) -> str:
    return f"lr {way.lr:g}{' by width' if way.by_width else ''}"
