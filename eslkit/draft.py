"""A walk in the making: a planner says what each step changes, the draft takes the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from eslkit.cost import cost
from eslkit.errors import DepthError, PlanError, ResizeError, TraceError
from eslkit.graph.channels import ChannelGraph
from eslkit.graph.export import Exported
from eslkit.graph.skeleton import with_memory, without_memory
from eslkit.graph.trace import Traced, trace_fully
from eslkit.memory import training_bytes
from eslkit.moves import Move, check_larger, count_layers, table_widths
from eslkit.picture import picture_of
from eslkit.plan import (
    LayerInfo,
    Plan,
    Source,
    Step,
    check_same_form,
    class_path,
    fingerprint,
)
from eslkit.surgery.depth import clone, deepen, flatten_parts, flatten_step
from eslkit.surgery.frozen import without_fixed
from eslkit.surgery.inherit import named_tensors
from eslkit.surgery.layers import layers_towards, remove_layers
from eslkit.surgery.level import LevelBuilder
from eslkit.surgery.policies import Policy, planned, policy_of
from eslkit.surgery.resize import (
    Prepared,
    build_resized,
    form_resized,
    prepare_possible,
    prepare_resize,
    warn_kept,
    warn_not_wider,
    widens_own,
)
from eslkit.surgery.widths import scaled_widths, widths_towards

__all__ = ["Draft", "Planned", "policy_name"]


@dataclass(frozen=True)
class Planned:
    """A plan, and what was found out on the way that a run needs again."""

    plan: Plan
    prepared: Mapping[int, Prepared]
    """Step number -> the resize of that step, proved."""
    inputs: Any
    """The example inputs, inferred where none were given."""
    deepened: nn.Module | None = None
    """The small model with levels inserted, before it is widened; None where there are none."""


class Draft:
    """The network reached so far, the one to come back to, and the steps taken."""

    def __init__(
        self,
        start: nn.Module,
        model: nn.Module,
        *,
        init: str | Policy = "first",
        expand_init: str | Policy = "random",
        protect: Sequence[str] = (),
        example_inputs: Any = None,
        seed: int = 0,
        at: Sequence[str] = (),
        level: LevelBuilder | None = None,
    ) -> None:
        self.model = model
        self._at, self._level = tuple(at), level
        self.network = clone(start)
        self.inputs = example_inputs
        self._init, self._expand_init = init, expand_init
        self._protect, self._seed = tuple(protect), seed
        self._steps: list[Step] = []
        self._prepared: dict[int, Prepared] = {}
        self._source: Source | None = None
        self._goal = model
        """The small model with as many levels inserted as the network still has."""
        self._waiting: dict[str, int] = {}  # could not be reached alone: tried with the next step
        self._refused: ResizeError | None = None
        self._deeper: nn.Module | None = None
        self._parts_out = 0
        self.surplus: tuple[str, ...] = ()
        """Layers that the large model has and the small one has not, in the order of leaving."""
        self._counted: dict[str, dict[str, int | None]] = {}
        self._own: Traced | None = None  # of the small model, if the walk begins there
        self._traced = self._trace(self.network)
        self._own = self._traced if start is model else None
        self.inputs = self._traced.inputs or dict(self._traced.keywords)
        self._picture: tuple[LayerInfo, ...] = picture_of(self._traced)

    @property
    def graph(self) -> ChannelGraph:
        """The channel graph of the network reached so far."""
        return self._traced.graph

    @property
    def targets(self) -> dict[str, int]:
        """Group -> the width to come back to, of the groups that have another one now."""
        if self.surplus:
            raise PlanError(
                f"{type(self.network).__name__} has layers that the small model has not, such as "
                f"{self.surplus[0]}: which widths to come back to is known when they are out. Put "
                "'layers' or 'fine layers' before the channels."
            )
        return widths_towards(self.graph, named_tensors(self._goal), named_tensors(self.network))

    @property
    def parts_left(self) -> int:
        """Steps of two layers that it takes to remove all inserted levels."""
        return flatten_parts(self.network)

    @property
    def num_levels(self) -> int:
        """Inserted levels of the network reached so far."""
        return -(-self.parts_left // 2)

    def start_from_source(self) -> None:
        """Begin from a large model instead of expanding the small one."""
        parts = self.parts_left
        goal = self._deepened(self.num_levels, "random")
        while flatten_parts(goal) > parts:
            goal, _ = flatten_step(goal)
        self._goal = goal
        if not parts and goal.state_dict().keys() != self.network.state_dict().keys():
            try:
                self.surplus = layers_towards(self.network, goal, example_inputs=self.inputs)
            except DepthError as error:
                raise PlanError(f"The two models are not of one form: {error}.") from error
        else:
            check_same_form(self.network, goal)
            check_larger(self.graph, self.targets)
        self._source = Source.model_validate(
            {
                "model": class_path(self.network),
                "fingerprint": fingerprint(self.network),
                "picture": self._picture,
                **self._figures(self.network),
            }
        )
        self._picture = picture_of(self._trace(self.model))

    def expand(self, width: float | Mapping[str, float], depth: int, *, name: str = "EL") -> None:
        """The first step: the expanded network; the widths to return to are noted."""
        seed = self._next_seed()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            plain = self._expand_init if isinstance(self._expand_init, str) else "random"
            deeper = self._deepened(depth, plain)
        before = self._trace(deeper) if depth else self._traced
        prepared = self._widened(deeper, before, width)
        self._deeper = deeper if depth else None
        self._goal = self._bare(deeper)
        self._build(deeper, prepared, self._expand_init, seed)
        self._add(
            name,
            "expand",
            prepared,
            seed=seed,
            init=policy_name(self._expand_init),
            width=self._told(deeper, prepared, width),
            depth=depth,
            layers=count_layers(self.graph.resizable),
        )

    def _deepened(self, levels: int, init: str) -> nn.Module:
        return deepen(
            self.model,
            levels=levels,
            init=init,
            at=self._at or None,
            level=self._level,
            example_inputs=self.inputs,
        )

    @property
    def _is_bare(self) -> bool:
        """Whether the code of the networks runs without memory, so that none is needed."""
        return self._traced.exported.runner.kind == "meta"

    def _bare(self, network: nn.Module) -> nn.Module:
        """A copy without memory for its weights, if that does."""
        return without_memory(network) if self._is_bare else clone(network)

    def _widened(
        self, deeper: nn.Module, before: Traced, width: float | Mapping[str, float]
    ) -> Prepared:
        if isinstance(width, Mapping):
            multipliers = {name: float(number) for name, number in width.items()}
            return prepare_resize(deeper, before, table_widths(before.graph, multipliers))
        wanted, fixed = without_fixed(deeper, before.graph, scaled_widths(before.graph, width))
        prepared, kept = prepare_possible(deeper, before, wanted)
        kept = {**fixed, **kept}
        warn_kept(kept, len(before.graph.resizable), stacklevel=6)
        deepened = before is not self._traced  # else nothing is left to plan, which is an error
        if deepened and width > 1 and not kept and not widens_own(deeper, prepared):
            warn_not_wider(deeper, before.graph, width, stacklevel=6)
        return prepared

    @staticmethod
    def _told(
        deeper: nn.Module, prepared: Prepared, width: float | Mapping[str, float]
    ) -> float | None:
        """The multiplier that the plan tells: none where only a level has been inserted."""
        if isinstance(width, Mapping):
            return None
        return width if width <= 1 or widens_own(deeper, prepared) else 1.0

    def _build(self, network: nn.Module, prepared: Prepared, init: str | Policy, seed: int) -> None:
        """Go on with the resized network; only its form counts, so it has no memory if it can."""
        if self._is_bare:
            self.network = form_resized(network, prepared)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.network = build_resized(network, prepared, init=planned(init))
        self._traced = self._trace(self.network, prepared.exported)

    def shrink(self, move: Move) -> None:
        """Take a step.

        Raises:
            PlanError: it changes nothing.
            ResizeError: the network cannot be resized so.
        """
        now = self.graph.widths
        asked = {**self._waiting, **move.widths}
        widths = {name: new for name, new in asked.items() if new != now.get(name)}
        removes = bool(move.parts or move.layers)
        if not widths and not removes:
            if move.told:
                raise PlanError(
                    f"The step {move.told!r} changes nothing: what it names is as wide as it is to "
                    "be by then. Leave it out, or name it earlier."
                )
            return
        if self._waiting and self._refused and removes and not move.widths:
            raise self._refused
        seed = self._next_seed()
        try:
            self._take(widths, move, seed)
        except ResizeError as error:
            if move.refused == "raise":
                raise
            if move.refused == "wait":
                self._waiting, self._refused = widths, error
            return
        self._waiting = {}

    def _take(self, widths: Mapping[str, int], move: Move, seed: int) -> None:
        groups = [self.graph.group(name) for name in widths]
        prepared = None
        if widths:
            prepared = prepare_resize(self.network, self._traced, widths, goal=self._goal)
        if prepared is not None:
            self._build(self.network, prepared, self._init, seed)
        removed = self._without(move.layers)
        for _ in range(move.parts):
            self.network, gone = flatten_step(self.network)
            removed.extend(gone)
            self._goal, _ = flatten_step(self._goal)
        if removed:
            self._traced = self._trace(self.network)
        self._parts_out += move.parts
        phase = "both" if widths and removed else "layers" if removed else "channels"
        short = {"both": "SL", "layers": "LSL", "channels": "CSL"}[phase]
        self._add(
            f"{short}{1 + sum(step.phase == phase for step in self._steps)}",
            phase,
            prepared,
            seed=seed,
            init=policy_name(self._init),
            flatten=self._parts_out if move.parts else 0,
            taken_out=move.layers,
            removed=tuple(removed),
            layers=count_layers(groups) + len(removed),
        )

    def _without(self, layers: Sequence[str]) -> list[str]:
        """Take layers of the large model out; gives the layers with weights among them."""
        if not layers:
            return []
        gone = [name for layer in layers for name in self.layers_in(layer)]
        self.network = remove_layers(self.network, layers, example_inputs=self.inputs)
        self.surplus = tuple(name for name in self.surplus if name not in layers)
        return gone

    def layers_in(self, name: str) -> list[str]:
        """The layers with weights in a module, itself among them."""
        inside = self.network.get_submodule(name).named_parameters(prefix=name)
        return list(dict.fromkeys(key.rpartition(".")[0] for key, p in inside if p.dim() > 1))

    def finish(self, *, whole: bool) -> None:
        """Check that the steps lead to where they should.

        Raises:
            ResizeError: some widths could not be reached in any order.
            PlanError: something is left, or the network is of another form than the model.
        """
        if self._waiting and self._refused is not None:
            raise self._refused
        if self.surplus:
            raise PlanError(
                f"The steps do not lead to {type(self.model).__name__}: {', '.join(self.surplus)} "
                "are left at the end. Add 'layers', or 'fine layers' for two layers a step."
            )
        left = [f"{n} ({self.graph.widths[n]}, not {w})" for n, w in self.targets.items()]
        if left:
            more = f" and {len(left) - 4} more" if len(left) > 4 else ""
            raise PlanError(
                f"The steps do not lead back to {type(self.model).__name__}: groups "
                f"{', '.join(left[:4])}{more} have other widths at the end. Add steps for them, or "
                "'channels' for all that is left."
            )
        if whole and self.parts_left:
            raise PlanError(
                f"The steps do not lead back to {type(self.model).__name__}: inserted levels are "
                "left at the end. Add 'layers', or 'fine layers' for two layers a step."
            )
        if whole:
            check_same_form(self.network, self.model, shapes=True)
        if not self._steps:
            raise PlanError(
                f"There is nothing to do: {type(self.network).__name__} is as small as the model "
                "that it is to become. Pass the larger one first, the smaller one as target=."
            )

    def planned(
        self, *, width: float | Mapping[str, float], depth: int, granularity: str | int
    ) -> Planned:
        """The plan, with what was found out on the way."""
        own, last = fingerprint(self.model), fingerprint(self.network)
        leaves = (*self._traced.inputs, *self._traced.keywords.values())
        base = {f"base_{name}": value for name, value in self._figures(self.model).items()}
        fields = {
            "model": class_path(self.model),
            "source": self._source,
            "width": dict(width) if isinstance(width, Mapping) else width,
            "depth": depth,
            "at": self._at,
            "init": policy_name(self._init),
            "granularity": granularity,
            "expand_init": policy_name(self._expand_init),
            "protect": self._protect,
            "inputs": tuple(tuple(x.shape) for x in leaves if isinstance(x, torch.Tensor)),
            "fingerprint": own,
            "ending": "" if own == last else last,
            "picture": () if own == last else self._picture,
            "steps": tuple(self._steps),
        }
        made = Plan.model_validate({**fields, **base})
        return Planned(made, self._prepared, self.inputs, self._deeper)

    def _trace(self, network: nn.Module, exported: Exported | None = None) -> Traced:
        if self._own is not None and fingerprint(network) == fingerprint(self.model):
            return self._own
        return trace_fully(
            network, example_inputs=self.inputs, protect=self._protect, exported=exported
        )

    def _figures(self, network: nn.Module) -> dict[str, int | None]:
        """What a network costs, counted once for each form."""
        form = fingerprint(network)
        if form not in self._counted:
            try:
                price = cost(network, example_inputs=self.inputs)
            except TraceError:  # in eval mode its code may look at values
                if not self._is_bare:
                    raise
                price = cost(with_memory(network), example_inputs=self.inputs)
            self._counted[form] = {
                "parameters": price.parameters,
                "macs": price.macs,
                "peak_activation_bytes": price.peak_activation_bytes,
                "training_bytes": training_bytes(network, example_inputs=self.inputs),
            }
        return self._counted[form]

    def _next_seed(self) -> int:
        return self._seed * 1000 + len(self._steps) + 1

    def _add(
        self,
        name: str,
        phase: Literal["expand", "channels", "layers", "both"],
        prepared: Prepared | None,
        **what: Any,
    ) -> None:
        index = len(self._steps) + 1
        widths: dict[str, int] = {}
        if prepared is not None:
            widths = {change.group.name: change.new for change in prepared.sizes.changes}
            if prepared.sizes.traced.exported.runner.kind != "real":  # it hangs on no values
                self._prepared[index] = replace(prepared, exported=None)  # it has served
        self._steps.append(
            Step(
                index=index,
                name=name,
                phase=phase,
                picture=picture_of(self._traced),
                widths=widths,
                **self._figures(self.network),
                **what,
            )
        )


def policy_name(init: str | Policy) -> str:
    """What a plan calls a policy."""
    policy_of(init)
    return init if isinstance(init, str) else getattr(init, "__name__", "custom")
