"""The recipes of the paper's Tables III and IV, by name, for any model.

Chen et al., "TSDN: Two-Stage Raw Denoising in the Dark", IEEE Transactions on Image Processing,
2023.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from eslkit.budget import Iterations, Rates, Shares, spread
from eslkit.errors import InputError
from eslkit.graph.trace import check_model
from eslkit.planners import Choices, plan_expansion, plan_scratch
from eslkit.schedule import Schedule, own_policies
from eslkit.surgery.depth import clone
from eslkit.surgery.level import LevelBuilder
from eslkit.surgery.linear import check_linear
from eslkit.surgery.policies import Policy

__all__ = ["paper"]

_ROWS: dict[str, tuple[tuple[str, ...], bool]] = {
    "CSL1": (("channels",), False),
    "CSL2": (("fine channels",), False),
    "CSL3": ((), False),
    "ESL1": (("channels", "layers"), True),
    "ESL2": (("fine channels", "layers"), True),
    "ESL3": (("fine channels", "fine layers"), True),
    "ESL4": ((), True),
    "ESL5": (("direct",), True),
}
"""Row of the paper's Tables III and IV -> its steps, and whether the levels come out again."""


def paper(
    model: nn.Module,
    row: str = "ESL3",
    *,
    width: float | Mapping[str, float] = 2,
    depth: int = 1,
    at: str | Sequence[str] | None = None,
    level: LevelBuilder | None = None,
    init: str | Policy = "first",
    expand_init: str | Policy = "random",
    example_inputs: Any = None,
    protect: Sequence[str] = (),
    iterations: Iterations | None = None,
    budget: float | None = None,
    shares: Shares | None = None,
    rates: Rates = "restart",
    scale_rates: bool = False,
    teach: float = 0.0,
    linear: int = 0,
    seed: int = 0,
) -> Schedule:
    """Plan a recipe by the name that the paper's Tables III and IV give it, for any model.

    | row | trainings of the paper's TSDN | what they are |
    |---|---|---|
    | CSL1 | 2 | expanded; all channels at once |
    | CSL2 | 6 | expanded; channels level by level; Table III has it with First, Last, Combined |
    | CSL3 | 1 | the network of CSL1 and CSL2 from random weights |
    | ESL1 | 3 | CSL1; the inserted layers at once |
    | ESL2 | 7 | CSL2; the inserted layers at once |
    | ESL3 | 8 | CSL2; the inserted layers two at a time: the paper's own TSDN |
    | ESL4 | 1 | the small network from random weights |
    | ESL5 | 2 | expanded; channels and layers at once |

    Args:
        model: the small model; it is copied and never touched.
        row: the row's name; the CSL rows end with the inserted levels still in place.
        width: as for `schedule`, and so are all other arguments.
        depth: as for `schedule`.
        at: as for `schedule`.
        level: as for `schedule`.
        init: "first", "last" or "combined" for Table III; or any other policy.
        expand_init: as for `schedule`.
        example_inputs: as for `schedule`.
        protect: as for `schedule`.
        iterations: as for `schedule`.
        budget: as for `schedule`.
        shares: as for `schedule`.
        rates: as for `schedule`; the paper has `restart`.
        scale_rates: as for `schedule`; the paper has one rate for all.
        teach: as for `schedule`; the paper has 0.
        linear: as for `schedule`; the paper has 0.
        seed: as for `schedule`.

    Returns:
        The schedule.

    Raises:
        InputError: no row has that name, or an argument cannot be used.
        EslError: the model cannot be traced, widened or deepened.
    """
    check_model(model)
    check_linear(model, linear)
    if row not in _ROWS:
        raise InputError(f"row={row!r} is none of the paper's rows: {', '.join(_ROWS)}.")
    steps, whole = _ROWS[row]
    policies = own_policies(init, expand_init)
    choices = Choices(
        init=init,
        granularity=steps or "fine",
        expand_init=expand_init,
        example_inputs=example_inputs,
        protect=tuple(protect),
        seed=seed,
        at=(at,) if isinstance(at, str) else tuple(at or ()),
        level=level,
        whole=whole,
        label=row,
    )
    if steps:
        made = plan_expansion(model, width=width, depth=depth, choices=choices)
    else:
        made = plan_scratch(model, depth=0 if whole else depth, choices=choices)
    plan = spread(
        made.plan,
        iterations=iterations,
        budget=budget,
        shares=shares,
        rates=rates,
        scale_rates=scale_rates,
        teach=teach,
        linear=linear,
    )
    return Schedule(
        clone(model), plan, made.inputs, policies, None, made.prepared, level, made.deepened
    )
