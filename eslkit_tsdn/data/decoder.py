"""Camera files decoded in processes of their own, so that one that crashes or hangs harms no other.

A decoder reads jobs as lines of JSON from its standard input and answers each with a line. It
ends when its standard input does: when its parent has ended, however.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from eslkit.errors import InputError, StoreError
from eslkit.files import write_atomically
from eslkit_tsdn.data.sid_folder import CameraFile
from eslkit_tsdn.data.store import Frame
from eslkit_tsdn.raw import read_raw

__all__ = ["SID_WHITE", "Decoder", "decode", "main"]

SID_WHITE = 16383.0
"""White level of the Sony A7S II's files. SID, ELD and all that follow them take this one, whatever
the file or LibRaw says: LibRaw takes the end of the curve for compressed files of Sony's (17220 for
the A7 II; its issue 82)."""

_SID_CAMERA = "ILCE-7SM2"
_COMMAND = (sys.executable, "-m", "eslkit_tsdn.data.decoder")


def decode(file: CameraFile, *, store: Path) -> Frame:
    """Decodes a camera file into a store; the file is there completely or not at all.

    Args:
        file: the camera file.
        store: the store's folder.

    Returns:
        What is known about it.

    Raises:
        InputError: the file cannot be read, or is no Bayer picture.
        StoreError: the store cannot be written.
    """
    status = _status(file.path)
    raw = read_raw(file.path)
    matrix = None if raw.color_matrix is None else tuple(map(tuple, raw.color_matrix.tolist()))
    white = raw.white
    if _SID_CAMERA in (raw.camera or "") and max(raw.black) < SID_WHITE:
        white = SID_WHITE
    buffer = io.BytesIO()
    np.save(buffer, raw.mosaic.astype("<u2", copy=False), allow_pickle=False)
    frame = Frame(
        name=file.path.name,
        role=file.role,
        source_size=status[0],
        source_mtime_ns=status[1],
        size=buffer.tell(),
        sha256="",
        height=raw.mosaic.shape[0],
        width=raw.mosaic.shape[1],
        low=int(raw.mosaic.min()),
        high=int(raw.mosaic.max()),
        pattern=raw.pattern,
        black=raw.black,
        white=white,
        white_balance=raw.white_balance,
        color_matrix=matrix,
        exposure=raw.exposure,
        iso=raw.iso,
        camera=raw.camera,
    )
    digest = write_atomically(store / frame.path, buffer.getvalue())
    return frame.model_copy(update={"sha256": digest})


class Decoder:
    """A process that decodes one file after the other, and is started anew when it dies.

    Args:
        store: folder of the store.
        limit_s: a file that takes longer, in seconds, is given up.
    """

    def __init__(self, store: Path, *, limit_s: float) -> None:
        self.store, self.limit_s = store, limit_s
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process; what it is writing is not there then."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            _close(process)
        self._errors.close()

    def decode(self, file: CameraFile) -> Frame:
        """Decodes a file into the store.

        Raises:
            InputError: the file cannot be read, is no Bayer picture, makes the decoder crash, or
                takes too long.
            StoreError: the store cannot be written.
        """
        if self._errors.closed:
            raise StoreError(f"{self.store}: stopped")
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()
        timer = threading.Timer(self.limit_s, lambda: (late.set(), process.kill()))
        timer.daemon = True
        timer.start()
        try:
            job = {"role": file.role, "path": str(file.path), "limit_s": self.limit_s}
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = ""
        finally:
            timer.cancel()
        if not answer.endswith("\n"):
            raise InputError(f"{file.path} {self._autopsy(process, late=late.is_set())}")
        return _told(json.loads(answer))

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*_COMMAND, str(self.store)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        assert process.stdout is not None
        process.stdout.readline()  # imports take seconds, and are no fault of the file's
        return process

    def _autopsy(self, process: subprocess.Popen[str], *, late: bool) -> str:
        """What a file did to the process that was decoding it."""
        process.wait()
        _close(process)
        self._process = None
        if late or process.returncode == -getattr(signal, "SIGALRM", 0):
            return f"took longer than {self.limit_s:g} s to decode; it is damaged"
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            return f"makes the decoder crash ({name}); it is damaged, or memory ran out"
        self._errors.seek(0)
        last = self._errors.read().decode("utf-8", errors="replace").strip().splitlines()[-1:]
        return f"makes the decoder fail ({''.join(last)[:200] or process.returncode})"


def _close(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        try:
            if pipe is not None:
                pipe.close()
        except BrokenPipeError:
            pass


def _told(answer: dict[str, Any]) -> Frame:
    if "refused" in answer:
        raise InputError(answer["refused"])
    if "stopped" in answer:
        raise StoreError(answer["stopped"])
    return Frame.model_validate(answer["frame"])


def _status(path: Path) -> tuple[int, int]:
    """Size and time of last change of a file."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def _answer(job: dict[str, Any], *, store: Path) -> dict[str, Any]:
    try:
        frame = decode(CameraFile(job["role"], Path(job["path"])), store=store)
    except InputError as error:
        return {"refused": str(error)}
    except MemoryError:
        return {"refused": f"{job['path']} needs more memory than there is"}
    except StoreError as error:
        return {"stopped": str(error)}
    return {"frame": frame.model_dump(mode="json")}


def main(store: Path) -> None:
    """The decoder's side: answers jobs until standard input ends."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        job = json.loads(line)
        if hasattr(signal, "setitimer"):
            # Should the parent be killed while native code hangs: the alarm ends the process.
            signal.setitimer(signal.ITIMER_REAL, job["limit_s"] + 5)
        sys.stdout.write(json.dumps(_answer(job, store=store)) + "\n")
        sys.stdout.flush()
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # at once, not after torch has been taken down: the parent may be gone
