"""The study's tables, as Markdown, from what is known."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.pays.catalogue import PRESET
from benchmarks.pays.study import known_data, read, runs_of
from benchmarks.pays.ways import Way

__all__ = ["TABLES"]

Record = dict[str, Any]
BASE_LR = Way().lr
MEASURES = {"denoise": "psnr_x300", "segment": "miou"}
UNITS = {"denoise": "PSNR at x300, dB", "segment": "mean IoU, %"}
DURING = ("30", "100", "300", "1000")
"""Updates after a cut at which it was looked again."""


def _records(*parts: str) -> list[tuple[str, Record]]:
    """What is known of parts, by the name that the part gives it."""
    known, data = read(), known_data()
    runs = {run.id: run for part in parts for run in runs_of(part, data)}
    return [(run.name, known[run.id]) for run in runs.values() if run.id in known]


def _score(record: Record, split: str = "test") -> float:
    return record[split][MEASURES[record["task"]]]


def _mean(values: Sequence[float], digits: int = 2, sign: str = "") -> str:
    if not values:
        return "—"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.{digits}f}{spread}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def by_budget(part: str) -> str:
    """For each task and size, a table of ways and budgets; on test data."""
    return _by_budget(_records(part))


def beside(part: str) -> str:
    """The same, with the small network alone and the recipe above; at the budgets of the part."""
    own = _records(part)
    asked = {(r["task"], r["size"], r["budget"]) for _, r in own}
    others = [
        (name, r)
        for name, r in _records("baselines", "saturation", "ceiling")
        if name in ("scratch", "restarts", "thrifty")
        and (r["task"], r["size"], r["budget"]) in asked
    ]
    return _by_budget([*others, *own])


def _by_budget(records: Iterable[tuple[str, Record]]) -> str:
    cells: dict[tuple[str, str], dict[str, dict[int, list[float]]]] = defaultdict(dict)
    for name, record in records:
        rows = cells[record["task"], record["size"]]
        rows.setdefault(name, defaultdict(list))[record["budget"]].append(_score(record))
    texts = {
        place: {name: {b: _counted(row[b]) for b in row} for name, row in rows.items()}
        for place, rows in cells.items()
    }
    return _grid(texts, _titled)


def _grid(
    cells: Mapping[tuple[str, str], Mapping[str, Mapping[int, str]]],
    title: Callable[[str, str], str],
) -> str:
    """A table for each task and size: ways down, budgets across."""
    parts: list[str] = []
    for (task, size), rows in sorted(cells.items()):
        budgets = sorted({budget for row in rows.values() for budget in row})
        lines = [[name, *(row.get(b, "—") for b in budgets)] for name, row in rows.items()]
        parts.append(_markdown([title(task, size), *(f"{b:,}" for b in budgets)], lines))
    return "\n".join(parts)


def against(part: str) -> str:
    """How far each way is ahead of the control that restarts, seed by seed; on test data."""
    return _compared(_records(part), "restarts", lambda budget: budget)


def against_half(part: str) -> str:
    """How far each way is ahead of ESL as printed at twice the budget, seed by seed."""
    return _compared(_records(part, "half"), "ESL", lambda budget: 2 * budget)


def against_quarter(part: str) -> str:
    """How far what the library offers is ahead of ESL as printed at four times the budget."""
    records = [(name, r) for name, r in _records(part) if name in ("ESL", *PRESET)]
    return _compared(records, "ESL", lambda budget: 4 * budget)


def _compared(records: Iterable[tuple[str, Record]], control: str, of: Callable[[int], int]) -> str:
    scores: dict[tuple[str, str], dict[str, dict[tuple[int, int], float]]] = defaultdict(dict)
    for name, record in records:
        rows = scores[record["task"], record["size"]]
        rows.setdefault(name, {})[record["budget"], record["seed"]] = _score(record)
    texts: dict[tuple[str, str], dict[str, dict[int, str]]] = {}
    for place, rows in scores.items():
        controls = rows.pop(control, {})
        found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for name, row in rows.items():
            for (budget, seed), score in row.items():
                if (of(budget), seed) in controls:
                    found[name][budget].append(score - controls[of(budget), seed])
        if found:
            texts[place] = {
                name: {budget: _counted(values, sign="+") for budget, values in ahead.items()}
                for name, ahead in found.items()
            }
    return _grid(texts, _titled)


def _titled(task: str, size: str) -> str:
    return f"{task}, {size}: {UNITS[task]}"


def _counted(values: Sequence[float], *, sign: str = "", of: int = 3) -> str:
    return _mean(values, sign=sign) + (f" ({len(values)})" if values and len(values) != of else "")


def own_rates(part: str) -> str:
    """Each way with the learning rate that suits it there, by validation; on test data."""
    return _by_budget(_chosen(part))


def which_rates(part: str) -> str:
    """Which rate that is, and which were tried beside it."""
    rates: dict[tuple[str, str], dict[str, dict[int, str]]] = defaultdict(dict)
    tried = _tried(part)
    for name, record in _chosen(part):
        task, size, budget = record["task"], record["size"], record["budget"]
        among = sorted(tried[task, size, budget, name])
        others = ", ".join(f"{rate:g}" for rate in among if rate != _rate(record))
        told = f"{_rate(record):g}" + (f", not {others}" if others else "")
        rates[task, size].setdefault(name, {})[budget] = told
    return _grid(rates, lambda task, size: f"{task}, {size}: learning rate")


def ahead_at_own_rates(part: str) -> str:
    """How far each way is ahead of the control that restarts, each at its own rate."""
    return _compared(_chosen(part), "restarts", lambda budget: budget)


def ahead_of_scratch(part: str) -> str:
    """The same, of one fall of the learning rate."""
    return _compared(_chosen(part), "scratch", lambda budget: budget)


Tried = dict[tuple[str, str, int, str], dict[float, dict[int, Record]]]


def _tried(part: str) -> Tried:
    """Task, size, budget, way -> learning rate -> seed -> record."""
    tried: Tried = defaultdict(lambda: defaultdict(dict))
    for name, record in _records(part):
        way, _, _ = name.partition(",")
        place = record["task"], record["size"], record["budget"], way
        tried[place][_rate(record)][record["seed"]] = record
    return tried


def _chosen(part: str) -> list[tuple[str, Record]]:
    """The records of the rate that is best on validation data, over the seeds that all rates have.

    Of the places where the small network alone was tried with several rates; a way that has one
    there is at a disadvantage.
    """
    tried = _tried(part)
    places = {
        (task, size, budget)
        for (task, size, budget, way), rates in tried.items()
        if way in ("scratch", "restarts") and len(rates) > 1
    }
    chosen: list[tuple[str, Record]] = []
    for (task, size, budget, way), rates in tried.items():
        seeds = set.intersection(*(set(by_seed) for by_seed in rates.values()))
        if (task, size, budget) not in places or not seeds:
            continue
        best = max(rates.values(), key=lambda by_seed: _validated(by_seed, seeds))
        chosen += [(way, best[seed]) for seed in sorted(best)]
    return chosen


def _validated(by_seed: Mapping[int, Record], seeds: Iterable[int]) -> float:
    return statistics.mean(_score(by_seed[seed], "validation") for seed in seeds)


def _rate(record: Record) -> float:
    return record["way"].get("lr", BASE_LR)


def saturation(part: str) -> str:
    """What scratch training gains where the budget is doubled; on test data."""
    scores: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, record in _records(part, "baselines"):
        if name == "scratch":
            scores[record["task"], record["size"]][record["budget"]].append(_score(record))
    parts: list[str] = []
    for (task, size), by_size in sorted(scores.items()):
        lines: list[list[str]] = []
        for budget, values in sorted(by_size.items()):
            half = by_size.get(budget // 2)
            gain = f"{statistics.mean(values) - statistics.mean(half):+.2f}" if half else "—"
            lines.append([f"{budget:,}", _mean(values), gain, str(len(values))])
        parts.append(
            _markdown([f"{task}, {size}: updates", UNITS[task], "by doubling", "seeds"], lines)
        )
    return "\n".join(parts)


def alone(part: str) -> str:
    """Each way on each task at the part's budget: validation, test, and seeds."""
    return _each(part, _alone)


def falls(part: str) -> str:
    """What the last cut cost, and how it was made up for, on validation data."""
    return _each(part, _falls)


Rows = dict[str, list[Record]]


def _each(part: str, table: Callable[[str, Rows], str]) -> str:
    """A table for each task and size."""
    cells: dict[tuple[str, str], Rows] = defaultdict(lambda: defaultdict(list))
    for name, record in _records(part):
        cells[record["task"], record["size"]][name].append(record)
    return "\n".join(
        table(f"{task}, {size}: {UNITS[task]}", rows)
        for (task, size), rows in sorted(cells.items())
    )


def _alone(title: str, rows: Rows) -> str:
    lines: list[list[str]] = []
    for name, records in rows.items():
        figures = [_mean([_score(r, split) for r in records]) for split in ("validation", "test")]
        lines.append([name, *figures, str(len(records))])
    return _markdown([title, "validation", "test", "seeds"], lines)


def _falls(title: str, rows: Rows) -> str:
    lines: list[list[str]] = []
    for name, records in rows.items():
        last, before = ([r["steps"][at] for r in records] for at in (-1, -2))
        looked = [_mean([s["during"][d] for s in last if d in s["during"]]) for d in DURING]
        ends = [_mean([s["after"] for s in before]), _mean([s["before"] for s in last])]
        lines.append([name, *ends, *looked, _mean([s["after"] for s in last])])
    heads = ["before the cut", "behind it", *(f"{int(d):,} updates" for d in DURING), "end"]
    return _markdown([title, *heads], lines)


def worth(part: str) -> str:
    """Each way on both tasks, with the options of `eslkit.schedule` that it is; on test data."""
    cells: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    ways: dict[str, Record] = {}
    for name, record in _records(part):
        ways.setdefault(name, record["way"])
        cells[name][record["task"]].append(_score(record))
    tasks = sorted({task for row in cells.values() for task in row})
    lines = [
        [name, _options(ways[name]), *(_counted(row[task], of=1) for task in tasks)]
        for name, row in cells.items()
    ]
    return _markdown(["", "options", *(f"{task}: {UNITS[task]}" for task in tasks)], lines)


_OUTSIDE = {
    "carry": "`inherit_optimizer`",
    "average": "the trainer's",
    "early": "the trainer's",
    "start": "a trained model",
    "lr": "the trainer's",
}


def _options(way: Record) -> str:
    """What a way is, beside a budget and rates by width, as options of `schedule`."""
    walk = dict(way.get("walk", {}))
    found = [f"{key}={value!r}" for key, value in walk.items() if not isinstance(value, list)]
    found += ["granularity=[...]"] if isinstance(walk.get("granularity"), list) else []
    place, _, part = way.get("spread", "iterations").partition(" ")
    if place == "iterations":
        found.append("iterations=n")
    elif part:
        found.append(f"shares={{{place!r}: '{float(part):.0%}'}}")
    if not way.get("by_width"):
        found.append("scale_rates=False")
    told = [f"`{', '.join(found)}`".replace("'", '"')] if found else []
    changed = {key for key in _OUTSIDE if key in way and not (key == "lr" and way["lr"] == BASE_LR)}
    return (
        ", ".join([*told, *(_OUTSIDE[key] for key in _OUTSIDE if key in changed)]) or "`budget=n`"
    )


TABLES: dict[str, tuple[str, Callable[[str], str]]] = {
    "baselines": ("baselines", by_budget),
    "against restarts": ("baselines", against),
    "against ESL at twice the budget": ("baselines", against_half),
    "against ESL at four times the budget": ("baselines", against_quarter),
    "saturation": ("saturation", saturation),
    "rate": ("rate", alone),
    "tuning": ("tuning", alone),
    "knobs": ("knobs", alone),
    "worth": ("knobs", worth),
    "cuts": ("cuts", alone),
    "falls": ("cuts", falls),
    "combined": ("combined", by_budget),
    "ceiling": ("ceiling", by_budget),
    "linear": ("linear", beside),
    "lengths": ("lengths", by_budget),
    "own rates": ("lengths", own_rates),
    "which rates": ("lengths", which_rates),
    "ahead at own rates": ("lengths", ahead_at_own_rates),
    "ahead of scratch at own rates": ("lengths", ahead_of_scratch),
    "plain": ("plain", by_budget),
}
"""Name of a table -> the part that it is of, and what makes it."""
