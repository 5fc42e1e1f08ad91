"""How every step trains: iterations, or one budget spread by FLOPs; learning rates; a teacher."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from eslkit.errors import InputError
from eslkit.plan import Plan
from eslkit.surgery.linear import check_times

__all__ = ["Iterations", "Rates", "Shares", "spread"]

T = TypeVar("T")

Rates = Literal["restart", "once"] | float
"""How the learning rate runs over the steps; see `eslkit.trainer.StepContext.rate`."""

Shares = Mapping[str, float | str]
"""Parts of a budget by step name or pattern, `first` or `last`: a weight beside the 1 of all other
steps, or a percentage of the whole such as `"70%"`."""

Iterations = int | Mapping[str, int] | Sequence[int | None]
"""Optimizer updates: of every step, by the step's name or pattern, or one number a step."""


def spread(
    plan: Plan,
    *,
    iterations: Iterations | None = None,
    budget: float | None = None,
    shares: Shares | None = None,
    rates: Rates = "restart",
    scale_rates: bool = False,
    teach: float = 0.0,
    linear: int = 0,
) -> Plan:
    """A plan with what trainers are told of every step: iterations, learning rate, teacher.

    A budget is counted in iterations of the small model: `budget=80_000` lets the whole schedule
    cost as many FLOPs as 80,000 iterations of training the small model do. Every step gets an
    equal share of those FLOPs, so the larger its network the fewer its iterations.

    Args:
        plan: the plan; it is not changed.
        iterations: updates of every step; or by the step's name (`EL`) or pattern (`CSL*`), where
            the last one that matches counts and steps that none matches leave it to the trainer;
            or one number a step, in order.
        budget: iterations of the small model that cost as much as the whole schedule may.
        shares: with a budget, how large a step's part of the FLOPs is, by name or pattern, or for
            the `first` or the `last` step: a number beside 1 where nothing is said, or a percentage
            of the whole such as `"70%"`, of which the other steps divide the rest.
        rates: how the learning rate runs over the steps.
        scale_rates: whether networks that are larger than the small one learn at lower rates.
        teach: weight of the step before as a teacher, whose forward passes a budget counts.
        linear: how many times as many channels lie inside of each layer; no budget counts them.

    Returns:
        The plan with new iterations; the total cost never exceeds the budget, unless a step would
        have less than one iteration.

    Raises:
        InputError: both ways at once, a step that is not there, numbers that cannot be, or one
            fall of the learning rate over steps of unknown length.
    """
    _check(rates, teach)
    check_times(linear)
    told = {"rates": rates, "scale_rates": scale_rates, "teach": float(teach), "linear": linear}
    plan = plan.model_copy(update=told)
    if budget is None:
        if shares is not None:
            raise InputError("shares= says how a budget is divided; pass budget= with it.")
        made = plan if iterations is None else _with(plan, _by_step(plan, iterations))
    elif iterations is not None:
        raise InputError(
            "iterations= and budget= exclude each other; pass what each step trains, or what all "
            "of them cost."
        )
    else:
        made = _with(plan, _by_flops(plan, budget, shares or {}))
    free = [step.name for step in made.steps if step.iterations is None]
    if rates == "once" and free:
        raise InputError(
            f"rates='once' runs over all steps, but how long {', '.join(free)} trains is left to "
            "the trainer: pass iterations= or budget=."
        )
    return made


def _check(rates: object, teach: object) -> None:
    height = isinstance(rates, (int, float)) and not isinstance(rates, bool) and 0 < rates <= 1
    if rates not in ("restart", "once") and not height:
        raise InputError(
            f"rates={rates!r}: expected 'restart', 'once', or a number above 0 and up to 1, the "
            "height of the learning rate after the first step."
        )
    if not isinstance(teach, (int, float)) or not 0 <= teach < math.inf:
        raise InputError(f"teach={teach!r}: expected a weight of 0 or more.")


def _with(plan: Plan, counts: Sequence[int | None]) -> Plan:
    steps = tuple(
        step.model_copy(update={"iterations": count})
        for step, count in zip(plan.steps, counts, strict=True)
    )
    return plan.model_copy(update={"steps": steps})


def _by_step(plan: Plan, iterations: Iterations) -> list[int | None]:
    if isinstance(iterations, Mapping):
        found = _matched(plan, iterations, "iterations")
        return [_count(found.get(step.name), step.name) for step in plan.steps]
    if not isinstance(iterations, Sequence) or isinstance(iterations, str):
        return [_count(iterations, step.name) for step in plan.steps]
    if len(iterations) != len(plan.steps):
        names = ", ".join(step.name for step in plan.steps)
        raise InputError(
            f"iterations= has {len(iterations)} numbers for {len(plan.steps)} steps ({names}); "
            "pass one for each, or name them: iterations={'EL': 1000, 'CSL*': 500}."
        )
    return [_count(n, step.name) for n, step in zip(iterations, plan.steps, strict=True)]


def _count(number: object, name: str) -> int | None:
    if number is None:
        return None
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise InputError(f"iterations={number!r} of step {name}: expected a whole number from 1.")
    return number


def _by_flops(plan: Plan, budget: float, shares: Shares) -> list[int]:
    if not isinstance(budget, (int, float)) or not 0 < budget < math.inf:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"budget={budget!r}: expected a positive number of iterations.")
    free = [step.name for step in plan.steps if not step.macs]
    if free or not plan.base_macs:
        raise InputError(
            f"budget={budget:g} cannot be spread by FLOPs: {', '.join(free) or 'the small model'} "
            "has no convolution or matrix product to count. Pass iterations= instead."
        )
    macs = budget * plan.base_macs
    return [
        max(1, int(macs * part / plan.update_macs(step)))
        for part, step in zip(_parts(plan, shares), plan.steps, strict=True)
    ]


def _parts(plan: Plan, shares: Shares) -> list[float]:
    """Of every step, the part of the whole."""
    given = _matched(plan, shares, "shares", ends=True)
    fixed: dict[str, float] = {}
    weights: dict[str, float] = {}
    for step in plan.steps:
        share = given.get(step.name, 1.0)
        number = _number(share)
        if not 0 < number < math.inf:
            raise InputError(
                f"shares= of {step.name} is {share!r}: expected a positive number, or a percentage "
                "such as '70%'."
            )
        (fixed if isinstance(share, str) else weights)[step.name] = number
    rest = 1 - sum(fixed.values())
    if rest < -1e-9 or (rest < 1e-9) != (not weights):
        others = f", and {', '.join(weights)} need a part, too" if weights else ""
        raise InputError(
            f"shares=: {', '.join(fixed)} get {sum(fixed.values()):.4g} of the whole{others}. "
            f"Expected {'less than' if weights else 'exactly'} 100% together."
        )
    each = rest / sum(weights.values()) if weights else 0.0
    return [fixed.get(s.name, each * weights.get(s.name, 0.0)) for s in plan.steps]


def _number(share: object) -> float:
    """A weight, or the part that a percentage writes; NaN for what is neither."""
    if isinstance(share, str) and share.endswith("%"):
        try:
            return float(share[:-1]) / 100
        except ValueError:
            return math.nan
    return float(share) if isinstance(share, (int, float)) else math.nan


def _matched(plan: Plan, table: Mapping[str, T], what: str, *, ends: bool = False) -> dict[str, T]:
    """Step name -> value; the last pattern that matches counts."""
    names = [step.name for step in plan.steps]
    places = {"first": names[0], "last": names[-1]} if ends else {}
    found: dict[str, T] = {}
    for pattern, value in table.items():
        wanted = places.get(pattern, pattern)
        hits = [name for name in names if fnmatch.fnmatchcase(name, wanted)]
        if not hits:
            raise InputError(
                f"{what}=: no step is called {pattern!r}; the steps are {', '.join(names)}."
            )
        found.update(dict.fromkeys(hits, value))
    return found
