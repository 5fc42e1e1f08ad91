"""Several processes that carry recipes out together, through nothing but the runs' folder.

Each process takes a recipe whose earlier trainings are finished and that nobody works on. A
process that dies gives its lock back with its life; the recipe in its hands is begun again where
its checkpoint is, and nothing else is lost. So processes on other machines may join in, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from eslkit.errors import EslError, StoreError
from eslkit_tsdn.recipes.values import Recipe
from eslkit_tsdn.tables.runs import Record, RunsFolder

__all__ = ["carry_out_all", "is_ready", "unfinished"]

PAUSE = 0.5
"""Seconds between two looks at the folder where others have all the work."""


def unfinished(recipes: Sequence[Recipe], runs: RunsFolder) -> tuple[Recipe, ...]:
    """Those whose record is not there yet."""
    return tuple(recipe for recipe in recipes if not runs.is_finished(recipe))


def is_ready(recipe: Recipe, runs: RunsFolder) -> bool:
    """Whether all that it needs is finished, and nobody works on it."""
    return all(map(runs.is_finished, recipe.before)) and not runs.lock(recipe).is_held()


def carry_out_all(
    recipes: Sequence[Recipe],
    *,
    runs: RunsFolder,
    carry_out: Callable[[Recipe], Record],
    paths: Mapping[str, float],
    failed: Callable[[Recipe, EslError], None],
) -> None:
    """Work until every recipe is finished, has failed, or waits for one that has failed.

    Args:
        recipes: in an order in which none stands before what it needs.
        runs: where finished ones are.
        carry_out: trains one.
        paths: the longest first; FLOPs by identity.
        failed: is told what could not be carried out; what needs it is left out.
    """
    lost: set[str] = set()
    while left := [r for r in unfinished(recipes, runs) if not needs_any(r, lost)]:
        ready = [recipe for recipe in left if is_ready(recipe, runs)]
        if not ready:
            time.sleep(PAUSE)
            continue
        recipe = max(ready, key=lambda each: paths[each.id])
        try:
            carry_out(recipe)
        except EslError as error:
            if isinstance(error, StoreError) and runs.lock(recipe).is_held():
                continue  # another process was quicker
            lost.add(recipe.id)
            failed(recipe, error)


def needs_any(recipe: Recipe, lost: set[str]) -> bool:
    """Whether it is one of these, or needs one."""
    return recipe.id in lost or any(needs_any(earlier, lost) for earlier in recipe.before)
