"""How far a demo is: bars in a terminal, one line per training elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from eslkit_tsdn.demo.settings import label

__all__ = ["DemoProgress", "Listener", "Work", "say"]


class Listener(Protocol):
    """Whoever is told how far trainings are; they are named as in the table."""

    def keep(self, name: str) -> None:
        """This training was finished by an earlier call."""
        ...

    def begin(self, name: str) -> None:
        """This training starts, or goes on."""
        ...

    def update(self, name: str, iteration: int, loss: float) -> None:
        """So many updates of this training are made."""
        ...

    def end(self, name: str, metrics: Mapping[str, float]) -> None:
        """This training is finished."""
        ...


@dataclass(frozen=True)
class Work:
    """One training: what it is called, and how long it is."""

    name: str
    """Short name, as in the table."""
    title: str
    """What the line says."""
    iterations: int
    """Updates."""
    macs: int
    """Multiply-accumulates of one forward pass; time is guessed from it."""
    lane: int = 0
    """Trainings of one lane follow each other; lanes run beside each other."""
    label: str = ""
    """What a bar is called; the demo's own label of the name where it is empty."""


@dataclass
class _Pace:
    """What one lane's trainings took in this call."""

    paid: float = 0.0
    seconds: float = 0.0


@dataclass
class _Running:
    """A training in hand."""

    work: Work
    task: TaskID
    began: float
    since: float | None = None
    """When the first update was seen; a resumed training does not start at 0."""
    first: int = 0
    iteration: int = 0
    shown: float = 0.0


class DemoProgress:
    """Shows every training in hand, with iterations, loss and the time left.

    Args:
        works: all trainings, in order.
        console: where to write.
    """

    def __init__(self, works: Sequence[Work], *, console: Console) -> None:
        self.works = {work.name: work for work in works}
        self.console = console
        # An update of a small network costs more than its share of MACs: reading memory,
        # calling kernels. Two more forward passes of the smallest fit what was measured.
        self.overhead = 2 * min(work.macs for work in works)
        self.done: set[str] = set()
        self.running: dict[str, _Running] = {}
        self.paces = {work.lane: _Pace() for work in works}
        self.lock = threading.RLock()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=14),
            TextColumn("{task.fields[state]}"),
            console=console,
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def keep(self, name: str) -> None:
        """This training was finished by an earlier call."""
        with self.lock:
            self.done.add(name)

    def begin(self, name: str) -> None:
        """This training starts, or goes on."""
        with self.lock:
            work = self.works[name]
            task = self.bar.add_task(work.label or label(name), total=work.iterations, state="")
            self.running[name] = _Running(work, task, began=time.monotonic())

    def update(self, name: str, iteration: int, loss: float) -> None:
        """So many updates of this training are made."""
        with self.lock:
            running, now = self.running[name], time.monotonic()
            if running.since is None:
                running.since, running.first = now, iteration
            running.iteration = iteration
            if now - running.shown < 0.2 and iteration < running.work.iterations:
                return
            running.shown = now
            state = f"{iteration:,}/{running.work.iterations:,}  loss {loss:.4f}"
            own = self._seconds_per_weight(running.work.lane) * self._ahead(running)
            if own:
                state += f"  {clock(own)} left, all {clock(self._left())}"
            self.bar.update(running.task, completed=iteration, state=state)

    def end(self, name: str, metrics: Mapping[str, float]) -> None:
        """This training is finished."""
        with self.lock:
            running, now = self.running.pop(name), time.monotonic()
            work, pace = running.work, self.paces[running.work.lane]
            if running.since is not None:
                pace.paid += self._weight(work) * (work.iterations - running.first)
                pace.seconds += now - running.since
            self.done.add(name)
            self.bar.remove_task(running.task)
            psnr = ", ".join(
                f"{value:.2f} at {key.removeprefix('psnr_')}"
                for key, value in metrics.items()
                if key.startswith("psnr_")
            )
            text = f"[{len(self.done)} of {len(self.works)}] {work.title}: {work.iterations:,} "
            seconds = now - running.began
            say(self.console, f"{text}iterations, {seconds:.0f} s; PSNR {psnr}")

    def _weight(self, work: Work) -> float:
        return work.macs + self.overhead

    def _ahead(self, running: _Running) -> float:
        """What is left of a training, in weighted updates."""
        return self._weight(running.work) * (running.work.iterations - running.iteration)

    def _seconds_per_weight(self, lane: int) -> float:
        """Seconds a weighted update, over what this call trained in a lane; 0 if unknown."""
        pace, now = self.paces[lane], time.monotonic()
        paid, seconds = pace.paid, pace.seconds
        for running in self.running.values():
            if running.work.lane == lane and running.since is not None:
                paid += self._weight(running.work) * (running.iteration - running.first)
                seconds += now - running.since
        return seconds / paid if paid else 0.0

    def _left(self) -> float:
        """Seconds until the last lane is through."""
        known = [pace for lane in self.paces if (pace := self._seconds_per_weight(lane))]
        left: list[float] = []
        for lane in self.paces:
            ahead = sum(
                self._ahead(self.running[work.name])
                if work.name in self.running
                else self._weight(work) * work.iterations
                for work in self.works.values()
                if work.lane == lane and work.name not in self.done
            )
            left.append(ahead * (self._seconds_per_weight(lane) or max(known, default=0.0)))
        return max(left)


def say(console: Console, text: str) -> None:
    """One line, as it is: no markup, and no line breaks that a pipe would keep."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
