"""What recipes cost before they are carried out, and in which order they are best begun."""

from __future__ import annotations

import math
from collections.abc import Iterable

from eslkit_tsdn.recipes.networks import TABLE_SIZE, network_costs
from eslkit_tsdn.recipes.values import Recipe, in_order
from eslkit_tsdn.recipes.walks import Planner, example_input

__all__ = ["components", "critical_paths", "shard", "training_flops"]

BACKWARD = 2
"""A backward pass is taken for two forward passes."""


def macs_per_pixel(recipe: Recipe, planner: Planner) -> float:
    """Multiply-accumulates of one forward pass of the recipe's network, for a packed pixel."""
    if recipe.network is None:
        return 0.0
    if recipe.plan is None:
        return network_costs(recipe.network)[1] / TABLE_SIZE**2
    step = planner.plan(recipe.plan, seed=recipe.seed).steps[recipe.index - 1]
    return step.macs / math.prod(example_input(recipe.network).shape[2:])


def training_flops(recipe: Recipe, planner: Planner) -> float:
    """FLOPs of the recipe's own training: 2 a multiply-accumulate, a backward pass twice a forward.

    A teacher's forward pass counts; pruning counts as training what comes out, which is too little
    where there are steps in between. A run's record has the exact figure.
    """
    pixels = recipe.budget.iterations * recipe.data.batch_size * recipe.data.crop**2
    own = macs_per_pixel(recipe, planner)
    asked = 0.0
    if recipe.method in ("distil", "collaborate", "chain"):
        asked = sum(macs_per_pixel(earlier, planner) for earlier in recipe.before)
    if recipe.method == "chain":
        own -= asked  # the first stage is part of the network, and is not trained
    return 2.0 * pixels * ((1 + BACKWARD) * own + asked)


def critical_paths(recipes: Iterable[Recipe], planner: Planner) -> dict[str, float]:
    """FLOPs from the beginning of each recipe to the end of all that waits for it.

    Whoever begins with the longest is done first.
    """
    ordered = in_order(recipes)
    behind: dict[str, float] = {recipe.id: 0.0 for recipe in ordered}
    paths: dict[str, float] = {}
    for recipe in reversed(ordered):
        paths[recipe.id] = training_flops(recipe, planner) + behind[recipe.id]
        for earlier in recipe.before:
            behind[earlier.id] = max(behind[earlier.id], paths[recipe.id])
    return paths


def components(recipes: Iterable[Recipe]) -> tuple[tuple[Recipe, ...], ...]:
    """Recipes that need nothing of one another in one tuple each."""
    ordered = in_order(recipes)
    group = {recipe.id: recipe.id for recipe in ordered}
    for recipe in ordered:
        for earlier in recipe.before:
            old, new = group[earlier.id], group[recipe.id]
            group = {key: new if value == old else value for key, value in group.items()}
    names = dict.fromkeys(group[recipe.id] for recipe in ordered)
    return tuple(tuple(r for r in ordered if group[r.id] == name) for name in names)


def shard(
    recipes: Iterable[Recipe], *, index: int, count: int, planner: Planner
) -> tuple[Recipe, ...]:
    """One of several parts that need nothing of each other, of about the same cost.

    Args:
        recipes: all of them.
        index: which part, from 1.
        count: how many parts.
        planner: makes the schedules.
    """
    weighed = [(sum(training_flops(r, planner) for r in p), p) for p in components(recipes)]
    weighed.sort(key=lambda each: (-each[0], each[1][0].id))
    loads, chosen = [0.0] * count, list[Recipe]()
    for weight, part in weighed:
        lightest = loads.index(min(loads))
        loads[lightest] += weight
        if lightest == index - 1:
            chosen.extend(part)
    return in_order(chosen)
