"""Recipes given to Ray: several GPUs, or several machines with one disk (the extra `ray`).

Each training is one task. Ray starts it where there is room; a task whose worker or machine dies
is given out again, and goes on from the checkpoint in its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from eslkit.errors import EslError, InputError
from eslkit_tsdn.recipes.estimate import critical_paths
from eslkit_tsdn.recipes.values import Recipe
from eslkit_tsdn.tables.pool import needs_any, unfinished
from eslkit_tsdn.tables.runs import RunsFolder
from eslkit_tsdn.tables.settings import Reproduction, planner_of

__all__ = ["carry_out_by_ray", "carry_out_one"]

RETRIES = 4
"""How often a training is given out again when its worker dies."""


def carry_out_by_ray(
    recipes: Sequence[Recipe],
    *,
    asked: Reproduction,
    out: Path,
    processes: int,
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """Carry all recipes out as Ray's tasks.

    A Ray that runs already is joined (`ray start`, or RAY_ADDRESS); otherwise one is started on
    this machine, with `processes` workers.

    Args:
        recipes: in an order in which none stands before what it needs.
        asked: enough for a worker to open the same pictures.
        out: the runs' folder, which all machines see under the same name.
        processes: workers of a Ray that is started here.
        tell: is told when trainings begin and end.

    Raises:
        InputError: Ray is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            "Ray is not installed: pip install 'eslkit[ray]', or leave --ray out."
        ) from error
    own = not ray.is_initialized()
    if own:
        _begin(ray, processes)
    try:
        _give_out(ray, recipes, asked=asked, out=out.resolve(), tell=tell)
    finally:
        if own:
            ray.shutdown()


def _begin(ray: Any, processes: int) -> None:
    """Join the Ray that the environment names, or start one."""
    import os

    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init(num_cpus=processes, include_dashboard=False, log_to_driver=False)


def _give_out(
    ray: Any,
    recipes: Sequence[Recipe],
    *,
    asked: Reproduction,
    out: Path,
    tell: Callable[[dict[str, Any]], None],
) -> None:
    gpus = 1 if torch.cuda.is_available() else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(carry_out_one)
    runs, planner = RunsFolder(out), planner_of(out)
    paths = critical_paths(recipes, planner)
    under_way: dict[Any, Recipe] = {}
    lost: set[str] = set()
    text = asked.model_dump_json()
    while True:
        busy = {recipe.id for recipe in under_way.values()}
        left = [r for r in unfinished(recipes, runs) if not needs_any(r, lost)]
        ready = [r for r in left if r.id not in busy and all(map(runs.is_finished, r.before))]
        for recipe in sorted(ready, key=lambda each: -paths[each.id]):
            under_way[task.remote(str(out), text, recipe.id)] = recipe
            tell({"kind": "begin", "id": recipe.id})
        if not under_way:
            return
        [done, *_], _ = ray.wait(list(under_way), num_returns=1)
        recipe = under_way.pop(done)
        try:
            tell({"kind": "end", "id": recipe.id, "seconds": ray.get(done)})
        except (EslError, ray.exceptions.RayError) as error:
            lost.add(recipe.id)
            reason = getattr(error, "cause", None) or error
            tell({"kind": "failed", "id": recipe.id, "reason": " ".join(str(reason).split())})


_workshops: dict[tuple[str, str], Any] = {}
"""The workshop of this worker process: pictures are opened once."""


def carry_out_one(out: str, asked: str, identity: str) -> float:
    """Carry one recipe out in this process.

    Args:
        out: the runs' folder.
        asked: a `Reproduction` as JSON.
        identity: the recipe's.

    Returns:
        Seconds of its training.
    """
    from eslkit_tsdn.tables.pictures import open_pictures
    from eslkit_tsdn.tables.settings import recipes_of, tables_of
    from eslkit_tsdn.tables.workshop import Workshop

    torch.set_num_threads(1)
    if (out, asked) not in _workshops:
        wanted, folder = Reproduction.model_validate_json(asked), Path(out)
        pictures, planner = open_pictures(wanted.scale.preset, wanted.data), planner_of(folder)
        tables = tables_of(wanted, pictures, planner=planner)
        recipes = {r.id: r for r in recipes_of(tables, wanted, planner=planner)}
        workshop = Workshop(RunsFolder(folder), pictures, planner=planner)
        _workshops[out, asked] = workshop, recipes
    workshop, recipes = _workshops[out, asked]
    return workshop.carry_out(recipes[identity]).seconds
