"""Ways to spend a budget on a small network.

A budget is what so many updates of the small network cost. A backward pass is taken for two
forward passes; a teacher's forward pass counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

import eslkit
from benchmarks.pays.progress import Progress
from benchmarks.pays.tasks import Task
from benchmarks.pays.training import train
from eslkit.budget import spread
from eslkit.surgery.depth import clone
from eslkit.surgery.linear import product_macs
from eslkit.surgery.optimizers import inherit_optimizer
from eslkit.surgery.policies import (
    GroupChange,
    Maps,
    Policy,
    keep_largest,
    l1,
    least_squares,
    taylor,
)
from eslkit.trainer import StepContext, cosine

__all__ = ["Outcome", "Way", "carry_out", "counts_of"]

CALIBRATION = 8
"""Batches that policies look at; no training sees them as a whole."""


@dataclass(frozen=True)
class Way:
    """How a budget is spent."""

    restarts: int = 1
    """Without a walk: so many trainings of the small network, one after the other, of one length;
    each starts the learning rate anew."""
    walk: Mapping[str, Any] | None = None
    """Options of `eslkit.schedule`; None stays with the small network."""
    spread: str = "iterations"
    """Over the steps: `iterations` as many each, as the paper has it; `flops` as much computation
    each; `first 0.5`, `last 0.5`: so much of all computation for that step, the rest in equal
    parts."""
    start: float = 0.0
    """Part of the budget that the small network is trained with before it is expanded."""
    cycles: int = 1
    """With a walk: so often does the learning rate run through its fall in the last step."""
    rounds: int = 1
    """So often is the small network expanded and shrunk, each time with as much computation."""
    distil: bool = False
    """The small network anew, taught by the expanded one, each with half of the budget."""
    carry: bool = False
    """Whether Adam's moments are carried over with the weights."""
    average: float = 0.0
    """Decay of an exponential average of the weights, with which each training ends."""
    early: float = 0.0
    """Steps before the last end where a tenth of their updates gains less than this on validation
    data; what is left goes to the last step."""
    lr: float = 8e-3
    """Learning rate at the start, of the small network; `rate` and `tuning` try others."""
    warmup: int = 200
    """Updates over which the learning rate rises in each training."""
    clip: float = 0.1
    """Largest norm of the gradient; 0 for none. The part `plain` is without the two."""
    by_width: bool = False
    """Whether a network n times as wide starts with an n-th of the learning rate, and layers n
    times as large inside with the square root of an n-th: the library's `scale_rates`."""

    def told(self) -> dict[str, Any]:
        """For a file: the learning rate, and what else differs from the defaults."""
        plain = Way()
        changed = {
            name: dict(value) if isinstance(value, Mapping) else value
            for name in self.__dataclass_fields__
            if (value := getattr(self, name)) != getattr(plain, name)
        }
        return {**changed, "lr": self.lr}


@dataclass
class Outcome:
    """What came of it."""

    network: nn.Module
    cost: float
    """What was spent, in updates of the small network."""
    iterations: int
    """Updates of all trainings."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """Of each training: name, updates, the validation figure before, during and after."""


def carry_out(
    way: Way, task: Task, size: str, *, budget: int, seed: int, progress: Progress
) -> Outcome:
    """Spend a budget.

    Args:
        way: how.
        task: on what.
        size: which small network.
        budget: what it may cost, in updates of the small network.
        seed: of weights and batches.
        progress: where its trainings go on if it was interrupted.
    """
    kind = _distilled if way.distil else _scratch if way.walk is None else _walked
    return kind(way, task, size, budget=budget, seed=seed, progress=progress)


def _alone(
    way: Way, task: Task, network: nn.Module, name: str, count: int, progress: Progress, **how: Any
) -> dict[str, Any]:
    """One training that belongs to no schedule, with a learning rate of its own; what it logged."""
    log = _Log(task, network, name, count)
    train(
        network,
        task,
        iterations=count,
        rate=lambda done: cosine(done / count),
        watch=log,
        kept=progress.training(),
        average=way.average,
        lr=way.lr,
        warmup=way.warmup,
        clip=way.clip,
        **how,
    )
    return log.told


def _scratch(
    way: Way, task: Task, size: str, *, budget: int, seed: int, progress: Progress
) -> Outcome:
    network = task.small(size, seed=seed)
    each = [budget // way.restarts + (i < budget % way.restarts) for i in range(way.restarts)]
    steps = [
        _alone(way, task, network, f"part {part + 1}", count, progress, seed=_batches(seed, part))
        for part, count in enumerate(each)
    ]
    return Outcome(network, budget, budget, steps)


def _distilled(
    way: Way, task: Task, size: str, *, budget: int, seed: int, progress: Progress
) -> Outcome:
    small = task.small(size, seed=seed)
    plan = eslkit.schedule(small, granularity="direct", example_inputs=task.example).plan
    large, base = plan.steps[0].macs, plan.base_macs
    large_count = int(budget / 2 * base / large)
    small_count = int(budget / 2 / (1 + large / base / 3))
    kept: list[nn.Module] = []

    def expanded(network: nn.Module, step: StepContext) -> None:
        if step.index > 1:
            return  # only the expanded network is wanted
        # A learning rate for a network twice as wide, as `by_width` has it.
        gently = replace(way, lr=way.lr * (base / large) ** 0.5 if way.by_width else way.lr)
        told = _alone(
            gently, task, network, "teacher", large_count, progress, seed=_batches(seed, 0)
        )
        steps.append(told)
        kept.append(clone(network).eval().requires_grad_(False))

    steps: list[dict[str, Any]] = []
    eslkit.schedule(small, granularity="direct", example_inputs=task.example, seed=seed).run(
        expanded
    )
    taught = {"teacher": kept[0], "teach": 1.0, "seed": _batches(seed, 1)}
    steps.append(_alone(way, task, small, "student", small_count, progress, **taught))
    cost = large_count * large / base + small_count * (1 + large / base / 3)
    return Outcome(small, cost, large_count + small_count, steps)


def _walked(
    way: Way, task: Task, size: str, *, budget: int, seed: int, progress: Progress
) -> Outcome:
    options = dict(way.walk or {})
    rates, teach = options.pop("rates", "restart"), options.pop("teach", 0.0)
    options["init"] = _policy(options.get("init", "first"), task)
    small, first = task.small(size, seed=seed), round(way.start * budget)
    steps: list[dict[str, Any]] = []
    if first:
        steps.append(_alone(way, task, small, "start", first, progress, seed=_batches(seed, 99)))
    outcome = Outcome(small, first, first, steps)
    for lap in range(way.rounds):
        made = eslkit.schedule(
            outcome.network, example_inputs=task.example, seed=seed + 1000 * lap, **options
        )
        linear = made.plan.linear
        asked = spread(made.plan, teach=teach, linear=linear)
        inside = _products(made, task.batch_size)
        costs = [
            (asked.update_macs(step) + products) / asked.base_macs
            for step, products in zip(asked.steps, inside, strict=True)
        ]
        counts = counts_of(way.spread, costs, (budget - first) / way.rounds)
        plan = spread(
            made.plan,
            iterations=counts,
            rates=rates,
            scale_rates=way.by_width,
            teach=teach,
            linear=linear,
        )
        trainer = _Trainer(way, task, seed, options["init"], steps, costs, progress, lap)
        outcome.network = replace(made, plan=plan).run(trainer).model
        outcome.cost += sum(n * c for n, c in zip(trainer.counts, costs, strict=True))
        outcome.iterations += sum(trainer.counts)
    return outcome


def _products(made: eslkit.Schedule, batch: int) -> list[float]:
    """What linear expansion adds to an update of each step, in MACs for each sample of a batch."""
    times = made.plan.linear
    if not times:
        return [0.0] * len(made.steps)
    found: list[float] = []

    def count(network: nn.Module, _step: StepContext) -> None:
        found.append(product_macs(network, times) / batch)

    replace(made, plan=made.plan.model_copy(update={"linear": 0})).run(count)
    return found


def counts_of(how: str, costs: Sequence[float], budget: float) -> list[int]:
    """Updates of each step.

    Args:
        how: as `Way.spread`.
        costs: of an update of each step, in updates of the small network.
        budget: of all.
    """
    if how == "iterations":
        return [max(1, int(budget / sum(costs)))] * len(costs)
    place, _, part = how.partition(" ")
    shares = [1 / len(costs)] * len(costs)
    if place in ("first", "last"):
        shares = [(1 - float(part)) / (len(costs) - 1)] * len(costs)
        shares[0 if place == "first" else -1] = float(part)
    return [max(1, int(budget * s / cost)) for s, cost in zip(shares, costs, strict=True)]


def _policy(name: str, task: Task) -> str | Policy:
    """Policies that look at data get batches of their own; `paths` is a trial."""
    if name == "paths":
        return paths
    if name not in ("taylor", "least_squares", "taylor, least squares"):
        return name
    batches = [task.batch(index, seed=777) for index in range(CALIBRATION)]
    by_loss = taylor(batches, lambda network, pair: task.loss(network(pair[0]), pair[1]))
    if name == "taylor":
        return by_loss
    selection = l1 if name == "least_squares" else by_loss
    return least_squares(batches, inputs=lambda pair: pair[0], selection=selection)


def paths(change: GroupChange) -> Maps:
    """The channels with the largest product of what makes them and what reads them.

    Where activations are positively homogeneous and there is no norm, a channel can be scaled up
    before and down behind without any change; the product does not see that, a norm alone does.
    """
    made = sum_of_squares(change, "producer")
    read = sum_of_squares(change, "consumer")
    return keep_largest(made * read, change)


def sum_of_squares(change: GroupChange, role: str) -> torch.Tensor:
    total = torch.zeros(change.old, dtype=torch.float64)
    for span in change.spans(role):
        total += change.channels(span).double().square().sum(dim=1)
    return total


@dataclass
class _Trainer:
    """Trains the steps of a walk."""

    way: Way
    task: Task
    seed: int
    init: str | Policy
    steps: list[dict[str, Any]]
    costs: list[float]
    """Of an update of each step."""
    progress: Progress
    lap: int = 0
    counts: list[int] = field(default_factory=list[int])
    """Updates that were made in each step."""
    left: float = 0.0
    """What steps that ended early have left."""
    before: tuple[nn.Module, torch.optim.Optimizer] | None = None

    def fit(self, model: nn.Module, step: StepContext) -> Mapping[str, float]:
        count, last = step.iterations or 1, step.index == step.num_steps
        if last:
            count += int(self.left / self.costs[-1])
        log = _Log(self.task, model, step.name, count)
        stop = (
            None if last or not self.way.early else _Flat(self.task, model, count, self.way.early)
        )
        optimizer = train(
            model,
            self.task,
            iterations=count,
            seed=_batches(self.seed, 100 * self.lap + step.index),
            rate=self._rate(step, count),
            teacher=step.teacher,
            teach=step.teach,
            begin=self._begin(model, step),
            watch=log,
            # One that may end early has to be seen from its beginning.
            kept=self.progress.training() if stop is None else None,
            stop=stop,
            average=self.way.average,
            lr=self.way.lr,
            warmup=self.way.warmup,
            clip=self.way.clip,
        )
        made = count if stop is None else stop.made
        self.left += (count - made) * self.costs[step.index - 1]
        self.counts.append(made)
        if self.way.carry:
            self.before = (model, optimizer)
        self.steps.append(log.told)
        return {"validation": log.told["after"]}

    def _rate(self, step: StepContext, count: int) -> Callable[[int], float]:
        if self.way.cycles == 1 or step.index != step.num_steps:
            return partial(step.rate, iterations=count)
        each = math.ceil(count / self.way.cycles)
        return lambda done: step.rate(done % each, iterations=each)

    def _begin(
        self, model: nn.Module, step: StepContext
    ) -> Callable[[torch.optim.Optimizer], None] | None:
        if self.before is None or not self.way.carry:
            return None
        old_model, old = self.before

        def inherit(optimizer: torch.optim.Optimizer) -> None:
            inherit_optimizer(
                optimizer,
                old,
                model=model,
                source_model=old_model,
                init=self.init,
                example_inputs=self.task.example,
                verify=False,
            )

        return inherit


class _Flat:
    """Whether a training no longer gains: looked at ten times."""

    def __init__(self, task: Task, network: nn.Module, count: int, gain: float) -> None:
        self.task, self.network, self.gain = task, network, gain
        self.every, self.best, self.made = max(50, count // 10), float("-inf"), count

    def __call__(self, done: int) -> bool:
        if done == 0 or done % self.every:
            return False
        figure = self.task.validate(self.network)[self.task.measure]
        if figure < self.best + self.gain:
            self.made = done
            return True
        self.best = figure
        return False


class _Log:
    """The validation figure before a training, some updates after its beginning, and at its end."""

    def __init__(self, task: Task, network: nn.Module, name: str, count: int) -> None:
        self.task, self.network, self.count = task, network, count
        early = {k for k in (30, 100, 300, 1000) if k < count // 2} if count >= 400 else set()
        self.at = {0, count, *early}
        self.told: dict[str, Any] = {"name": name, "iterations": count, "during": {}}

    def __call__(self, done: int) -> None:
        if done not in self.at:
            return
        figure = round(self.task.validate(self.network)[self.task.measure], 4)
        key = {0: "before", self.count: "after"}.get(done)
        if key:
            self.told[key] = figure
        else:
            self.told["during"][done] = figure


def _batches(seed: int, part: int) -> int:
    return 1000 * seed + part
