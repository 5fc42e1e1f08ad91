"""A schedule: a model, its plan, and the runs that carry the plan out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from eslkit.budget import Iterations, Rates, Shares
from eslkit.draw import draw_plan
from eslkit.driver import Callback, walk
from eslkit.errors import InputError, PlanError
from eslkit.files import write_atomically
from eslkit.graph.trace import check_model
from eslkit.manifest import StepRecord
from eslkit.overview import overview
from eslkit.plan import Plan, Step, fingerprint
from eslkit.planners import Choices, Granularity, Order, plan_between, plan_expansion
from eslkit.recipes import recipe_of
from eslkit.steps import apply_step
from eslkit.store import RunStore
from eslkit.surgery.depth import clone
from eslkit.surgery.level import LevelBuilder
from eslkit.surgery.linear import check_linear
from eslkit.surgery.policies import Policy
from eslkit.surgery.resize import Prepared
from eslkit.trainer import TrainerLike, as_trainer

__all__ = [
    "Result",
    "Schedule",
    "StepRecord",
    "own_policies",
    "schedule",
    "schedule_from",
]


@dataclass(frozen=True)
class Result:
    """What a run brought."""

    model: nn.Module
    """The trained model: a new object of the user's class, with the user's keys and shapes."""
    records: tuple[StepRecord, ...]
    """What happened in each step."""
    plan: Plan
    """The plan that was carried out."""

    def __repr__(self) -> str:
        last = self.records[-1]
        metrics = ", ".join(f"{name}={value:.4g}" for name, value in last.metrics.items())
        kind = type(self.model).__name__
        return f"Result({kind}, {len(self.records)} steps, last {last.name}: {metrics or 'done'})"


@dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    """A model and the plan of its Expand-Shrink-Learning.

    Made by `schedule`, or from a plan read from disk: `Schedule(model, plan)`.
    """

    model: nn.Module
    """The small model, as it was when the schedule was made."""
    plan: Plan
    """What is to be done with it."""
    example_inputs: Any = None
    """Inputs to follow the model's computation with, as for `trace`; None infers them."""
    policies: Mapping[str, Policy] = field(default_factory=dict[str, Policy])
    """The user's own init policies, by the name that the plan calls them by."""
    source: nn.Module | None = None
    """The large model that the walk begins from; None where it begins from the small one."""
    prepared: Mapping[int, Prepared] = field(default_factory=dict[int, Prepared])
    """The resize of each step as planning proved it, so that a run need not; by step number."""
    level: LevelBuilder | None = None
    """What builds an inserted level, where that is not the model's own kind."""

    deepened: nn.Module | None = None
    """The small model with its levels inserted, as planning made it, so that a run need not."""

    def __post_init__(self) -> None:
        self._check_source()
        if fingerprint(self.model) != self.plan.fingerprint:
            raise PlanError(
                f"The plan was made for another model: {self.plan.model} with parameters of other "
                f"names or shapes than those of this {type(self.model).__qualname__}. Make a plan "
                "for this model with eslkit.schedule(...)."
            )

    def _check_source(self) -> None:
        want = self.plan.source
        if want is None and self.source is None:
            return
        if self.source is None or want is None or fingerprint(self.source) != want.fingerprint:
            found = "none was" if self.source is None else f"a {type(self.source).__qualname__} was"
            wanted = "the small model itself" if want is None else f"the large {want.model}"
            raise PlanError(
                f"The plan begins from {wanted}, and {found} passed as source=. Pass what it was "
                "made for, or make a plan with eslkit.schedule_from(...)."
            )

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps, in order."""
        return self.plan.steps

    def __repr__(self) -> str:
        return f"Schedule({type(self.model).__name__}, {len(self.steps)} steps)"

    def __str__(self) -> str:
        return overview(self.plan)

    def draw(self, path: str | Path) -> None:
        """Draw the model's U in every step as an SVG file.

        Raises:
            StoreError: the file cannot be written.
        """
        write_atomically(Path(path), draw_plan(self.plan).encode())

    def run(
        self,
        trainer: TrainerLike,
        *,
        out: str | Path | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Result:
        """Carry the plan out; with `out=`, go on where an earlier run stopped.

        Args:
            trainer: an object with `fit(model, step)`, or a function of that form; it trains
                the model of a step in place and returns a mapping of metrics.
            out: the run's folder; made when missing. None keeps everything in memory.
            callbacks: called with an `eslkit.driver.Event` when a step starts and ends.

        Returns:
            The trained model, of the user's own class, keys and shapes, and the records.

        Raises:
            InputError: the trainer is no trainer.
            StoreError: the folder is damaged, of another plan, in use, or cannot be written.
            TrainingError: the trainer raised, or weights or metrics are not finite.
        """
        network, records = walk(
            self.model if self.source is None else self.source,
            self.plan,
            surgery=self._surgery(),
            trainer=as_trainer(trainer),
            store=None if out is None else RunStore(out),
            callbacks=callbacks,
        )
        if fingerprint(network) != (self.plan.ending or self.plan.fingerprint):
            raise PlanError(
                f"The plan ends in a network of another form than {self.plan.model}: its last "
                f"step {self.steps[-1].name} does not lead back to the model. Make the plan again."
            )
        if self.source is not None and not self.plan.ending:
            weights = network.state_dict()
            network = clone(self.model)
            network.load_state_dict(weights, strict=True)
        return Result(network, records, self.plan)

    def _surgery(self) -> Callable[[nn.Module, Step], nn.Module]:
        def surgery(network: nn.Module, step: Step) -> nn.Module:
            made = apply_step(
                network,
                step,
                plan=self.plan,
                example_inputs=self.example_inputs,
                policies=self.policies,
                level=self.level,
                prepared=self.prepared.get(step.index),
                deepened=self.deepened,
                goal=self.model,
            )
            count = sum(parameter.numel() for parameter in nn.Module.parameters(made))
            if count != step.parameters:
                raise PlanError(
                    f"The network of step {step.name} has {count:,} parameters, its plan says "
                    f"{step.parameters:,}. Was the plan made with a level= of your own, or by "
                    "another version of eslkit? Pass the same again, or make the plan again."
                )
            return made

        return surgery


def schedule(
    model: nn.Module,
    *,
    recipe: str | None = None,
    width: float | Mapping[str, float] | None = None,
    depth: int | None = None,
    at: str | Sequence[str] | None = None,
    level: LevelBuilder | None = None,
    init: str | Policy | None = None,
    granularity: Granularity | None = None,
    factor: float | None = None,
    order: Order | None = None,
    expand_init: str | Policy | None = None,
    linear: int | None = None,
    example_inputs: Any = None,
    protect: Sequence[str] = (),
    iterations: Iterations | None = None,
    budget: float | None = None,
    shares: Shares | None = None,
    rates: Rates | None = None,
    scale_rates: bool | None = None,
    teach: float = 0.0,
    seed: int = 0,
) -> Schedule:
    """Plan the Expand-Shrink-Learning of a model.

    Args:
        model: the small model; it is copied and never touched.
        recipe: what holds for the options that are not given: `paper`, the paper's ESL3;
            `thrifty`, which spends one budget better; or `linear`, which expands only the inside
            of layers; see `eslkit.recipes.RECIPES`. None is `paper` without a `budget`; with one
            it is `linear`, or `thrifty` where another option says how to expand or shrink.
        width: width multiplier of the expansion; or a table of multipliers by group, layer,
            pattern (`decoder.*`) or level (`level 3`), where the last that matches counts and
            groups that none matches keep their width.
        depth: levels that the expansion inserts, into each bottleneck that it finds.
        at: another place for them: the module before which a level goes, or several.
        level: what builds a level instead of the model's own kind, as for `deepen`.
        init: policy that carries weights into a smaller network (the paper's INIT1), by name
            or a callable of your own. None leaves it to the recipe (`first`), or, where the
            expansion makes copies (`preserve`, `split`), is `merge`, the way back from them.
        granularity: what each shrinking step changes. `fine`: the paper's order, a level at a
            time from the bottleneck outwards, then two layers at a time. `one-shot`: all channels
            in one step, all inserted layers in the next. `direct`: both in one step. A number:
            layers a step. Or a list of steps, each of them a name or several (groups, layers,
            modules, patterns, levels) that come back to their widths; a table {name: channels as
            int, or multiplier as float}; or what is left, as `channels`, `fine channels`, `layers`,
            `fine layers`, `fine`, `one-shot`.
        factor: the least part of its width that a group keeps in one step, such as 0.75; the
            levels are then visited several times. None narrows each group in one go.
        order: which level is narrowed first: `outwards` from the bottleneck, as in the paper, or
            `inwards` from full resolution.
        expand_init: policy that fills the expanded network. `split` begins with what a trained
            model can do, `random` anew, as in the paper.
        linear: linear expansion: while a step is trained, every convolution and linear layer learns
            as a sum of itself and a product, with so many times as many channels inside; then it is
            multiplied out, and nothing is lost. With `width=1, depth=0` it is all that happens. 0:
            not at all. See `eslkit.surgery.linear`.
        example_inputs: what the model is called with: a tensor, a tuple of positional
            arguments or a mapping of keyword arguments; None infers it.
        protect: names of groups, layers or parameters that keep their width.
        iterations: optimizer updates of every step, by step name or pattern, or one number a
            step; None leaves them to the trainer.
        budget: instead, what the whole schedule may cost, in iterations of the small model, all
            FLOPs of training counted, a teacher's included.
        shares: with a budget, how large a step's share of the FLOPs is, by step name or pattern, or
            `first` or `last`: a number beside the 1 of others, or a percentage of the whole such as
            `"70%"`. None leaves it to the recipe: 70 % for the last step in `thrifty`, equal shares
            in `paper`.
        rates: how the learning rate runs, which the trainer asks `step.rate` for. `restart`: anew
            in every step, as in the paper. A number such as 0.1: anew, but after the first step
            only so high. `once`: one fall over all steps, which needs `iterations` or `budget`.
        scale_rates: whether `step.rate` is lower for networks larger than the small one: a network
            n times as wide, by the square root of what it computes, learns at an n-th of the rate,
            and layers with `linear=n` at the rate over the square root of n.
        teach: how much the network of the step before teaches the next, beside the truth; the
            trainer is given it as `step.teacher`. 0, as in the paper: not at all.
        seed: seed of the whole schedule; every step gets one of its own from it.

    Returns:
        The schedule: `print` it, `draw` it, `run` it.

    Raises:
        InputError: an argument cannot be used.
        PlanError: your own steps do not lead back to the model.
        EslError: the model cannot be traced, widened or deepened.
    """
    check_model(model)
    if init is None and expand_init in ("preserve", "split"):
        init = "merge"
    walk = (width, depth, at, level, init, granularity, factor, order, expand_init, shares)
    walked = bool(teach) or linear == 0 or any(option is not None for option in walk)
    told = recipe_of(recipe, budgeted=budget is not None, walked=walked).told(
        width=width,
        depth=depth,
        init=init,
        granularity=granularity,
        order=order,
        expand_init=expand_init,
        rates=rates,
        scale_rates=scale_rates,
        linear=linear,
    )
    check_linear(model, told.linear)
    choices = Choices(
        init=told.init,
        granularity=told.granularity,
        factor=factor,
        order=told.order,
        expand_init=told.expand_init,
        example_inputs=example_inputs,
        protect=tuple(protect),
        seed=seed,
        at=(at,) if isinstance(at, str) else tuple(at or ()),
        level=level,
        inside=bool(told.linear),
    )
    policies = own_policies(told.init, told.expand_init)
    made = plan_expansion(model, width=told.width, depth=told.depth, choices=choices)
    plan = told.spread(made.plan, iterations, budget, shares, teach)
    return Schedule(
        clone(model), plan, made.inputs, policies, None, made.prepared, level, made.deepened
    )


def schedule_from(
    source: nn.Module,
    *,
    target: nn.Module,
    recipe: str | None = None,
    init: str | Policy | None = None,
    granularity: Granularity | None = None,
    factor: float | None = None,
    order: Order | None = None,
    linear: int | None = None,
    example_inputs: Any = None,
    protect: Sequence[str] = (),
    iterations: Iterations | None = None,
    budget: float | None = None,
    shares: Shares | None = None,
    rates: Rates | None = None,
    scale_rates: bool | None = None,
    teach: float = 0.0,
    seed: int = 0,
) -> Schedule:
    """Plan the way down from a large model that exists to a small one of the same form.

    Args:
        source: the large model with the weights to begin from; it is copied and never touched.
        target: the small model, for its architecture; its weights do not count. Widths may
            differ; `source` may have levels that eslkit inserted, and more layers that keep their
            shape (residual blocks, repeated convolutions). Those leave before the channels do.
        recipe: as for `schedule`, and so are all other arguments; a budget is counted in iterations
            of `target`.
        init: as for `schedule`.
        granularity: as for `schedule`.
        factor: as for `schedule`.
        order: as for `schedule`.
        linear: as for `schedule`.
        example_inputs: with which both models run.
        protect: as for `schedule`.
        iterations: as for `schedule`.
        budget: as for `schedule`.
        shares: as for `schedule`.
        rates: as for `schedule`.
        scale_rates: as for `schedule`.
        teach: as for `schedule`; the large model teaches the first step.
        seed: as for `schedule`.

    Returns:
        The schedule. It begins with the first shrinking step; its result is a model of `target`'s
        class.

    Raises:
        PlanError: the two are not of one form, or your own steps do not lead from one to the other.
        InputError: an argument cannot be used.
        EslError: a model cannot be traced or narrowed.
    """
    check_model(source)
    check_model(target)
    told = recipe_of(recipe, budgeted=budget is not None).told(
        init=init,
        granularity=granularity,
        order=order,
        rates=rates,
        scale_rates=scale_rates,
        linear=linear,
    )
    check_linear(target, told.linear)
    choices = Choices(
        init=told.init,
        granularity=told.granularity,
        factor=factor,
        order=told.order,
        example_inputs=example_inputs,
        protect=tuple(protect),
        seed=seed,
    )
    made = plan_between(source, target=target, choices=choices)
    plan = told.spread(made.plan, iterations, budget, shares, teach)
    policies = own_policies(told.init)
    return Schedule(clone(target), plan, made.inputs, policies, clone(source), made.prepared)


def own_policies(*inits: str | Policy) -> dict[str, Policy]:
    """The user's own policies by name, as plans name them.

    Raises:
        InputError: two of them have one name.
    """
    policies: dict[str, Policy] = {}
    for init in inits:
        if isinstance(init, str):
            continue
        name = getattr(init, "__name__", "custom")
        if policies.setdefault(name, init) is not init:
            raise InputError(
                f"init= and expand_init= are two policies of one name, {name!r}; a plan tells "
                "policies apart by name. Give one of them another __name__."
            )
    return policies
