"""The adapter for Lightning: a LightningModule per step, resumed inside a step.

```python
trainer = LightningTrainer(MyModule, MyDataModule(), accelerator="gpu", checkpoint_every=500)
eslkit.schedule(model).run(trainer, out="runs/mine")
```

With `out=`, a checkpoint is kept in the step's folder; a step that was interrupted goes on
from it with the random generators as they were. The final bits are then those of an
uninterrupted run, provided that the data are a function of the generators (checkpoints at the
end of an epoch, the default) or of `trainer.global_step` (checkpoints in the middle).
"""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from eslkit.errors import InputError
from eslkit.trainer import StepContext

try:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import Callback, Checkpoint
except ImportError as error:
    raise InputError(
        "eslkit.lightning needs Lightning, which is not installed: pip install 'eslkit[lightning]'."
    ) from error

__all__ = ["CHECKPOINT", "LightningTrainer", "fit_resumably"]

CHECKPOINT = "last.ckpt"
"""The file that a training which was interrupted goes on from, in its folder."""

Data = Any  # a LightningDataModule, or whatever Trainer.fit takes as train_dataloaders
MakeModule = Callable[[nn.Module, StepContext], pl.LightningModule]

# What Lightning says of settings that this adapter chose, or of its own use of torch.
_KNOWN_WARNINGS = (
    r".*does not have many workers.*",
    r".*smaller than the logging interval.*",
    r".*LeafSpec.*is deprecated.*",
    r".*You're resuming from a checkpoint that ended before the epoch ended.*",
)


class LightningTrainer:
    """Trains every step with a Lightning Trainer of its own.

    Args:
        make_module: (network, step) -> LightningModule that trains that very network.
        data: a LightningDataModule or train dataloaders, or a function of the step that
            gives one.
        make_trainer: a function of the step that gives the Lightning Trainer; with it no
            other setting of the Trainer may be passed here.
        checkpoint_every: optimizer updates between checkpoints; None for the end of each epoch.
        quiet: keep Lightning's banners, tips and well-known warnings back.
        **trainer_kwargs: settings of the Lightning Trainer. `callbacks` and `logger` may be
            functions of the step. Unless set here, there is no logger, no progress bar, no
            model summary, one device, and `max_steps` is the step's iterations.

    Raises:
        InputError: settings that exclude each other.
    """

    def __init__(
        self,
        make_module: MakeModule,
        data: Data | Callable[[StepContext], Data],
        *,
        make_trainer: Callable[[StepContext], pl.Trainer] | None = None,
        checkpoint_every: int | None = None,
        quiet: bool = True,
        **trainer_kwargs: Any,
    ) -> None:
        if make_trainer is not None and trainer_kwargs:
            raise InputError(
                f"make_trainer= and {sorted(trainer_kwargs)} exclude each other; "
                "pass the settings inside make_trainer."
            )
        if checkpoint_every is not None and checkpoint_every < 1:
            raise InputError(f"checkpoint_every={checkpoint_every}: expected 1 or more, or None.")
        self.make_module, self.data, self.make_trainer = make_module, data, make_trainer
        self.checkpoint_every, self.quiet = checkpoint_every, quiet
        self.trainer_kwargs = trainer_kwargs

    def fit(self, model: nn.Module, step: StepContext) -> Mapping[str, float]:
        """Train the network of a step in place.

        Returns:
            What the module logged last, by name.

        Raises:
            InputError: neither the schedule nor the settings say how long to train.
        """
        with _quiet(active=self.quiet):
            trainer = self._trainer(step)
            module = self.make_module(model, step)
            data = self.data
            if callable(data) and not isinstance(data, pl.LightningDataModule):
                data = data(step)
        return fit_resumably(
            lambda: trainer,
            module,
            data,
            folder=step.folder,
            checkpoint_every=self.checkpoint_every,
            quiet=self.quiet,
        )

    def _trainer(self, step: StepContext) -> pl.Trainer:
        if self.make_trainer is not None:
            return self.make_trainer(step)
        settings = _settings(self.trainer_kwargs, step)
        callbacks = list(cast(Sequence[Callback], settings.pop("callbacks", None) or ()))
        asked = any(isinstance(callback, Checkpoint) for callback in callbacks)
        settings.setdefault("enable_checkpointing", asked)
        return pl.Trainer(callbacks=callbacks, **settings)


def fit_resumably(
    make_trainer: Callable[[], pl.Trainer],
    module: pl.LightningModule,
    data: Data,
    *,
    folder: Path | None = None,
    checkpoint_every: int | None = None,
    quiet: bool = True,
) -> dict[str, float]:
    """Train with Lightning, or go on from the checkpoint that an earlier call left.

    Args:
        make_trainer: gives the Lightning Trainer.
        module: what is trained.
        data: a LightningDataModule or train dataloaders.
        folder: keeps `last.ckpt`; None keeps nothing.
        checkpoint_every: optimizer updates between checkpoints; None for the end of each epoch.
        quiet: keep Lightning's banners, tips and well-known warnings back.

    Returns:
        What the module logged last, by name.
    """
    with _quiet(active=quiet), _interrupts():
        trainer = make_trainer()
        checkpoints = None
        if folder is not None:
            checkpoints = _Checkpoints(folder / CHECKPOINT, every=checkpoint_every)
            cast(list[Callback], cast(Any, trainer).callbacks).append(checkpoints)
        resume = None if checkpoints is None else checkpoints.found()
        if isinstance(data, pl.LightningDataModule):
            trainer.fit(module, datamodule=data, ckpt_path=resume)
        else:
            trainer.fit(module, train_dataloaders=data, ckpt_path=resume)
        before = {} if checkpoints is None else checkpoints.metrics
        return {**before, **_metrics(trainer)}


def _settings(given: Mapping[str, Any], step: StepContext) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "devices": 1,
        **given,
    }
    for name in ("callbacks", "logger"):
        if callable(settings.get(name)):
            settings[name] = settings[name](step)
    if callback := settings.get("callbacks"):
        settings["callbacks"] = [callback] if isinstance(callback, Callback) else callback
    if step.folder is not None:
        settings.setdefault("default_root_dir", step.folder)
    limits = {"max_steps", "max_epochs", "max_time"}
    if step.iterations is not None:
        settings.setdefault("max_steps", step.iterations)
        settings.setdefault("max_epochs", -1)
    elif not limits & settings.keys():
        raise InputError(
            f"Step {step.name}: nothing says how long to train. Pass iterations= to "
            "eslkit.schedule, or max_steps=, max_epochs= or max_time= to LightningTrainer."
        )
    return settings


def _metrics(trainer: pl.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


class _Checkpoints(Checkpoint):
    """Keeps one checkpoint of the step, complete or not at all, with the random generators.

    Between epochs it is kept when the next one starts: only there Lightning has stepped the
    schedulers that count epochs. Nothing is kept after the last update, where the store takes
    over; who is interrupted in between goes on from the checkpoint before.
    """

    def __init__(self, path: Path, *, every: int | None) -> None:
        self.path, self.every = path, every
        self.metrics: dict[str, float] = {}  # of the checkpoint: a validation may come no more
        self._due = False
        self._pending: dict[str, Any] | None = None

    def found(self) -> Path | None:
        """The checkpoint to go on from."""
        return self.path if self.path.is_file() else None

    def state_dict(self) -> dict[str, Any]:
        """What goes into the checkpoint beside Lightning's own state."""
        return {"random": _random_state(), "metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The generators of the checkpoint wait until the data are set up."""
        self._pending, self.metrics = state_dict["random"], state_dict["metrics"]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on between epochs, or keep a checkpoint of the epochs so far."""
        if self._pending is not None:
            _begin_epoch(trainer)
            self._restore()
        elif trainer.global_step and (self.every is None or self._due):
            self._save(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Go on inside an epoch; what setting up the data drew does not belong to it."""
        self._restore()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep a checkpoint where one is due."""
        if self.every is None:
            return
        self._due |= trainer.global_step % self.every == 0
        if self._due and not trainer.is_last_batch and trainer.global_step != trainer.max_steps:
            self._save(trainer)

    def _restore(self) -> None:
        if self._pending is not None:
            _set_random_state(self._pending)
            self._pending = None

    def _save(self, trainer: pl.Trainer) -> None:
        self._due, self.metrics = False, _metrics(trainer)
        part = self.path.with_suffix(".part")
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(self.path)


def _begin_epoch(trainer: pl.Trainer) -> None:
    """Let a resumed epoch begin as one that follows another.

    Lightning would take it for the rest of the epoch before: train on one batch, and keep the
    order of the examples that it drew while it set up the data.
    """
    loop = cast(Any, trainer.fit_loop)
    loop.epoch_loop.restarting = False
    if hasattr(loop, "_resuming_from_checkpoint"):
        loop._resuming_from_checkpoint = False


def _random_state() -> dict[str, Any]:
    """The generators as plain values and tensors, which load without pickle."""
    kind, numbers, place, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, internal, gauss_next = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": [str(kind), cast(Any, numbers).tolist(), int(place), int(has_gauss), float(gauss)],
        "python": [version, list(internal), gauss_next],
    }


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])
    kind, numbers, place, has_gauss, gauss = state["numpy"]
    numbers = np.array(numbers, dtype=np.uint32)
    np.random.set_state((kind, numbers, place, has_gauss, gauss))  # noqa: NPY002
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


@contextmanager
def _quiet(*, active: bool) -> Generator[None]:
    """Hold back what Lightning says about itself; errors and unknown warnings pass."""
    if not active:
        yield
        return
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _KNOWN_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


@contextmanager
def _interrupts() -> Generator[None]:
    """Ctrl-C stays a KeyboardInterrupt, and SIGINT as the user had it.

    Lightning turns it into SystemExit(1) and ignores SIGINT from then on.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
