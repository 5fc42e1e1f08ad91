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


@given(st.integers(1, 99), st.floats(0.1, 9))
def test_a_percentage_is_a_part_of_the_whole(percent: int, weight: float) -> None:
    plan = paper_plan()
    made = spread(plan, budget=1e7, shares={"last": f"{percent}%", "first": weight})
    spent = [step.macs * (step.iterations or 0) / plan.base_macs for step in made.steps]
    assert spent[-1] == pytest.approx(1e5 * percent, rel=1e-3)
    assert spent[0] == pytest.approx(weight * spent[1], rel=1e-2)
    assert sum(spent) == pytest.approx(1e7, rel=1e-3)


def test_the_ends_can_be_called_by_their_names_and_percentages_can_be_all() -> None:
    plan = small_plan(iterations=None)
    ends = counts(plan, budget=1e6, shares={"first": 2, "last": 5})
    assert ends == counts(plan, budget=1e6, shares={"EL": 2, "CSL2": 5})
    parts = {"first": "20%", "CSL*": "30%", "last": "50%"}
    weights = {"EL": 2, "CSL1": 3, "CSL2": 5}
    assert counts(plan, budget=1e6, shares=parts) == counts(plan, budget=1e6, shares=weights)


@pytest.mark.parametrize(
    "how, match",
    [
        ({"budget": 5, "shares": {"last": "much"}}, "CSL2 is 'much': expected a positive number"),
        ({"budget": 5, "shares": {"last": "x%"}}, "CSL2 is 'x%': expected a positive number"),
        ({"budget": 5, "shares": {"last": "-1%"}}, "shares= of CSL2 is '-1%'"),
        ({"budget": 5, "shares": {"last": "100%"}}, "get 1 of the whole, and EL, CSL1 need a part"),
        ({"budget": 5, "shares": {"CSL*": "60%"}}, "CSL1, CSL2 get 1.2 of the whole, and EL need"),
        ({"budget": 5, "shares": {"*": "30%"}}, "get 0.9 of the whole. Expected exactly 100%"),
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
        ({"budget": 5, "shares": {"EL": 0}}, "shares= of EL is 0: expected a positive number"),
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
