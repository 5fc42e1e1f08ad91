"""How far a demo is: a bar in a terminal, one line per training elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from eslkit_tsdn.demo.settings import label

__all__ = ["DemoProgress", "Work", "say"]


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


class DemoProgress:
    """Shows training k of n, iterations, loss and the time left.

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
        self.kept: set[str] = set()
        self.paid, self.seconds = 0.0, 0.0
        self.current: Work | None = None
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=14),
            TextColumn("{task.fields[state]}"),
            console=console,
        )
        self.task = self.bar.add_task("", total=1, state="", visible=False)

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
        self.kept.add(name)

    def begin(self, name: str) -> None:
        """This training starts, or goes on."""
        work = self.current = self.works[name]
        place = list(self.works).index(name) + 1
        self.place = f"{place} of {len(self.works)}"
        self.started, self.first, self.shown = time.monotonic(), None, 0.0
        self.bar.update(
            self.task,
            description=f"[{self.place}] {label(name)}".replace("[", r"\["),
            total=work.iterations,
            completed=0,
            state="",
            visible=True,
        )

    def update(self, iteration: int, loss: float) -> None:
        """So many updates of the current training are made."""
        work, now = self.current, time.monotonic()
        assert work is not None
        if self.first is None:  # a resumed training does not start at 0
            self.started, self.first = now, iteration
        if now - self.shown < 0.2 and iteration < work.iterations:
            return
        self.shown = now
        done, seconds = iteration - self.first, now - self.started
        state = f"{iteration:,}/{work.iterations:,}  loss {loss:.4f}"
        if done:
            left = self._left(work, iteration, self._pace(work, done, seconds))
            own = seconds / done * (work.iterations - iteration)
            state += f"  {clock(own)} left, all {clock(left)}"
        self.bar.update(self.task, completed=iteration, state=state)

    def end(self, name: str, metrics: Mapping[str, float]) -> None:
        """This training is finished."""
        work, seconds = self.works[name], time.monotonic() - self.started
        if self.first is not None:
            self.paid += self._weight(work) * (work.iterations - self.first)
            self.seconds += seconds
        self.kept.add(name)
        psnr = ", ".join(
            f"{value:.2f} at {key.removeprefix('psnr_')}"
            for key, value in metrics.items()
            if key.startswith("psnr_")
        )
        self.bar.update(self.task, visible=False)
        text = f"[{self.place}] {work.title}: {work.iterations:,} iterations"
        say(self.console, f"{text}, {seconds:.0f} s; PSNR {psnr}")

    def _weight(self, work: Work) -> float:
        return work.macs + self.overhead

    def _pace(self, work: Work, done: int, seconds: float) -> float:
        """Seconds per weighted update, over all that this call has trained."""
        return (self.seconds + seconds) / (self.paid + self._weight(work) * done)

    def _left(self, current: Work, iteration: int, pace: float) -> float:
        waiting = [
            self._weight(work) * work.iterations
            for work in self.works.values()
            if work is not current and work.name not in self.kept
        ]
        return pace * (sum(waiting) + self._weight(current) * (current.iterations - iteration))


def say(console: Console, text: str) -> None:
    """One line, as it is: no markup, and no line breaks that a pipe would keep."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
