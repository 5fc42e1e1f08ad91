"""Expand-Shrink-Learning as recipes: every step of a schedule needs the step before it.

Schedules that begin alike share their first steps, since a step's identity is what it does and
what it starts from, not the schedule that it was planned in.
"""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from eslkit.errors import InputError, PlanError
from eslkit.files import write_atomically
from eslkit.paper import paper
from eslkit.plan import Plan, Step
from eslkit.schedule import schedule_from
from eslkit_tsdn.budget import Budget
from eslkit_tsdn.recipes.networks import build
from eslkit_tsdn.recipes.values import Data, Network, PlanKey, Recipe

__all__ = ["Planner", "example_input", "make_plan", "walk", "walk_from"]

BETWEEN = "between"
"""The row of a walk that begins with a large network trained before."""


def example_input(network: Network) -> torch.Tensor:
    """What a walk of this network is planned on, (1, 4, side, side)."""
    side = 16 * 2 ** max(0, len(network.widths) - 2)  # all of them halve once a width at most
    return torch.zeros(1, 4, side, side)


class Planner:
    """Makes the plans of walks, each once.

    Args:
        folder: where plans are kept for other processes and later calls; None keeps them in
            memory alone.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = None if folder is None else Path(folder)
        self._plans: dict[PlanKey, Plan] = {}

    def plan(self, key: PlanKey, *, seed: int = 0) -> Plan:
        """The plan of a walk, with the seeds that `eslkit.schedule(..., seed=seed)` gives it."""
        if key not in self._plans:
            self._plans[key] = self._kept(key) or self._made(key)
        plan = self._plans[key]
        steps = tuple(
            step.model_copy(update={"seed": 1000 * seed + step.index}) for step in plan.steps
        )
        return plan.model_copy(update={"steps": steps})

    def _made(self, key: PlanKey) -> Plan:
        plan = make_plan(key)
        if self._folder is not None:
            write_atomically(self._path(key, self._folder), plan.to_json().encode())
        return plan

    def _kept(self, key: PlanKey) -> Plan | None:
        """A plan that was written down by this version; None where there is none to be read."""
        if self._folder is None:
            return None
        try:
            return Plan.from_json(self._path(key, self._folder).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, PlanError):
            return None

    def _path(self, key: PlanKey, folder: Path) -> Path:
        named = f"{metadata.version('eslkit')} {key.model_dump_json()}"
        return folder / f"{hashlib.sha256(named.encode()).hexdigest()[:16]}.json"


def make_plan(key: PlanKey) -> Plan:
    """Plan a walk; every step is tried once, which takes seconds."""
    small, x = build(key.small), example_input(key.small)
    if key.row == BETWEEN:
        if key.source is None:
            raise InputError("A walk between two networks needs the large one: pass source=.")
        return schedule_from(
            build(key.source), target=small, init=key.init, granularity="fine", example_inputs=x
        ).plan
    return paper(small, key.row, init=key.init, example_inputs=x).plan


def walk(
    small: Network,
    row: str,
    *,
    planner: Planner,
    data: Data,
    budget: Budget,
    seed: int,
    init: str = "first",
) -> tuple[Recipe, ...]:
    """The trainings of a row of the paper's Tables III and IV, in order.

    Args:
        small: the network to begin and to end with.
        row: its name in the paper, as for `eslkit.paper`: `CSL1` to `CSL3`, `ESL1` to `ESL5`.
        planner: makes the schedule.
        data: what all of them see.
        budget: of each of them.
        seed: of the whole walk.
        init: policy of the shrinking steps.
    """
    key = PlanKey(small=small, row=row, init=init)
    return _recipes(key, planner, data=data, budget=budget, seed=seed)


def walk_from(
    large: Recipe, small: Network, *, planner: Planner, budget: Budget, init: str = "first"
) -> tuple[Recipe, ...]:
    """The trainings of the way down from a network trained before, which is not among them.

    Args:
        large: the training of the large network, of the form of `small` with other widths.
        small: the network to end with.
        planner: makes the schedule.
        budget: of each training.
        init: policy of the shrinking steps.
    """
    key = PlanKey(small=small, row=BETWEEN, init=init, source=large.network)
    return _recipes(key, planner, data=large.data, budget=budget, seed=large.seed, before=(large,))


def _recipes(
    key: PlanKey,
    planner: Planner,
    *,
    data: Data,
    budget: Budget,
    seed: int,
    before: tuple[Recipe, ...] = (),
) -> tuple[Recipe, ...]:
    plan = planner.plan(key, seed=seed)
    made: list[Recipe] = []
    for step in plan.steps:
        recipe = Recipe(
            method="step",
            network=key.small,
            data=data,
            budget=budget,
            seed=seed,
            before=before,
            options=essence(step, plan),
            plan=key,
            index=step.index,
            label=step.name,
        )
        made.append(recipe)
        before = (recipe,)
    return tuple(made)


def essence(step: Step, plan: Plan) -> dict[str, Any]:
    """What a step does to a network, whatever the plan calls it."""
    keep = {"phase", "width", "depth", "widths", "removed", "taken_out", "flatten", "init", "seed"}
    content = step.model_dump(mode="json", include=keep)
    content["parts"] = max(each.flatten for each in plan.steps) if step.flatten else 0
    return {**content, "at": list(plan.at), "protect": list(plan.protect)}
