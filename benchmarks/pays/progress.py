"""How far a run is, kept on disk: hours of training survive an interruption."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

__all__ = ["Kept", "Progress"]


class Stateful(Protocol):
    """What can be put down and taken up again: networks, optimizers, learning rates."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class Progress:
    """The trainings of one run, in the order in which it comes to them.

    A run that begins again does all that costs little as before, and finds here the state that
    each of its trainings was left in. So it ends with the very same numbers.
    """

    def __init__(self, folder: Path, *, every: float = 300.0) -> None:
        """
        Args:
            folder: of this run alone.
            every: seconds between two checkpoints of a training.
        """
        self.folder, self.every = folder, every
        self._count, self._began, self._before = 0, time.perf_counter(), 0.0

    def training(self) -> Kept:
        """A place for the next training."""
        self._count += 1
        return Kept(self, self.folder / f"training-{self._count}.pt")

    @property
    def seconds(self) -> float:
        """Spent on the run, those of interrupted tries up to their last checkpoint among them."""
        return self._before + time.perf_counter() - self._began

    def found(self, seconds: float) -> None:
        """A checkpoint says that the run had taken so long."""
        self._before = max(self._before, seconds)

    def clear(self) -> None:
        """The run is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Kept:
    """The state of one training."""

    def __init__(self, progress: Progress, file: Path) -> None:
        self.progress, self.file = progress, file

    def updates(
        self, iterations: int, parts: dict[str, Stateful], told: dict[str, Any]
    ) -> Iterator[int]:
        """The updates that are still to be made; between them, and at the end, checkpoints.

        Args:
            iterations: updates of the whole training.
            parts: name -> network, optimizer and whatever else has a state; set to where the
                training was left.
            told: what is noted of it; what was noted is added.
        """
        begun = self._load(parts, told) if self.file.exists() else 0
        last = time.monotonic()
        for index in range(begun, iterations):
            if time.monotonic() - last > self.progress.every:
                self._save(index, parts, told)
                last = time.monotonic()
            yield index
        if begun < iterations:
            self._save(iterations, parts, told)

    def _load(self, parts: dict[str, Stateful], told: dict[str, Any]) -> int:
        state = torch.load(self.file, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
        told.update(state["told"])
        self.progress.found(state["seconds"])
        return state["done"]

    def _save(self, done: int, parts: dict[str, Stateful], told: dict[str, Any]) -> None:
        """What was there stays until the new one is whole."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.file.with_suffix(".new")
        torch.save(
            {
                "done": done,
                "told": told,
                "seconds": self.progress.seconds,
                "parts": {name: part.state_dict() for name, part in parts.items()},
            },
            fresh,
        )
        fresh.replace(self.file)
