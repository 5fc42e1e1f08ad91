"""What a reproduction will cost, before it is begun."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from eslkit_tsdn.budget import Budget
from eslkit_tsdn.fitting import fit
from eslkit_tsdn.recipes.estimate import training_flops
from eslkit_tsdn.recipes.networks import build
from eslkit_tsdn.recipes.values import Network, Recipe
from eslkit_tsdn.recipes.walks import Planner
from eslkit_tsdn.tables.pictures import Pictures, open_pictures
from eslkit_tsdn.tables.progress import title
from eslkit_tsdn.tables.runs import RunsFolder
from eslkit_tsdn.tables.settings import Reproduction, planner_of, recipes_of, tables_of

__all__ = ["Speed", "dry_run", "measured_speed"]

FEW, MORE = 5, 20
"""Updates of the two trainings that are timed; what both need once cancels out."""


@dataclass(frozen=True)
class Speed:
    """How long an update takes on this machine, as a line through two networks."""

    overhead: float
    """Seconds that every update takes, whatever the network."""
    per_flop: float
    """Seconds for a FLOP."""

    def seconds(self, recipe: Recipe, flops: float) -> float:
        """Of a whole training."""
        return self.overhead * recipe.budget.iterations + self.per_flop * flops


def measured_speed(
    asked: Reproduction, pictures: Pictures, *, planner: Planner, threads: int | None = None
) -> Speed:
    """Time some updates of the small network and of the expanded one.

    Args:
        asked: gives the sizes.
        pictures: what is learnt from.
        planner: makes the schedules.
        threads: that a training gets; None for as many as torch has.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return _measured(asked, pictures, planner)
    finally:
        torch.set_num_threads(before)


def _measured(asked: Reproduction, pictures: Pictures, planner: Planner) -> Speed:
    net, budget = asked.scale.network, _budget(asked)
    times: list[float] = []
    flops: list[float] = []
    for network in (net("tsdn"), net("tsdn4")):
        recipe = Recipe(method="scratch", network=network, data=pictures.real, budget=budget)
        flops.append(training_flops(recipe, planner) / budget.iterations)
        times.append(_seconds_an_update(network, asked, pictures))
    per_flop = max(times[1] - times[0], 0.0) / (flops[1] - flops[0])
    return Speed(max(times[0] - per_flop * flops[0], 0.0), per_flop)


def _seconds_an_update(network: Network, asked: Reproduction, pictures: Pictures) -> float:
    source = pictures.source(pictures.real, "speed")
    seconds: list[float] = []
    for iterations in (FEW, FEW, MORE):  # the first reads what is read once, and does not count
        budget = _budget(asked).model_copy(update={"iterations": iterations})
        began = time.perf_counter()
        fit(build(network), source, budget=budget)
        seconds.append(time.perf_counter() - began)
    return max(seconds[2] - seconds[1], 0.0) / (MORE - FEW)


def _budget(asked: Reproduction) -> Budget:
    """Of a training that is only timed; compiling would be what is timed."""
    return asked.scale.preset.budget(num_crops=1).model_copy(update={"compiled": False})


def dry_run(asked: Reproduction, *, out: Path, processes: int, console: Console) -> None:
    """Show the graph of trainings: iterations, FLOPs, estimated hours on this machine.

    Args:
        asked: which tables, how large, on what.
        out: the folder; what is finished in it is marked.
        processes: trainings beside each other.
        console: where the table goes.
    """
    pictures = open_pictures(asked.scale.preset, asked.data)
    planner, runs = planner_of(out), RunsFolder(out)
    recipes = recipes_of(tables_of(asked, pictures, planner=planner), asked, planner=planner)
    threads = 1 if processes > 1 else None  # as the crew's workers
    speed = measured_speed(asked, pictures, planner=planner, threads=threads)
    table = Table("run", "needs", "what", "iterations", "TFLOP", "hours", "")
    left = {recipe.id: 0.0 for recipe in recipes}
    for recipe in recipes:
        flops = training_flops(recipe, planner)
        seconds = speed.seconds(recipe, flops)
        finished = runs.is_finished(recipe)
        left[recipe.id] = 0.0 if finished else seconds
        table.add_row(
            recipe.id[:8],
            " ".join(earlier.id[:8] for earlier in recipe.before),
            title(recipe),
            f"{recipe.budget.iterations:,}" if recipe.network else "",
            f"{flops / 1e12:.3g}",
            f"{seconds / 3600:.2g}",
            "finished" if finished else "",
        )
    console.print(table)
    longest = max(_along(recipes, left.__getitem__).values(), default=0.0)
    hours = max(sum(left.values()) / processes, longest) / 3600
    console.print(
        f"{len(recipes)} trainings, {sum(x > 0 for x in left.values())} of them to be done: about "
        f"{hours:.2g} hours with {processes} process(es). An update was timed here to take "
        f"{1e3 * speed.overhead:.3g} ms and {1e12 * speed.per_flop:.3g} s a TFLOP."
    )


def _along(recipes: tuple[Recipe, ...], seconds: Callable[[str], float]) -> dict[str, float]:
    """Seconds until each recipe is finished, if nothing has to wait for a free process."""
    ends: dict[str, float] = {}
    for recipe in recipes:
        start = max((ends[earlier.id] for earlier in recipe.before), default=0.0)
        ends[recipe.id] = start + seconds(recipe.id)
    return ends
