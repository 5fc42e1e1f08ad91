"""Walks a plan: build the network of a step, have it trained, keep it, go on.

The driver knows nothing of surgery or training. What makes an interrupted run end in the
same bits as an uninterrupted one is done here:

- the network of step k is a function of the weights after step k-1 and of the step alone;
  what else a trainer left on a network (hooks, devices, flags) does not reach the next one;
- torch, numpy and random are seeded before every training, and given back afterwards;
- a new store keeps the weights that the run started from, and goes on from those.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from eslkit.errors import EslError, StoreError, TrainingError
from eslkit.manifest import StepRecord
from eslkit.plan import Plan, Step
from eslkit.ranks import rank
from eslkit.seeding import seeded
from eslkit.store import RunStore, tensors_of
from eslkit.surgery.depth import clone
from eslkit.surgery.linear import collapse, expand_linearly
from eslkit.trainer import StepContext, Trainer, checked_metrics

__all__ = ["Callback", "Event", "Surgery", "walk"]

logger = logging.getLogger("eslkit")

Surgery = Callable[[nn.Module, Step], nn.Module]
"""(network of the step before, step) -> network of the step, as a new module."""


@dataclass(frozen=True)
class Event:
    """Something that happened in a run, as callbacks are told it."""

    kind: Literal["started", "finished", "resumed", "failed", "interrupted"]
    """`resumed`: the step was found finished in the store."""
    step: Step
    num_steps: int
    record: StepRecord | None = None
    """What happened, for `finished` and `resumed`."""
    reason: str = ""
    """Why, for `failed` and `interrupted`."""


Callback = Callable[[Event], None]


class _Terminated(SystemExit):
    """SIGTERM, as an exception, so that the step can be marked."""


@dataclass(frozen=True)
class _Walk:
    """What stays the same while a plan is walked."""

    plan: Plan
    surgery: Surgery
    trainer: Trainer
    store: RunStore | None
    callbacks: Sequence[Callback]

    def tell(self, event: Event) -> None:
        detail = f": {event.reason}" if event.reason else ""
        place = f"{event.step.name} ({event.step.index} of {event.num_steps})"
        logger.info("step %s %s%s", place, event.kind, detail)
        for callback in self.callbacks:
            callback(event)


def walk(
    model: nn.Module,
    plan: Plan,
    *,
    surgery: Surgery,
    trainer: Trainer,
    store: RunStore | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[nn.Module, tuple[StepRecord, ...]]:
    """Run all steps of a plan that are not finished yet.

    Args:
        model: the small model; it is not touched.
        plan: what to do.
        surgery: builds the network of a step from that of the step before.
        trainer: trains each of them in place.
        store: the run's folder; None keeps everything in memory.
        callbacks: called with an `Event` when a step starts and ends.

    Returns:
        The network after the last step, and the record of every step.

    Raises:
        StoreError: the store is damaged, foreign, in use, or cannot be written.
        TrainingError: the trainer raised, or weights or metrics are not finite.
    """
    run = _Walk(plan, surgery, trainer, store, callbacks)
    network = clone(model)
    if store is None:
        return _steps(run, network, done=())
    start = tensors_of(network, leave_out=True)
    if store.is_finished():  # nothing will be written: the folder may be read-only
        store.check(plan)
    elif rank() > 0:
        store.join(plan)
    else:
        store.open_or_create(plan, start=start)
    try:
        kept = store.start_weights()
        if any(not torch.equal(kept[key], start[key]) for key in kept):
            logger.warning(
                "The model's weights differ from those that %s started from; the run's are used.",
                store.folder,
            )
        _load(network, kept)
        done = store.records()
        if len(done) == len(plan.steps) and _answer(run, network, store, done):
            return network, done
        with _sigterm_raises():
            return _steps(run, network, done=done)
    finally:
        store.close()


def _answer(run: _Walk, network: nn.Module, store: RunStore, done: tuple[StepRecord, ...]) -> bool:
    """A finished run that ends in the small model's form needs no surgery to be answered."""
    weights = store.weights(len(done))
    here = {key: tensor.shape for key, tensor in _tensors(network).items()}
    if here != {key: tensor.shape for key, tensor in weights.items()}:
        return False
    _load(network, weights)
    for step, record in zip(run.plan.steps, done, strict=True):
        run.tell(Event("resumed", step, len(done), record=record))
    return True


def _steps(
    run: _Walk, network: nn.Module, *, done: tuple[StepRecord, ...]
) -> tuple[nn.Module, tuple[StepRecord, ...]]:
    records = list(done)
    for step in run.plan.steps:
        before = network
        try:
            network = run.surgery(network, step)
        except EslError as error:
            if step.index <= len(done):
                raise
            _stop(run, step, error, where=_where(run, step))
        if step.index > len(done):
            weights, others, record = _train(
                run, network, step, teacher=_teacher(run, before, step)
            )
            _load(network, weights, others)
            records.append(record)
            kind: Literal["finished", "resumed"] = "finished"
        else:  # only the form counts, the weights come with the last finished step
            kind = "resumed"
            if step.index == len(done) and run.store is not None:
                _load(network, run.store.weights(step.index))
        run.tell(Event(kind, step, len(run.plan.steps), record=records[step.index - 1]))
    return network, tuple(records)


def _where(run: _Walk, step: Step) -> str:
    return f"Step {step.name} ({step.index} of {len(run.plan.steps)})"


def _teacher(run: _Walk, before: nn.Module, step: Step) -> nn.Module | None:
    """A copy of the network before, which the trainer may put on any device."""
    if not run.plan.teach or (step.index == 1 and run.plan.source is None):
        return None
    return clone(before).eval().requires_grad_(False)


def _train(
    run: _Walk, network: nn.Module, step: Step, *, teacher: nn.Module | None
) -> tuple[dict[str, Tensor], dict[str, object], StepRecord]:
    """Train a copy of the network, so that only its state_dict comes out of it."""
    store, num_steps = run.store, len(run.plan.steps)
    where = _where(run, step)
    trained = clone(network)
    if run.plan.linear:
        expand_linearly(trained, run.plan.linear, seed=step.seed)
    try:
        folder = _begun(store, step, network)
    except StoreError as error:
        _stop(run, step, error, where=where)
    context = StepContext(step, num_steps, folder, step.seed, run.plan, teacher)
    run.tell(Event("started", step, num_steps))
    began = time.monotonic()
    try:
        with seeded(step.seed + rank()):
            metrics = run.trainer.fit(trained, context)
        made = _collapsed(trained) if run.plan.linear else trained
        weights, others = tensors_of(made, leave_out=True), _others(made)
        _check_weights(weights, _tensors(network), where=where)
        record = StepRecord(
            name=step.name,
            index=step.index,
            metrics=checked_metrics(metrics, where=where),
            seconds=time.monotonic() - began,
            parameters=step.parameters,
            macs=step.macs,
            seed=step.seed,
            versions=_versions(),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if store is not None:
            weights, record = _keep(store, step, weights, record)
            if not _same(others, _others(network)):
                logger.warning(
                    "%s: training changed %s in the model's state_dict, which are no tensors and "
                    "are not stored: a run that goes on from here in another process has the "
                    "model's own.",
                    where,
                    ", ".join(map(repr, others)),
                )
    except BaseException as error:  # noqa: BLE001  KeyboardInterrupt and SystemExit are marked too
        _stop(run, step, error, where=where)
    return weights, others, record


def _collapsed(trained: nn.Module) -> nn.Module:
    """A copy of a network whose layers are single weights again; the trainer's own stays."""
    made = clone(trained)
    collapse(made)
    return made


def _begun(store: RunStore | None, step: Step, network: nn.Module) -> Path | None:
    """The folder for the trainer's own checkpoints; the step is marked as running."""
    if store is None:
        return None
    if rank() > 0:
        return store.trainer_folder(step)
    return store.begin(step, num_bytes=sum(t.nbytes for t in _tensors(network).values()))


def _keep(
    store: RunStore, step: Step, weights: dict[str, Tensor], record: StepRecord
) -> tuple[dict[str, Tensor], StepRecord]:
    """Rank 0 writes; the others take what it wrote."""
    if rank() == 0:
        store.finish(step, weights=weights, record=record)
        return weights, record
    store.wait_for(step)
    return store.weights(step.index), store.records()[step.index - 1]


def _stop(run: _Walk, step: Step, error: BaseException, *, where: str) -> NoReturn:
    """Mark the step, tell the callbacks, and raise the error in words that help."""
    state: Literal["interrupted", "failed"] = "failed"
    if isinstance(error, _Terminated):
        state, reason = "interrupted", "SIGTERM"
    elif not isinstance(error, Exception):
        state, reason = "interrupted", type(error).__name__
    elif isinstance(error, EslError):
        reason = str(error).removeprefix(f"{where}: ")
    else:
        reason = f"the trainer raised {type(error).__name__}: {error}"
    if run.store is not None and rank() == 0:
        with suppress(StoreError):  # a full or vanished disk: the first error counts
            run.store.stop(step, state=state, reason=reason)
    run.tell(Event(state, step, len(run.plan.steps), reason=reason))
    if isinstance(error, EslError) or not isinstance(error, Exception):
        raise error
    kept = ""
    if run.store is not None:
        kept = f" Finished steps are kept in {run.store.folder}; run again to go on from there."
    raise TrainingError(f"{where}: {reason.rstrip('.')}.{kept}") from error


def _check_weights(weights: dict[str, Tensor], before: dict[str, Tensor], *, where: str) -> None:
    """Training may change values, neither keys nor shapes, and all must be finite."""
    for key in sorted(weights.keys() | before.keys()):
        if key not in weights or key not in before:
            change = "removed" if key in before else "added"
            raise TrainingError(
                f"{where}: the trainer {change} {key!r} in the model's state_dict; it must train "
                "the model in place without changing its form. Wrap a copy, or undo it in fit."
            )
        tensor = weights[key]
        if tensor.shape != before[key].shape:
            shapes = f"{tuple(before[key].shape)} to {tuple(tensor.shape)}"
            raise TrainingError(f"{where}: the trainer changed the shape of {key!r} from {shapes}.")
        if not _all_finite(tensor) and _all_finite(before[key]):  # masks of -inf are fine
            raise TrainingError(
                f"{where}: {key!r} holds NaN or infinity after training; it diverged. Lower the "
                "learning rate or clip gradients, then run again: finished steps are kept."
            )


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """The state_dict's tensors themselves, not copied."""
    state = cast(dict[str, object], network.state_dict())
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _others(network: nn.Module) -> dict[str, object]:
    """What the state_dict has beside tensors (`get_extra_state`)."""
    state = cast(dict[str, object], network.state_dict())
    return {key: value for key, value in state.items() if not isinstance(value, Tensor)}


def _same(one: dict[str, object], other: dict[str, object]) -> bool:
    """Whether two lots of state are equal; what cannot be compared is taken for changed."""
    (here, form), (there, other_form) = tree_flatten(one), tree_flatten(other)
    if form != other_form:
        return False
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b
        for a, b in zip(here, there, strict=True)
    )


def _all_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() and not tensor.is_complex():
        return True
    total = tensor.sum()  # a quarter of the time; finite numbers may still add up to infinity
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())


def _load(
    network: nn.Module, weights: dict[str, Tensor], others: dict[str, object] | None = None
) -> None:
    """A state into a network of the same form, whatever its device.

    What is no tensor stays the network's own unless it is given.
    """
    try:
        network.load_state_dict({**(others or _others(network)), **weights}, strict=True)
    except RuntimeError as error:
        raise StoreError(
            "The stored weights do not fit the network that this eslkit builds for the step: "
            f"{error}. Use the version of eslkit that the run was started with, or another folder."
        ) from error


@contextmanager
def _sigterm_raises() -> Generator[None]:
    """Let SIGTERM mark the step before the process ends, unless the user handles it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    owner = os.getpid()

    def terminate(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked data worker: end it without the driver's clean-up
            os._exit(128 + number)
        raise _Terminated(128 + number)

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _versions() -> dict[str, str]:
    """What else the bits hang on: another torch or number of threads adds in another order."""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    versions["threads"] = str(torch.get_num_threads())
    with suppress(metadata.PackageNotFoundError):
        versions["eslkit"] = metadata.version("eslkit")
    return versions
