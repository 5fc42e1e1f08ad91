"""One step's surgery: the network of a step, from the network before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from eslkit.errors import PlanError
from eslkit.graph.trace import trace_fully
from eslkit.plan import Plan, Step
from eslkit.surgery.api import expand
from eslkit.surgery.depth import clone, deepen, flatten_parts, flatten_step
from eslkit.surgery.inherit import named_tensors
from eslkit.surgery.inserted import own_names
from eslkit.surgery.layers import remove_layers
from eslkit.surgery.level import LevelBuilder
from eslkit.surgery.policies import Policy
from eslkit.surgery.resize import Prepared, build_resized, prepare_resize

__all__ = ["apply_step", "flattened"]


def apply_step(
    model: nn.Module,
    step: Step,
    *,
    plan: Plan,
    example_inputs: Any = None,
    policies: Mapping[str, Policy] | None = None,
    level: LevelBuilder | None = None,
    prepared: Prepared | None = None,
    deepened: nn.Module | None = None,
    goal: nn.Module | None = None,
) -> nn.Module:
    """The network of a step, from the network before; a function of that and the step's seed.

    Args:
        model: the network before, the small model for the first step; it is not touched.
        step: the step to take.
        plan: the plan that it belongs to.
        example_inputs: as for `trace`.
        policies: policies by name, for plans that name the user's own.
        level: what builds an inserted level, where that is not the model's own kind.
        prepared: the resize of this step as planning proved it, where that is at hand; nothing
            is then traced or proved again.
        deepened: the small model with its levels inserted, as planning made it; the same.
        goal: the small model, for the numbers that its code keeps; as for `prepare_resize`.

    Raises:
        PlanError: the step does not fit the network.
        ResizeError: the network cannot be resized so.
    """
    init = dict(policies or {}).get(step.init, step.init)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step.seed)
        made = model
        if step.phase == "expand":
            multiplier = plan.width if step.width is None else step.width
            if not step.widths and not isinstance(multiplier, dict) and multiplier != 1:
                return expand(  # a plan that leaves the widths to the multiplier
                    model,
                    width=multiplier,
                    depth=step.depth,
                    init=init,
                    example_inputs=example_inputs,
                    protect=plan.protect,
                )
            name = init if isinstance(init, str) else "random"
            if deepened is not None:
                made = _filled(deepened, model)
            else:
                made = deepen(
                    model,
                    levels=step.depth,
                    init=name,
                    at=plan.at or None,
                    level=level,
                    example_inputs=example_inputs,
                )
        if step.widths or (step.phase == "expand" and init == "random"):
            if prepared is None:
                traced = trace_fully(made, example_inputs=example_inputs, protect=plan.protect)
                narrows = goal if step.phase != "expand" else None
                prepared = prepare_resize(made, traced, step.widths, goal=narrows)
            made = build_resized(made, prepared, init=init)
        if step.taken_out:
            made = remove_layers(made, step.taken_out, example_inputs=example_inputs)
        if step.flatten:
            made = flattened(made, step, plan)
        return made


def _filled(deepened: nn.Module, model: nn.Module) -> nn.Module:
    """A copy of the deepened model with the weights of a model that it could have been made of."""
    made, own = clone(deepened), own_names(deepened)
    values = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    with torch.no_grad():
        for name, tensor in named_tensors(made).items():
            module, _, key = name.rpartition(".")
            if module in own:  # else it belongs to a level
                tensor.copy_(values[f"{own[module]}.{key}" if own[module] else key])
    return made


def flattened(model: nn.Module, step: Step, plan: Plan) -> nn.Module:
    """The network with inserted levels taken out, as far as the step wants it.

    Raises:
        PlanError: no inserted level is left.
    """
    total = max((each.flatten for each in plan.steps), default=0)
    made, left = model, total - step.flatten
    while flatten_parts(made) > left:
        made, _ = flatten_step(made)
    if made is model:
        raise PlanError(
            f"step {step.name} takes layers out, but {type(model).__name__} has no inserted "
            "level left; make the plan again for this model"
        )
    return made
