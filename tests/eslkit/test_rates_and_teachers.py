"""How the steps are trained: the learning rate over them, and what the step before teaches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import eslkit
from eslkit.budget import spread
from eslkit.errors import InputError
from eslkit.plan import Plan
from eslkit.trainer import StepContext, cosine
from tests.eslkit.paper_plan import paper_plan
from tests.eslkit.small_walk import Loop, final_bytes, run, small_plan


def plan_with(counts: list[int], **how: Any) -> Plan:
    plan = small_plan()
    steps = tuple(
        step.model_copy(update={"iterations": count})
        for step, count in zip(plan.steps, counts, strict=True)
    )
    return spread(plan.model_copy(update={"steps": steps}), **how)


def rates_of(plan: Plan, shape: Any = cosine) -> list[list[float]]:
    """The factor of every update, step by step."""
    contexts = [StepContext(step, len(plan.steps), None, 0, plan) for step in plan.steps]
    return [[c.rate(k, shape=shape) for k in range(c.iterations or 0)] for c in contexts]


counted = st.lists(st.integers(1, 30), min_size=3, max_size=3)


@given(counted)
def test_restarting_steps_all_run_through_the_whole_shape(counts: list[int]) -> None:
    for count, factors in zip(counts, rates_of(plan_with(counts)), strict=True):
        alone = [0.5 + 0.5 * math.cos(math.pi * k / count) for k in range(count)]
        assert factors == pytest.approx(alone)


@given(counted, st.floats(0.01, 1))
def test_a_number_is_the_height_after_the_first_step(counts: list[int], height: float) -> None:
    first, *others = rates_of(plan_with(counts, rates=height))
    assert first[0] == 1
    assert [factors[0] for factors in others] == pytest.approx([height, height])


@given(counted)
def test_once_is_one_fall_over_all_steps(counts: list[int]) -> None:
    together = list(chain(*rates_of(plan_with(counts, rates="once"))))
    total = sum(counts)
    assert together == pytest.approx([cosine(k / total) for k in range(total)])
    assert all(a > b for a, b in pairwise(together))


@given(counted, st.sampled_from(["restart", "once", 0.3]), st.integers(1, 40))
def test_a_warmup_rises_to_the_same_rates_in_every_step(
    counts: list[int], rates: Any, warmup: int
) -> None:
    plan = plan_with(counts, rates=rates)
    for index, (step, plain) in enumerate(zip(plan.steps, rates_of(plan), strict=True)):
        context = StepContext(step, 3, None, 0, plan)
        risen = [context.rate(k, warmup=warmup) for k in range(counts[index])]
        assert risen[warmup - 1 :] == plain[warmup - 1 :]
        expected = [rate * (k + 1) / warmup for k, rate in enumerate(plain)][: warmup - 1]
        assert risen[: warmup - 1] == pytest.approx(expected)


def test_the_shape_is_the_trainers() -> None:
    plan = plan_with([4, 4, 4], rates="once")
    straight = list(chain(*rates_of(plan, shape=lambda done: done)))
    assert straight == pytest.approx([k / 12 for k in range(12)])
    context = StepContext(plan.steps[1], 3, None, 0, spread(small_plan(iterations=None)))
    assert context.rate(5, iterations=10) == pytest.approx(0.5)


def test_unknown_lengths_are_refused() -> None:
    plan = small_plan(iterations=None)
    with pytest.raises(InputError, match="how long EL, CSL1, CSL2 trains is left to the trainer"):
        spread(plan, rates="once")
    context = StepContext(plan.steps[1], 3, None, 0, plan)
    with pytest.raises(InputError, match="learning rate of step CSL1 cannot be told"):
        context.rate(0)


@pytest.mark.parametrize(
    "how, match",
    [
        ({"rates": "often"}, "rates='often': expected 'restart', 'once', or a number"),
        ({"rates": 0}, "rates=0"),
        ({"rates": 1.5}, "rates=1.5"),
        ({"rates": True}, "rates=True"),
        ({"rates": math.nan}, "rates=nan"),
        ({"teach": -1}, "teach=-1: expected a weight of 0 or more"),
        ({"teach": math.inf}, "teach=inf"),
        ({"teach": "much"}, "teach='much'"),
    ],
)
def test_what_cannot_be_is_refused(how: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        spread(small_plan(), **how)


def test_plans_keep_both_in_their_files() -> None:
    plan = spread(small_plan(), rates=0.25, teach=0.5)
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_yaml(plan.to_yaml()) == plan
    assert Plan.from_json(spread(plan, rates="once").to_json()).rates == "once"


class Taught(Loop):
    """Follows its teacher in one more update, and keeps what it was given."""

    def __init__(self, *, stop_at: str = "") -> None:
        super().__init__()
        self.stop_at = stop_at
        self.teachers: dict[str, dict[str, torch.Tensor]] = {}
        self.ends: dict[str, dict[str, torch.Tensor]] = {}

    def fit(self, model: nn.Module, step: StepContext) -> Mapping[str, float]:
        if step.name == self.stop_at:
            raise KeyboardInterrupt
        metrics = super().fit(model, step)
        if step.teacher is not None:
            assert not step.teacher.training
            assert not any(p.requires_grad for p in step.teacher.parameters())
            self.teachers[step.name] = _copied(step.teacher)
            x = torch.linspace(-1, 1, 12).reshape(4, 3)
            loss = step.teach * (model(x) - step.teacher(x)).abs().mean()
            loss.backward()
            torch.optim.SGD(model.parameters(), lr=0.1).step()
        self.ends[step.name] = _copied(model)
        return metrics


def _copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_each_step_is_taught_by_the_trained_network_before() -> None:
    trainer = Taught()
    run(None, trainer, plan=spread(small_plan(), teach=0.5))
    assert list(trainer.teachers) == ["CSL1", "CSL2"]
    assert _equal(trainer.teachers["CSL1"], trainer.ends["EL"])
    assert _equal(trainer.teachers["CSL2"], trainer.ends["CSL1"])


def test_nobody_teaches_unless_asked_to() -> None:
    trainer = Taught()
    run(None, trainer)
    assert trainer.teachers == {}


@pytest.mark.parametrize("stopped", ["CSL1", "CSL2"])
def test_a_run_that_goes_on_has_the_same_teacher(tmp_path: Path, stopped: str) -> None:
    plan = spread(small_plan(), teach=0.5)
    whole = Taught()
    run(tmp_path / "whole", whole, plan=plan)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        run(tmp_path / "parts", Taught(stop_at=stopped), plan=plan)
    again = Taught()
    run(tmp_path / "parts", again, plan=plan)
    assert _equal(again.teachers[stopped], whole.teachers[stopped])
    assert final_bytes(tmp_path / "parts") == final_bytes(tmp_path / "whole")


def test_a_trainer_cannot_harm_what_comes_after_through_its_teacher() -> None:
    """The teacher is a copy: what a trainer does to it reaches nobody."""

    class Rude(Taught):
        def fit(self, model: nn.Module, step: StepContext) -> Mapping[str, float]:
            metrics = super().fit(model, step)
            if step.teacher is not None:
                for parameter in step.teacher.parameters():
                    parameter.fill_(7.0)
            return metrics

    plan = spread(small_plan(), teach=0.5)
    polite, _ = run(None, Taught(), plan=plan)
    rude, _ = run(None, Rude(), plan=plan)
    assert _equal(_copied(polite), _copied(rude))


def test_the_large_model_teaches_the_first_step_down_from_it() -> None:
    large, small = (nn.Sequential(nn.Linear(3, n), nn.ReLU(), nn.Linear(n, 2)) for n in (8, 4))
    taught: list[dict[str, torch.Tensor]] = []

    def train(model: nn.Module, step: StepContext) -> None:
        assert step.teacher is not None
        taught.append(_copied(step.teacher))

    made = eslkit.schedule_from(large, target=small, teach=1.0, example_inputs=torch.zeros(1, 3))
    made.run(train)
    assert _equal(taught[0], _copied(large))


@given(st.floats(60, 1e6))
def test_a_budget_counts_what_the_teacher_is_asked(budget: float) -> None:
    plan = spread(paper_plan(), budget=budget, teach=0.5)
    before = [0, *(step.macs for step in plan.steps[:-1])]
    updates = [
        (step.macs + asked / 3) * (step.iterations or 0)
        for step, asked in zip(plan.steps, before, strict=True)
    ]
    assert sum(updates) <= budget * plan.base_macs or 1 in [s.iterations for s in plan.steps]
    small = plan.base_macs * (plan.steps[-1].iterations or 0)
    assert sum(map(plan.cost, plan.steps)) == pytest.approx(sum(updates) / small)
    alone = spread(paper_plan(), budget=budget)
    assert all(
        (a.iterations or 0) <= (b.iterations or 0)
        for a, b in zip(plan.steps, alone.steps, strict=True)
    )
