from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eslkit.budget import spread
from eslkit.errors import InputError
from eslkit.plan import Plan
from tests.eslkit.paper_plan import paper_plan
from tests.eslkit.small_walk import small_plan


def counts(plan: Plan, **how: Any) -> list[int | None]:
    return [step.iterations for step in spread(plan, **how).steps]


def test_iterations_are_for_all_by_name_or_one_by_one() -> None:
    plan = small_plan(iterations=None)
    assert counts(plan) == [None] * 3
    assert counts(plan, iterations=7) == [7, 7, 7]
    assert counts(plan, iterations=[3, None, 5]) == [3, None, 5]
    assert counts(plan, iterations={"CSL*": 4, "CSL2": 9}) == [None, 4, 9]
    assert plan.steps[0].iterations is None


@given(
    st.floats(20, 1e6), st.dictionaries(st.sampled_from(["EL", "CSL*", "LSL2"]), st.floats(0.1, 9))
)
def test_a_budget_is_spent_and_never_exceeded(budget: float, shares: dict[str, float]) -> None:
    plan = spread(paper_plan(), budget=budget, shares=shares)
    spent = [step.macs * (step.iterations or 0) for step in plan.steps]
    floor = sum(step.macs for step in plan.steps)
    if all((step.iterations or 0) > 1 for step in plan.steps):
        assert budget * plan.base_macs - floor <= sum(spent) <= budget * plan.base_macs


def test_every_step_gets_its_share_of_the_flops() -> None:
    plan = spread(paper_plan(), budget=1e6, shares={"LSL*": 3})
    flops = [step.training_flops or 0 for step in plan.steps]
    assert flops[0] == 3 * plan.steps[0].flops * (plan.steps[0].iterations or 0)
    for step, spent in zip(plan.steps, flops, strict=True):
        assert spent / flops[0] == pytest.approx(3 if step.name.startswith("LSL") else 1, rel=1e-3)
    assert [step.training_flops for step in small_plan(iterations=None).steps] == [None] * 3


@pytest.mark.parametrize(
    "how, match",
    [
        ({"iterations": 5, "budget": 5}, "iterations= and budget= exclude each other"),
        ({"shares": {"EL": 1}}, "shares= says how a budget is divided; pass budget="),
        ({"iterations": [1, 2]}, r"has 2 numbers for 3 steps \(EL, CSL1, CSL2\)"),
        ({"iterations": {"LSL1": 2}}, "iterations=: no step is called 'LSL1'; the steps are EL"),
        ({"iterations": 0}, "iterations=0 of step EL: expected a whole number from 1"),
        ({"iterations": 1.5}, "iterations=1.5 of step EL: expected a whole number"),
        ({"iterations": "many"}, "iterations='many' of step EL"),
        ({"iterations": True}, "iterations=True of step EL"),
        ({"iterations": {"EL": 2.5}}, "iterations=2.5 of step EL"),
        ({"budget": 0}, "budget=0: expected a positive number"),
        ({"budget": float("nan")}, "budget=nan: expected a positive number"),
        ({"budget": "40k"}, "budget='40k': expected a positive number"),
        ({"budget": 5, "shares": {"EL": 0}}, "shares= of EL: expected positive"),
        ({"budget": 5, "shares": {"X": 1}}, "shares=: no step is called 'X'"),
    ],
)
def test_what_cannot_be_is_refused(how: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        spread(small_plan(iterations=None), **how)


def test_without_flops_there_is_nothing_to_spread_by() -> None:
    plan = small_plan()
    steps = (plan.steps[0].model_copy(update={"macs": 0}), *plan.steps[1:])
    with pytest.raises(InputError, match="cannot be spread by FLOPs: EL has no convolution"):
        spread(plan.model_copy(update={"steps": steps}), budget=5)
