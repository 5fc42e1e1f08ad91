"""`recipe=`: a name for what a schedule does where its caller says nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import eslkit
from eslkit.budget import spread
from eslkit.errors import InputError
from eslkit.plan import Plan
from eslkit.recipes import RECIPES, recipe_of
from eslkit.trainer import StepContext
from tests.eslkit.small_walk import small_plan
from tests.eslkit.test_cli import UNet, call, large, refused

X = torch.zeros(1, 1, 16, 16)


def plan(**options: Any) -> Plan:
    return eslkit.schedule(UNet(), example_inputs=X, **options).plan


def written_out(name: str) -> dict[str, Any]:
    """The options of a recipe, as a caller without recipes would pass them."""
    told = recipe_of(name)
    names = ("width", "depth", "init", "granularity", "order", "expand_init", "linear")
    return {key: getattr(told, key) for key in (*names, "rates", "scale_rates")}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_its_options_written_out(name: str) -> None:
    told = written_out(name)
    made = plan(recipe=name, budget=900)
    shares = None if len(made.steps) == 1 else recipe_of(name).shares or {"*": 1}
    for other in RECIPES.keys() - {name}:
        assert made == plan(recipe=other, **told, budget=900, shares=shares)
        assert plan(recipe=name, iterations=5) == plan(recipe=other, **told, iterations=5)


@pytest.mark.parametrize("copies", ["preserve", "split"])
def test_an_expansion_by_copies_comes_back_by_merging_them(copies: str) -> None:
    """`first` would keep both copies of every other channel, and lose the others."""
    model = UNet()
    made = eslkit.schedule(model, expand_init=copies, depth=0, budget=900, example_inputs=X)
    assert made.plan.init == "merge"
    assert plan(expand_init=copies, init="first").init == "first"
    assert plan(expand_init="random").init == "first"
    back = made.run(lambda network, step: {}).model.eval()
    image = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(back(image), model.eval()(image))


def test_what_nothing_said_means() -> None:
    assert plan() == plan(recipe="paper")
    assert plan(iterations=5) == plan(recipe="paper", iterations=5)
    assert plan(budget=900) == plan(recipe="linear", budget=900) != plan(budget=901)
    assert plan(budget=900, linear=3) == plan(recipe="linear", budget=900, linear=3)


@pytest.mark.parametrize(
    "option",
    [
        {"width": 2},
        {"depth": 0},
        {"init": "last"},
        {"granularity": "one-shot"},
        {"factor": 0.75},
        {"order": "inwards"},
        {"expand_init": "split"},
        {"shares": {"last": "60%"}},
        {"teach": 0.5},
        {"linear": 0},
    ],
    ids=lambda option: next(iter(option)),
)
def test_what_says_how_to_expand_or_shrink_a_budget_is_told_thrifty(option: dict[str, Any]) -> None:
    made = plan(budget=900, **option)
    assert made == plan(recipe="thrifty", budget=900, **option)
    assert len(made.steps) > 1


OTHER: dict[str, Any] = {
    "width": 1.5,
    "depth": 0,
    "init": "last",
    "granularity": "one-shot",
    "order": "inwards",
    "expand_init": "first",
    "rates": 0.3,
    "scale_rates": False,
    "linear": 3,
}


@pytest.mark.parametrize("option", OTHER)
@pytest.mark.parametrize("name", RECIPES)
def test_what_is_given_counts(name: str, option: str) -> None:
    options = {**written_out(name), option: OTHER[option]}
    shares = {"first": 2, "last": 3}
    if len(plan(**options).steps) == 1:
        shares = {"last": "100%"}
    made = plan(recipe=name, budget=900, shares=shares, **{option: OTHER[option]})
    assert made == plan(**options, budget=900, shares=shares)


def test_a_large_model_comes_down_by_a_recipe() -> None:
    def down(**options: Any) -> Plan:
        return eslkit.schedule_from(large(), target=UNet(), example_inputs=X, **options).plan

    thrifty = RECIPES["thrifty"]
    told = down(recipe="thrifty", budget=700)
    assert told.init == thrifty.init
    assert told.scale_rates == thrifty.scale_rates
    # One step has the whole budget, however the recipe divides it between several.
    assert [step.iterations for step in told.steps] == [700]
    assert down() == down(recipe="paper")
    assert down(budget=700) == told


def test_no_recipe_of_that_name() -> None:
    with pytest.raises(
        InputError, match="recipe='generous': expected one of 'paper', 'thrifty', 'linear'"
    ):
        plan(recipe="generous")


def test_the_command_line_has_recipes() -> None:
    shape = ("-i", "1,1,16,16")
    thrifty = ("plan", "tests.eslkit.test_cli:UNet", *shape, "--recipe", "thrifty")
    made = Plan.from_json(call(*thrifty, "--budget", 900, "--json", "-").stdout)
    wanted = plan(recipe="thrifty", budget=900)
    assert made.model_copy(update={"model": wanted.model}) == wanted
    told = call(*thrifty, "--one-rate", "--order", "inwards", "--json", "-").stdout
    assert not Plan.from_json(told).scale_rates
    assert "--paper ESL5 says what each step changes: leave --recipe, --factor out" in refused(
        *thrifty, "--paper", "ESL5", "--factor", 0.5
    )


@given(
    st.sampled_from(["restart", "once", 0.3]),
    st.integers(0, 30),
    st.lists(st.integers(0, 10**12), min_size=3, max_size=3),
    st.integers(0, 10**12),
    st.integers(0, 9),
)
def test_scaled_rates_fall_with_the_width_of_networks_and_of_the_inside_of_layers(
    rates: Any, iteration: int, macs: list[int], base: int, linear: int
) -> None:
    plain = spread(small_plan(iterations=40), rates=rates)
    steps = tuple(
        step.model_copy(update={"macs": count})
        for step, count in zip(plain.steps, macs, strict=True)
    )
    plain = plain.model_copy(update={"steps": steps, "base_macs": base})
    scaled = spread(plain, rates=rates, scale_rates=True, linear=linear)
    for before, after in zip(plain.steps, scaled.steps, strict=True):
        one = StepContext(before, 3, None, 0, plain).rate(iteration)
        low = StepContext(after, 3, None, 0, scaled).rate(iteration)
        width = math.sqrt(before.macs / base) if base else 1.0
        assert low == pytest.approx(one / max(width, 1.0) / math.sqrt(linear or 1))
        assert low <= one


def test_a_schedule_says_that_rates_are_scaled() -> None:
    made = eslkit.schedule(UNet(), depth=0, scale_rates=True, example_inputs=X)
    assert "restart, lower for larger networks" in " ".join(str(made).split())
    again = Plan.from_json(made.plan.to_json())
    assert again.scale_rates
