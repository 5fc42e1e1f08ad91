"""(a), (b) and (d) in a process of their own, beside (c): two cores, one thread each.

One thread a process is as fast as two threads where the networks are so small, does not
suffer when other programs want the cores, and computes the same bits however many there are.

The worker reads settings and plan from the run's folder, writes its progress as lines of JSON
to standard output, and ends when its standard input does: when its parent has ended, however.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eslkit.errors import EslError, TrainingError
from eslkit_tsdn.demo.progress import Listener

__all__ = ["ScratchWorker", "main"]


class ScratchWorker:
    """The parent's side: starts the worker, hands on its progress, ends it.

    Args:
        out: the run's folder, with settings and plan.
        listener: is told how far the worker's trainings are, from another thread.
    """

    def __init__(self, out: Path, *, listener: Listener) -> None:
        self.out, self.listener = out, listener
        self.problem = ""

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "eslkit_tsdn.demo.worker", str(self.out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def check(self) -> None:
        """Whether it is still well.

        Raises:
            TrainingError: it has failed; the message is its own.
        """
        code = self.process.poll()
        if code is None or code == 0:
            return
        self.reader.join()
        if self.problem:
            raise TrainingError(self.problem)
        cause = f"signal {-code}, perhaps for want of memory" if code < 0 else f"code {code}"
        raise TrainingError(
            f"The process that trains (a), (b) and (d) was ended ({cause}). What was finished is "
            "kept; the same command goes on from there."
        )

    def join(self) -> None:
        """Wait until it has finished.

        Raises:
            TrainingError: it has failed.
        """
        self.process.wait()
        self.reader.join()
        self.check()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message: dict[str, Any] = json.loads(line)
            kind = message.pop("kind")
            if kind == "problem":
                self.problem = message["text"]
            else:
                getattr(self.listener, kind)(**message)


class Messages:
    """The worker's side: a listener that writes lines."""

    def __init__(self) -> None:
        self.told = 0.0

    def keep(self, name: str) -> None:
        """This training was finished by an earlier call."""
        send("keep", name=name)

    def begin(self, name: str) -> None:
        """This training starts, or goes on."""
        self.told = 0.0
        send("begin", name=name)

    def update(self, name: str, iteration: int, loss: float) -> None:
        """So many updates of this training are made; told five times a second."""
        if time.monotonic() - self.told > 0.2:
            self.told = time.monotonic()
            send("update", name=name, iteration=iteration, loss=loss)

    def end(self, name: str, metrics: Mapping[str, float]) -> None:
        """This training is finished."""
        send("end", name=name, metrics=dict(metrics))


def send(kind: str, **message: Any) -> None:
    """One message to the parent."""
    sys.stdout.write(json.dumps({"kind": kind, **message}) + "\n")
    sys.stdout.flush()


def end_with_parent() -> None:
    """End at once when the parent has ended; the run's folder stands that."""
    sys.stdin.read()
    os._exit(1)


def main(out: Path) -> int:
    """Train (a), (b) and (d) of the run in a folder.

    Returns:
        The exit code: 0, or 2 where the parent was told of a problem.
    """
    threading.Thread(target=end_with_parent, daemon=True).start()
    from eslkit_tsdn.demo.command import prepared
    from eslkit_tsdn.demo.runs import train_scratch

    try:
        settings, train, pairs = prepared(out)
        train_scratch(settings, train=train, pairs=pairs, out=out, listener=Messages())
    except EslError as error:
        send("problem", text=str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
