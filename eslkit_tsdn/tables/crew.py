"""Workers beside each other on one machine, looked after by the process that the user started.

Each worker is a process of its own with one thread, which is as fast as two for small networks,
and computes the same bits however many cores there are. It tells its progress as lines of JSON,
and ends when its standard input does: when its parent has ended, however. One that dies is started
again.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eslkit.errors import TrainingError

__all__ = ["Crew"]

LIVES = 5
"""How often a worker is started before it is given up."""


@dataclass
class Worker:
    """One process."""

    number: int
    process: subprocess.Popen[str]
    lives: int = LIVES
    doing: str = ""


@dataclass
class Crew:
    """So many workers on one reproduction."""

    out: Path
    """The reproduction's folder."""
    size: int
    """How many."""
    tell: Callable[[dict[str, Any]], None]
    """Called with every message; `kind` is `begin`, `update`, `end` or `failed`."""
    arguments: tuple[str, ...] = ()
    """What a worker is told beside the folder."""
    workers: dict[int, Worker] = field(default_factory=dict[int, "Worker"])
    """Those that are at work."""
    _messages: queue.Queue[tuple[int, dict[str, Any] | None]] = field(default_factory=queue.Queue)

    def work(self) -> None:
        """Wait until all workers have finished.

        Raises:
            TrainingError: a worker died again and again.
        """
        workers = self.workers
        workers.update({number: self._start(number) for number in range(self.size)})
        try:
            while workers:
                number, message = self._messages.get()
                worker = workers[number]
                if message is not None:
                    worker.doing = "" if message["kind"] in ("end", "failed") else message["id"]
                    self.tell({**message, "worker": number})
                    continue
                _end(worker.process, kill=False)
                if worker.process.returncode == 0:
                    del workers[number]
                else:
                    workers[number] = self._restarted(worker)
        finally:
            for worker in workers.values():
                _end(worker.process)

    def _restarted(self, worker: Worker) -> Worker:
        code = worker.process.returncode
        how = f"signal {-code}" if code < 0 else f"code {code}"
        if worker.lives <= 1:
            raise TrainingError(
                f"A worker has died {LIVES} times (last with {how}, in the training "
                f"{worker.doing or 'that it was about to begin'}). What is finished is kept in "
                f"{self.out}; a death by signal 9 is mostly want of memory: try --processes 1."
            )
        again = self._start(worker.number)
        again.lives = worker.lives - 1
        return again

    def _start(self, number: int) -> Worker:
        process = subprocess.Popen(
            [sys.executable, "-m", "eslkit_tsdn.tables.worker", str(self.out), *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        threading.Thread(target=self._read, args=(number, process), daemon=True).start()
        return Worker(number, process)

    def _read(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._messages.put((number, json.loads(line)))
        self._messages.put((number, None))


def _end(process: subprocess.Popen[str], *, kill: bool = True) -> None:
    """Wait for the end of a process, or bring it about."""
    if process.stdin is not None:
        process.stdin.close()
    if kill:
        process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
