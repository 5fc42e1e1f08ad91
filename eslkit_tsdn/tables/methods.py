"""How each method of a recipe is carried out; one function a method, all with one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from eslkit_tsdn.data.source import Source
from eslkit_tsdn.fitting import Listener, fit
from eslkit_tsdn.recipes.values import Method, Recipe
from eslkit_tsdn.rivals.collaborative import collaborative_cost, distil_collaboratively
from eslkit_tsdn.rivals.costs import TrainedPart, TrainingCost, batch_like, macs_of, scratch_cost
from eslkit_tsdn.rivals.distillation import distil, distil_cost
from eslkit_tsdn.rivals.pruning import prune_and_finetune, pruning_cost

__all__ = ["METHODS", "Done", "Job"]


@dataclass(frozen=True)
class Job:
    """A recipe with everything that it needs at hand."""

    recipe: Recipe
    start: nn.Module
    """The network before its training; the job's own, to be trained in place."""
    before: tuple[nn.Module, ...]
    """The trained networks that it needs; not to be changed."""
    source: Source
    folder: Path
    """For checkpoints."""
    listener: Listener | None = None


@dataclass(frozen=True)
class Done:
    """What a method made of it."""

    network: nn.Module
    cost: TrainingCost


def trained_as_it_is(job: Job) -> Done:
    """Scratch training, and that of every step of a walk."""
    budget = job.recipe.budget
    cost = scratch_cost(job.start, job.source, iterations=budget.iterations)
    fit(
        job.start,
        job.source,
        budget=budget,
        seed=job.recipe.seed,
        folder=job.folder,
        listener=job.listener,
    )
    return Done(job.start, cost)


def trained_behind(job: Job) -> Done:
    """The second stage alone, behind a first one that was trained before and stays as it is."""
    (first,), budget = job.before, job.recipe.budget
    network: Any = job.start
    network.stages[0].load_state_dict(first.state_dict(), strict=True)
    x = batch_like(job.source)
    asked = macs_of(first, x)
    cost = TrainedPart(
        "second stage", budget.iterations, trained=macs_of(network, x) - asked, asked=asked
    )
    fit(
        network,
        job.source,
        budget=budget,
        seed=job.recipe.seed,
        folder=job.folder,
        listener=job.listener,
        trainable=lambda name: name.startswith("stages.1."),
    )
    return Done(network, TrainingCost((cost,)))


def distilled(job: Job) -> Done:
    """Plain distillation from a larger network."""
    (teacher,), budget = job.before, job.recipe.budget
    network = distil(job.start, teacher, job.source, budget=budget, **_how(job))
    cost = distil_cost(job.start, teacher, job.source, iterations=budget.iterations)
    return Done(network, cost)


def distilled_collaboratively(job: Job) -> Done:
    """Collaborative Distillation from a larger network."""
    (teacher,), budget = job.before, job.recipe.budget
    network = distil_collaboratively(job.start, teacher, job.source, budget=budget, **_how(job))
    cost = collaborative_cost(job.start, teacher, job.source, iterations=budget.iterations)
    return Done(network, cost)


def pruned(job: Job) -> Done:
    """A larger network cut down to the small one's widths and finetuned."""
    (large,), budget, steps = job.before, job.recipe.budget, job.recipe.options["steps"]
    network = prune_and_finetune(job.start, large, job.source, budget=budget, **_how(job))
    cost = pruning_cost(job.start, large, job.source, iterations=budget.iterations, steps=steps)
    return Done(network, cost)


def matched_blocks(job: Job) -> Done:
    """BM3D, which estimates the noise of each plane from the picture; nothing is trained."""
    from eslkit_tsdn.rivals.bm3d import BM3D  # an extra

    return Done(BM3D(), TrainingCost(()))


def _how(job: Job) -> dict[str, Any]:
    """What all methods of the rivals are told alike."""
    told = {"seed": job.recipe.seed, "folder": job.folder, "listener": job.listener}
    return {**job.recipe.options, **told}


METHODS: Mapping[Method, Callable[[Job], Done]] = {
    "scratch": trained_as_it_is,
    "step": trained_as_it_is,
    "chain": trained_behind,
    "distil": distilled,
    "collaborate": distilled_collaboratively,
    "prune": pruned,
    "bm3d": matched_blocks,
}
"""Method -> what carries it out."""
