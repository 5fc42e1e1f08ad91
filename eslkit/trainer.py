"""The Protocol between a schedule and whoever trains.

A trainer trains the network that it is given, in place, and returns metrics. It may be
an object with `fit(model, step)`, or a plain function of that form. What it is told about
the step is a `StepContext`; in `step.folder` it may keep checkpoints of its own, and what it
finds there when it is called again for the same step is what it left when it was interrupted.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from eslkit.errors import InputError, TrainingError
from eslkit.plan import Plan, Step

__all__ = ["StepContext", "Trainer", "TrainerLike", "as_trainer", "checked_metrics", "cosine"]


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0: the usual shape of a learning rate.

    Args:
        progress: how much of the training is done, from 0 to 1.
    """
    return 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


@dataclass(frozen=True)
class StepContext:
    """What a trainer is told about the step that it trains."""

    step: Step
    """The step as planned."""
    num_steps: int
    """Steps in the whole schedule."""
    folder: Path | None
    """A folder for the trainer's own checkpoints of this step; None without `out=`."""
    seed: int
    """Seed of this step; torch, numpy and random are seeded with it (plus the rank)."""
    plan: Plan
    """The whole plan."""
    teacher: nn.Module | None = None
    """The trained network of the step before, where the plan lets it teach (`schedule(teach=)`):
    in inference mode, without gradients, on the device that the step before left it on. Compare
    with what it says of the same batch, weighed by `teach`. None in the first step of an expansion,
    and where it does not teach."""

    @property
    def teach(self) -> float:
        """Weight of the teacher beside the truth; 0 without one."""
        return 0.0 if self.teacher is None else self.plan.teach

    def rate(
        self,
        iteration: int,
        *,
        iterations: int | None = None,
        shape: Callable[[float], float] = cosine,
        warmup: int = 0,
    ) -> float:
        """Factor of the learning rate for an update, as `schedule(rates=)` wants it.

        `restart` runs through the shape in every step, a number does so at that part of the height
        in all steps but the first, `once` runs through it once over all steps. With `scale_rates`
        all of it is lower by as much as the step's network is wider than the small one: by the
        square root of what more it computes; and, with `linear`, by the square root of that.

        Args:
            iteration: updates made in this step, from 0.
            iterations: updates of this step in all; None for those of the plan.
            shape: share of the training that is done, from 0 to 1 -> factor.
            warmup: updates at the beginning of every step over which the rate rises to that, in
                equal parts. A new optimizer and large networks want some.

        Raises:
            InputError: it is not known how many updates the step has, or, for `once`, any step.
        """
        rise = min(1.0, (iteration + 1) / max(1, warmup)) * self._height()
        rates = self.plan.rates
        if rates == "once":
            counts = [self._updates(step, None) for step in self.plan.steps]
            done = sum(counts[: self.index - 1]) + iteration
            return rise * shape(done / sum(counts))
        factor = 1.0 if rates == "restart" or self.index == 1 else rates
        return rise * factor * shape(iteration / self._updates(self.step, iterations))

    def _height(self) -> float:
        plan, macs = self.plan, self.step.macs
        if not plan.scale_rates:
            return 1.0
        wider = macs / plan.base_macs if plan.base_macs else 1.0
        # Adam moves a weight by both factors of its product, too.
        return 1 / math.sqrt(max(1.0, wider) * max(1, plan.linear))

    def _updates(self, step: Step, given: int | None) -> int:
        count = given or step.iterations
        if count is None:
            raise InputError(
                f"The learning rate of step {self.name} cannot be told: the plan leaves the "
                f"updates of {step.name} to the trainer. Plan with iterations= or budget=."
            )
        return count

    @property
    def index(self) -> int:
        """Place of the step in the plan, counted from 1."""
        return self.step.index

    @property
    def name(self) -> str:
        """Short name of the step: EL, CSL1, ..., LSL1, ..."""
        return self.step.name

    @property
    def phase(self) -> Literal["expand", "channels", "layers", "both"]:
        """The phase that the step belongs to."""
        return self.step.phase

    @property
    def iterations(self) -> int | None:
        """Optimizer updates planned for this step; None leaves them to the trainer."""
        return self.step.iterations


@runtime_checkable
class Trainer(Protocol):
    """Whoever trains the network of a step."""

    def fit(self, model: nn.Module, step: StepContext) -> Mapping[str, float] | None:
        """Train `model` in place.

        Args:
            model: the network of this step, with the weights that it inherited.
            step: which step it is, how long to train, where to keep checkpoints.

        Returns:
            Metrics by name, each a finite number; an empty mapping or None for none.
        """
        ...


TrainFunction = Callable[[nn.Module, StepContext], Mapping[str, float] | None]
TrainerLike = Trainer | TrainFunction


@dataclass(frozen=True)
class _FunctionTrainer:
    function: TrainFunction

    def fit(self, model: nn.Module, step: StepContext) -> Mapping[str, float] | None:
        return self.function(model, step)


def as_trainer(trainer: TrainerLike) -> Trainer:
    """A Trainer from an object with `fit`, or from a plain function of the same form.

    Raises:
        InputError: it is neither; a class instead of an instance; or Lightning's own
            Trainer, which has to be wrapped by `eslkit.lightning.LightningTrainer`.
    """
    subject = cast(object, trainer)
    kind = f"{type(subject).__module__}.{type(subject).__qualname__}"
    if isinstance(subject, type):
        raise InputError(
            f"The trainer is the class {subject.__qualname__}, not an instance of it; "
            f"pass {subject.__qualname__}(...)."
        )
    if kind.startswith(("lightning.pytorch.", "pytorch_lightning.")):
        raise InputError(
            f"The trainer is a {kind}; Lightning is used through the adapter: "
            "eslkit.lightning.LightningTrainer(make_module, data, max_epochs=...)."
        )
    if callable(getattr(subject, "fit", None)):
        return cast(Trainer, subject)
    if callable(subject) and not isinstance(subject, nn.Module):
        return _FunctionTrainer(cast(TrainFunction, subject))
    raise InputError(
        f"The trainer is a {kind}; expected an object with fit(model, step), or a function "
        "of (model, step), that trains the model in place and returns a mapping of metrics."
    )


def checked_metrics(metrics: object, *, where: str) -> dict[str, float]:
    """The metrics as plain finite floats, in the order given.

    Args:
        metrics: what a trainer returned: a mapping of names to numbers or to tensors with
            one element, or None.
        where: the step, as the error is to name it.

    Raises:
        TrainingError: it is no such mapping, or a value is NaN or infinite.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise TrainingError(
            f"{where}: the trainer returned a {type(metrics).__name__}, expected a mapping of "
            "names to numbers; return {} when there is nothing to report."
        )
    checked: dict[str, float] = {}
    for name, value in cast(Mapping[object, object], metrics).items():
        number = _as_float(value)
        if not isinstance(name, str) or number is None:
            raise TrainingError(
                f"{where}: metric {name!r} is a {type(value).__name__}, expected a text name "
                "and one number; convert it, or leave it out."
            )
        if not math.isfinite(number):
            raise TrainingError(
                f"{where}: metric {name!r} is {number}; training diverged. Lower the learning "
                "rate, clip gradients or look at the data, then run again: finished steps are kept."
            )
        checked[name] = number
    return checked


def _as_float(value: object) -> float | None:
    if isinstance(value, Tensor):
        return float(value.detach()) if value.numel() == 1 else None
    if isinstance(value, numbers.Real):
        return float(value)
    item = getattr(value, "item", None)
    return _as_float(item()) if callable(item) and getattr(value, "size", 0) == 1 else None
