"""Planners: a model and a few choices -> a plan, every step of which has been tried.

The fine planner follows the paper (Fig. 3): the whole network is expanded (EL), then the levels
are narrowed from the bottleneck outwards (CSL), then the inserted levels are taken out, two
layers at a time (LSL).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from eslkit.cost import cost
from eslkit.errors import InputError, PlanError, ResizeError
from eslkit.graph.channels import ChannelGraph, ChannelGroup
from eslkit.graph.trace import Traced, trace_fully
from eslkit.picture import picture_of
from eslkit.plan import Plan, Step, fingerprint
from eslkit.surgery.api import expand
from eslkit.surgery.depth import clone, deepen, flatten_parts, flatten_step
from eslkit.surgery.policies import Policy, policy_of
from eslkit.surgery.resize import resize, resize_traced

__all__ = ["apply_step", "make_plan"]


def make_plan(
    model: nn.Module,
    *,
    width: float = 2,
    depth: int = 1,
    init: str | Policy = "first",
    granularity: str | int = "fine",
    expand_init: str | Policy = "random",
    example_inputs: Any = None,
    protect: Sequence[str] = (),
    iterations: int | None = None,
    seed: int = 0,
) -> Plan:
    """Plan the walk from a small model up and back down to itself.

    Args:
        model: the small model; it is not touched.
        width: multiplier of every group's width in the expansion.
        depth: levels that the expansion inserts.
        init: policy of the shrinking steps.
        granularity: "fine" (level by level from the bottleneck outwards, then two layers at a
            time), "one-shot" (all channels in one step, all layers in another), or the number of
            layers that a step may change.
        expand_init: policy of the expansion.
        example_inputs: as for `trace`.
        protect: as for `trace`.
        iterations: optimizer updates of every step; None leaves it to the trainer.
        seed: every step's seed is derived from it.

    Returns:
        The plan; every step has been applied once, so it can be.

    Raises:
        InputError: a granularity or an argument that cannot be.
        ResizeError: no order of steps leads back to the model.
        TraceError, DepthError: as for `expand`.
    """
    _check(granularity, width, depth)
    draft = _Draft(model, init, expand_init, tuple(protect), example_inputs, seed, iterations)
    draft.expand(width, depth)
    for names in _portions(draft.traced.graph, draft.targets, granularity):
        draft.narrow(names)
    draft.finish_narrowing()
    parts = flatten_parts(draft.network)
    each = (
        parts
        if granularity == "one-shot"
        else max(1, granularity // 2)
        if isinstance(granularity, int)
        else 1
    )
    for done in range(0, parts, each):
        draft.flatten(min(done + each, parts))
    base = cost(model, example_inputs=draft.inputs)
    return Plan(
        model=f"{type(model).__module__}.{type(model).__qualname__}",
        width=width,
        depth=depth,
        init=_name(init),
        granularity=granularity,
        expand_init=_name(expand_init),
        protect=tuple(protect),
        inputs=draft.input_shapes,
        fingerprint=fingerprint(model),
        base_parameters=base.parameters,
        base_macs=base.macs,
        steps=tuple(draft.steps),
    )


def apply_step(
    model: nn.Module,
    step: Step,
    *,
    plan: Plan,
    example_inputs: Any = None,
    policies: Mapping[str, Policy] | None = None,
) -> nn.Module:
    """The network of a step, from the network before; a function of that and the step's seed.

    Args:
        model: the network before, the small model for the first step; it is not touched.
        step: the step to take.
        plan: the plan that it belongs to.
        example_inputs: as for `trace`.
        policies: policies by name, for plans that name the user's own.

    Raises:
        PlanError: the step does not fit the network.
        ResizeError: the network cannot be resized so.
    """
    known = dict(policies or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step.seed)
        if step.phase == "expand":
            return expand(
                model,
                width=plan.width if step.width is None else step.width,
                depth=step.depth,
                init=known.get(step.init, step.init),
                example_inputs=example_inputs,
                protect=plan.protect,
            )
        if step.phase == "channels":
            return resize(
                model,
                step.widths,
                init=known.get(step.init, step.init),
                example_inputs=example_inputs,
                protect=plan.protect,
            )
        made = model
        total = 2 * plan.depth
        while total - flatten_parts(made) < step.flatten:
            made, _ = flatten_step(made)
        if made is model:
            raise PlanError(
                f"step {step.name} takes layers out, but {type(model).__name__} has no inserted "
                "level left; make the plan again for this model"
            )
        return made


def _check(granularity: str | int, width: float, depth: int) -> None:
    fine = granularity in ("fine", "one-shot")
    whole = isinstance(granularity, int) and not isinstance(granularity, bool) and granularity > 0
    if not (fine or whole):
        raise InputError(
            f"granularity={granularity!r} must be 'fine', 'one-shot', or a positive number of "
            "layers a step"
        )
    if width <= 1 and depth < 1:
        raise InputError(
            f"width={width} and depth={depth} change nothing; expand in width (2) or depth (1)"
        )


def _name(init: str | Policy) -> str:
    policy_of(init)
    return init if isinstance(init, str) else getattr(init, "__name__", "custom")


@dataclass
class _Draft:
    """A walk in the making: the network reached so far, and the steps that led there."""

    model: nn.Module
    init: str | Policy
    expand_init: str | Policy
    protect: tuple[str, ...]
    example_inputs: Any
    seed: int
    iterations: int | None

    def __post_init__(self) -> None:
        self.network = clone(self.model)
        self.steps: list[Step] = []
        self.targets: dict[str, int] = {}
        """Widths to come back to, of the groups that the expansion widened."""
        self.waiting: dict[str, int] = {}
        """Widths that could not be reached alone, and are tried with the next step."""
        self.traced = self._trace(self.network)
        self.inputs: Any = self.traced.inputs or dict(self.traced.keywords)

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the example inputs."""
        leaves = [*self.traced.inputs, *self.traced.keywords.values()]
        return tuple(tuple(x.shape) for x in leaves if isinstance(x, torch.Tensor))

    def _trace(self, network: nn.Module) -> Traced:
        return trace_fully(network, example_inputs=self.example_inputs, protect=self.protect)

    def expand(self, width: float, depth: int) -> None:
        """The first step: the expanded network; the widths to return to are noted."""
        seed = self._seed()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            big = expand(
                self.model,
                width=width,
                depth=depth,
                init=self.expand_init,
                example_inputs=self.example_inputs,
                protect=self.protect,
            )
        deeper = deepen(self.model, levels=depth, example_inputs=self.example_inputs)
        small = (self._trace(deeper) if depth else self.traced).graph.widths
        self.network = big
        self.traced = self._trace(big)
        self.targets = {
            name: small[name]
            for name, now in self.traced.graph.widths.items()
            if name in small and small[name] != now
        }
        self._add(
            "EL",
            "expand",
            seed=seed,
            init=_name(self.expand_init),
            width=width,
            depth=depth,
            layers=_count_layers(self.traced.graph.resizable),
        )

    def narrow(self, names: Sequence[str]) -> None:
        """A channel step over these groups, with those that wait."""
        widths = {**self.waiting, **{name: self.targets[name] for name in names}}
        seed = self._seed()
        try:
            self._narrow_to(widths, seed)
        except ResizeError as error:
            self.waiting, self._refused = widths, error
            return
        self.waiting = {}

    def finish_narrowing(self) -> None:
        """Whatever still waits could not be reached in any order."""
        if self.waiting:
            raise self._refused

    def _narrow_to(self, widths: Mapping[str, int], seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = resize_traced(self.network, self.traced, widths, init=self.init)
        groups = [self.traced.graph.group(name) for name in widths]
        self.network = network
        self.traced = self._trace(network)
        number = 1 + sum(step.phase == "channels" for step in self.steps)
        self._add(
            f"CSL{number}",
            "channels",
            seed=seed,
            init=_name(self.init),
            widths=dict(widths),
            layers=_count_layers(groups),
        )

    def flatten(self, parts: int) -> None:
        """A layer step, until so many parts of the inserted levels are out."""
        seed = self._seed()
        removed: list[str] = []
        total = 2 * self.steps[0].depth
        while total - flatten_parts(self.network) < parts:
            self.network, gone = flatten_step(self.network)
            removed.extend(gone)
        self.traced = self._trace(self.network)
        number = 1 + sum(step.phase == "layers" for step in self.steps)
        self._add(
            f"LSL{number}",
            "layers",
            seed=seed,
            init=_name(self.init),
            flatten=parts,
            removed=tuple(removed),
            layers=len(removed),
        )

    def _seed(self) -> int:
        return self.seed * 1000 + len(self.steps) + 1

    def _add(self, name: str, phase: Any, **what: Any) -> None:
        price = cost(self.network, example_inputs=self.inputs)
        self.steps.append(
            Step(
                index=len(self.steps) + 1,
                name=name,
                phase=phase,
                parameters=price.parameters,
                macs=price.macs,
                iterations=self.iterations,
                picture=picture_of(self.traced),
                **what,
            )
        )


def _count_layers(groups: Sequence[ChannelGroup]) -> int:
    return len({producer for group in groups for producer in group.producers})


def _portions(
    graph: ChannelGraph, targets: Mapping[str, int], granularity: str | int
) -> list[list[str]]:
    """The groups of each channel step, the bottleneck first, groups that are tied together."""
    ordered = sorted(
        (group for group in graph.resizable if group.name in targets),
        key=lambda group: -group.level,
    )
    units: list[list[ChannelGroup]] = []
    placed: set[str] = set()
    for group in ordered:
        if group.name in placed:
            continue
        unit = [group, *(graph.group(name) for name in group.tied if name in targets)]
        placed |= {member.name for member in unit}
        units.append(unit)
    portions: list[list[str]] = []
    level: int | None = None
    room = 0
    for unit in units:
        size = _count_layers(unit)
        if granularity == "one-shot":
            new = not portions
        elif granularity == "fine":
            new = unit[0].level != level
        else:
            new = not portions or room < size
        if new:
            portions.append([])
            room = granularity if isinstance(granularity, int) else 0
        level = unit[0].level
        room -= size
        portions[-1].extend(member.name for member in unit)
    return portions
