"""Recipes: what a schedule does where its caller says nothing, under one name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from eslkit.budget import Iterations, Rates, Shares, spread
from eslkit.errors import InputError
from eslkit.plan import Plan
from eslkit.planners import Granularity, Order
from eslkit.surgery.policies import Policy

__all__ = ["RECIPES", "Recipe", "recipe_of"]


@dataclass(frozen=True)
class Recipe:
    """Values for the options of `eslkit.schedule` that are not given."""

    width: float | Mapping[str, float] = 2
    """Width multiplier of the expansion."""
    depth: int = 1
    """Levels that the expansion inserts."""
    init: str | Policy = "first"
    """Init policy of the shrinking steps."""
    granularity: Granularity = "fine"
    """What each shrinking step changes."""
    order: Order = "outwards"
    """Which level is narrowed first."""
    expand_init: str | Policy = "random"
    """Init policy of the expansion."""
    shares: Shares | None = None
    """How a budget is divided over two steps or more; None for equal shares."""
    rates: Rates = "restart"
    """How the learning rate runs over the steps."""
    scale_rates: bool = False
    """Whether larger networks, and layers that are larger inside, learn at lower rates."""
    linear: int = 0
    """How many times as many channels lie inside of each layer while it is trained."""

    def told(self, **given: Any) -> Recipe:
        """The recipe with what its caller gives instead; None is not given."""
        return replace(self, **{k: v for k, v in given.items() if v is not None})

    def spread(
        self,
        plan: Plan,
        iterations: Iterations | None,
        budget: float | None,
        shares: Shares | None,
        teach: float,
    ) -> Plan:
        """A plan that says how every step trains; the arguments are those of `schedule`.

        Raises:
            InputError: as `eslkit.budget.spread`.
        """
        if shares is None and budget is not None and len(plan.steps) > 1:
            shares = self.shares
        return spread(
            plan,
            iterations=iterations,
            budget=budget,
            shares=shares,
            rates=self.rates,
            scale_rates=self.scale_rates,
            teach=teach,
            linear=self.linear,
        )


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "paper": Recipe(),
        "thrifty": Recipe(
            depth=0,
            granularity="direct",
            shares={"last": "70%"},
            scale_rates=True,
        ),
        "linear": Recipe(
            width=1,
            depth=0,
            granularity="direct",
            shares={"last": "70%"},
            scale_rates=True,
            linear=4,
        ),
    }
)
"""Name -> recipe. `paper` is ESL3 of "TSDN: Two-Stage Raw Denoising in the Dark", IEEE TIP 2023;
`thrifty` came out ahead of it for the same computation wherever both were measured ("Does it pay?"
in the documentation): twice the width, no level, back in one step, most of the computation for the
small network. `linear` widens nothing but the inside of layers, so that one training is all; with
a `width` or `depth` of your own it is `thrifty` with that."""


def recipe_of(name: str | None, *, budgeted: bool = False, walked: bool = True) -> Recipe:
    """The recipe of a name.

    Args:
        name: the name; None for the one that is the default.
        budgeted: whether all steps share one budget; otherwise the default is `paper`.
        walked: whether something is said of how to expand and shrink: then a budget's default is
            `thrifty`, otherwise it is `linear`.

    Raises:
        InputError: there is none of that name.
    """
    if name is None:
        spent = "thrifty" if walked else "linear"
        name = spent if budgeted else "paper"
    if name not in RECIPES:
        raise InputError(f"recipe={name!r}: expected one of {', '.join(map(repr, RECIPES))}.")
    return RECIPES[name]
