"""The study's curves: quality against what was spent, with the spread over seeds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.pays.study import known_data, read, runs_of

__all__ = ["draw"]

MEASURES = {"denoise": ("psnr_x300", "PSNR at x300, dB"), "segment": ("miou", "mean IoU, %")}
COLOURS = {
    "scratch": "#8a8a8a",
    "restarts": "#1b1b1b",
    "ESL": "#c1272d",
    "ESL one-shot": "#e8915b",
    "prune and finetune": "#1f6fb2",
    "distillation": "#7b4ea3",
    "thrifty": "#2e9a5e",
    "linear": "#d4a017",
}

Points = dict[float, list[tuple[float, float, float]]]
"""Budget -> (FLOPs in updates of the small network, updates, figure) of each seed."""


def draw(folder: Path, part: str = "baselines") -> list[Path]:
    """One SVG for each task and size: against computation on the left, updates on the right."""
    known = read()
    found: dict[tuple[str, str], dict[str, Points]] = defaultdict(dict)
    for run in runs_of(part, known_data()):
        record = known.get(run.id)
        if record is None:
            continue
        figure = record["test"][MEASURES[run.task][0]]
        points = found[run.task, run.size].setdefault(run.name, defaultdict(list))
        points[run.budget].append((record["cost"], record["iterations"], figure))
    return [_drawn(folder, *key, lines) for key, lines in sorted(found.items())]


def _drawn(folder: Path, task: str, size: str, lines: Mapping[str, Points]) -> Path:
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pays", "font.size": 9})
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, points in lines.items():
        colour = COLOURS[name]
        _line(left, points, 0, name, colour)
        _line(right, points, 1, name, colour)
    left.set_xlabel("computation, in updates of the small network")
    right.set_xlabel("updates of all networks")
    left.set_ylabel(MEASURES[task][1])
    for axes in (left, right):
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle(f"{task}, small network of {size} channels", fontsize=10)
    path = folder / f"pays-{task}-{size}.svg"
    figure.savefig(path, metadata={"Date": None})
    return path


def _line(axes: Axes, points: Points, which: int, name: str, colour: str) -> None:
    rows: list[tuple[float, float, float]] = []
    for seeds in points.values():
        values = [seed[2] for seed in seeds]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        rows.append((statistics.mean(s[which] for s in seeds), statistics.mean(values), spread))
    rows.sort()
    xs: Sequence[Any] = [row[0] for row in rows]
    axes.plot(xs, [row[1] for row in rows], marker="o", markersize=3, color=colour, label=name)
    low, high = ([m - s for _, m, s in rows], [m + s for _, m, s in rows])
    axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)
