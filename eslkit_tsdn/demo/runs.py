"""The four trainings of the demo, each resumable, and what they are measured by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from eslkit.driver import Event, walk
from eslkit.files import write_atomically
from eslkit.plan import Plan, Step
from eslkit.recipes import RECIPES
from eslkit.schedule import Schedule, StepRecord, schedule
from eslkit.steps import apply_step
from eslkit.store import RunStore
from eslkit.trainer import StepContext
from eslkit.words import describe
from eslkit_tsdn.budget import Budget, Machine
from eslkit_tsdn.data.crops import BatchSource
from eslkit_tsdn.data.pairs import TestPair
from eslkit_tsdn.data.photos import Photo
from eslkit_tsdn.demo.progress import DemoProgress, Listener, Work
from eslkit_tsdn.demo.settings import LINEAR, LONG, SCRATCH, DemoSettings, Row
from eslkit_tsdn.demo.worker import ScratchWorker
from eslkit_tsdn.esl import FitTrainer
from eslkit_tsdn.evaluation import evaluate
from eslkit_tsdn.models import TSDN

__all__ = [
    "Runs",
    "at_table_size",
    "baseline",
    "esl_schedule",
    "follow",
    "small_network",
    "train_all",
    "train_scratch",
]

CHECKPOINT_EVERY = 50  # updates; a kill costs some two seconds, a checkpoint some hundredths
TABLE_SIZE = 512  # costs are told for 1x4x512x512, as in the paper's tables


def small_network(settings: DemoSettings) -> TSDN:
    """The small network as it is before any training; the caller's RNG is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return TSDN(settings.widths, settings.stages)


def esl_schedule(settings: DemoSettings, *, plan: Plan | None = None) -> Schedule:
    """(c): twice the widths and one level more, channels out step by step, the level out.

    Args:
        settings: which small network, and how long to train.
        plan: the plan, where it was made before: making it takes seconds.
    """
    model, inputs = small_network(settings), (torch.zeros(1, 4, settings.crop, settings.crop),)
    if plan is not None:
        return Schedule(model, plan, inputs)
    return schedule(
        model,
        width=2,
        depth=1,
        init="first",
        granularity="fine",
        expand_init="random",
        example_inputs=inputs,
        iterations=settings.iterations,
        seed=settings.seed,
    )


def planned(settings: DemoSettings, path: Path) -> Schedule:
    """The schedule of a run, with the plan in `path`, which is made the first time.

    Raises:
        PlanError: the file was changed, or written for another network.
    """
    if path.is_file():
        return esl_schedule(settings, plan=Plan.from_json(path.read_text("utf-8")))
    made = esl_schedule(settings)
    write_atomically(path, made.plan.to_json().encode())
    return made


def baseline(esl: Plan, *, name: str, iterations: int, recipe: str | None = None) -> Plan:
    """The plan of one training of the small network as it is, or by a recipe that leaves it so."""
    step = Step(
        index=1,
        name=name,
        phase="expand",
        width=1,
        init="preserve",
        parameters=esl.base_parameters,
        macs=esl.base_macs,
        iterations=iterations,
        seed=esl.steps[0].seed,
        picture=esl.steps[-1].picture,
    )
    told = {} if recipe is None else {key: getattr(RECIPES[recipe], key) for key in _TRAINED}
    return esl.model_copy(update={"width": 1.0, "depth": 0, "steps": (step,), **told})


_TRAINED = ("linear", "rates", "scale_rates")
"""What a recipe says of a training, beside the widths and levels of its network."""


@dataclass(frozen=True)
class DemoTrainer:
    """Trains with Lightning on noisy crops, then measures on the test pictures."""

    settings: DemoSettings
    photos: tuple[Photo, ...]
    pairs: tuple[TestPair, ...]
    listener: Listener
    worker: ScratchWorker | None = None
    """Trains beside, and is looked after here."""

    def fit(self, model: nn.Module, step: StepContext) -> Mapping[str, float]:
        """Train `model` in place; PSNR and SSIM at every ratio."""
        settings = self.settings
        FitTrainer(
            source=BatchSource(
                self.photos,
                batch_size=settings.batch_size,
                crop=settings.crop,
                gain=settings.gain,
                seed=f"{settings.seed}/{step.index}",
            ),
            budget=Budget(iterations=settings.iterations, lr=settings.lr),
            machine=Machine(device="cpu"),
            listener=self._tell,
            checkpoint_every=CHECKPOINT_EVERY,
        ).fit(model, step)
        return evaluate(model, self.pairs)

    def _tell(self, step: StepContext, iteration: int, loss: float) -> None:
        """Hands on how far it is, and stops when the worker has failed."""
        self.listener.update(step.name, iteration, loss)
        if self.worker is not None:
            self.worker.check()


@dataclass(frozen=True)
class Runs:
    """The trained networks, and all that table and page need."""

    scratch: nn.Module
    """(a)"""
    long: nn.Module
    """(b)"""
    expanded: nn.Module
    """The network that (c) starts from."""
    esl: nn.Module
    """(c)"""
    linear: nn.Module
    """(d)"""
    plan: Plan
    """Of (c)."""
    rows: tuple[Row, ...]
    """(a), (b), every step of (c), and (d)."""


def train_all(
    settings: DemoSettings,
    *,
    train: Sequence[Photo],
    pairs: tuple[TestPair, ...],
    out: Path,
    processes: int,
    show: Callable[[Sequence[Work]], DemoProgress],
) -> Runs:
    """Train (a) to (d), or go on where an earlier call was stopped.

    Args:
        settings: what to train, and for how long.
        train: photographs to draw crops from.
        pairs: what is measured on after every training.
        out: gets the plan, and one run folder for each of the four.
        processes: 2 for (a), (b) and (d) beside (c), 1 for one after the other.
        show: makes the progress for a list of trainings.

    Raises:
        EslError: a folder, a photograph or a setting that cannot be used, or a training
            that diverged.
    """
    esl = planned(settings, out / "plan.json")
    small = baselines(esl.plan, settings)
    beside = processes > 1 and not all(is_finished(out / plan.steps[0].name) for plan in small)
    works = [_work(plan, plan.steps[0], lane=beside) for plan in small]
    works += [_work(esl.plan, step, lane=False) for step in esl.steps]
    with show(works) as progress, ExitStack() as stack:
        train_small = partial(
            train_scratch, settings, train=train, pairs=pairs, out=out, listener=progress
        )
        worker = stack.enter_context(ScratchWorker(out, listener=progress)) if beside else None
        if worker is None:
            train_small()
        result = esl.run(
            DemoTrainer(settings, tuple(train), pairs, progress, worker),
            out=out / "esl",
            callbacks=[follow(progress)],
        )
        if worker is not None:
            worker.join()
        trained = train_small()  # finished by now, and read
    expanded = apply_step(esl.model, esl.steps[0], plan=esl.plan, example_inputs=esl.example_inputs)
    expanded.load_state_dict(RunStore(out / "esl").weights(1))
    networks = {name: network for name, (network, _) in trained.items()}
    first, second, last = (trained[name][1] for name in (SCRATCH, LONG, LINEAR))
    return Runs(
        scratch=networks[SCRATCH],
        long=networks[LONG],
        expanded=expanded,
        esl=result.model,
        linear=networks[LINEAR],
        plan=esl.plan,
        rows=(first, second, *_rows(esl.plan, result.records), last),
    )


def train_scratch(
    settings: DemoSettings,
    *,
    train: Sequence[Photo],
    pairs: tuple[TestPair, ...],
    out: Path,
    listener: Listener,
) -> dict[str, tuple[nn.Module, Row]]:
    """Train (a), (b) and (d), or go on with them; networks and rows by name."""
    esl = planned(settings, out / "plan.json")
    trained: dict[str, tuple[nn.Module, Row]] = {}
    for plan in baselines(esl.plan, settings):
        name = plan.steps[0].name
        network, records = walk(
            esl.model,
            plan,
            surgery=lambda network, step: network,
            trainer=DemoTrainer(settings, tuple(train), pairs, listener),
            store=RunStore(out / name),
            callbacks=[follow(listener)],
        )
        [row] = _rows(plan, records)
        trained[name] = network, row
    return trained


def baselines(esl: Plan, settings: DemoSettings) -> tuple[Plan, ...]:
    """The plans of (a), (b) and (d), which leave the small network as it is."""
    longer = settings.iterations * len(esl.steps)
    return (
        baseline(esl, name=SCRATCH, iterations=settings.iterations),
        baseline(esl, name=LONG, iterations=longer),
        baseline(esl, name=LINEAR, iterations=longer, recipe="linear"),
    )


def is_finished(folder: Path) -> bool:
    """Whether the only training of a run folder is finished."""
    store = RunStore(folder)
    return store.exists() and store.num_finished() == 1


def _work(plan: Plan, step: Step, *, lane: bool) -> Work:
    return Work(step.name, words(step, plan), step.iterations or 1, step.macs, int(lane))


def words(step: Step, plan: Plan) -> str:
    """What is trained in a step of one of the four plans."""
    if step.name == SCRATCH:
        return "(a) small, from scratch"
    if step.name == LONG:
        return "(b) small, from scratch, as long as all of (c)"
    if step.name == LINEAR:
        return "(d) as (b), its layers larger inside"
    return f"(c) {step.name}, step {step.index} of {len(plan.steps)}: {describe(step, plan)}"


def _rows(plan: Plan, records: Sequence[StepRecord]) -> tuple[Row, ...]:
    return tuple(
        Row(
            name=step.name,
            what=words(step, plan),
            parameters=step.parameters,
            macs=step.macs,
            iterations=step.iterations,
            seconds=round(record.seconds, 1),
            metrics=record.metrics,
        )
        for step, record in zip(at_table_size(plan).steps, records, strict=True)
    )


def at_table_size(plan: Plan) -> Plan:
    """The plan with costs of 1x4x512x512; convolutions cost in proportion to the area."""
    (batch, planes, height, width), *_ = plan.inputs
    scale = TABLE_SIZE**2 / (height * width * batch)
    steps = [step.model_copy(update={"macs": round(step.macs * scale)}) for step in plan.steps]
    scaled = {
        "inputs": ((1, planes, TABLE_SIZE, TABLE_SIZE),),
        "base_macs": round(plan.base_macs * scale),
        "steps": tuple(steps),
    }
    return plan.model_copy(update=scaled)


def follow(listener: Listener) -> Callable[[Event], None]:
    """What tells a listener of the steps of a run that begin and end."""

    def told(event: Event) -> None:
        if event.kind == "resumed":
            listener.keep(event.step.name)
        elif event.kind == "started":
            listener.begin(event.step.name)
        elif event.kind == "finished" and event.record is not None:
            listener.end(event.step.name, event.record.metrics)

    return told
