"""Keeps native code from printing to the process's stderr."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["native_stderr_off"]

_stderr_lock = threading.Lock()
_stderr_users = 0
_stderr_saved = -1


@contextmanager
def native_stderr_off() -> Generator[None]:
    """Keeps what LibRaw prints beside the error that it reports from the process's stderr.

    Counted, so that several threads can decode at once and the last one restores it.
    """
    global _stderr_users, _stderr_saved  # noqa: PLW0603
    with _stderr_lock:
        if _stderr_users == 0:
            _stderr_saved = _divert_stderr()
        _stderr_users += 1
    try:
        yield
    finally:
        with _stderr_lock:
            _stderr_users -= 1
            if _stderr_users == 0 and _stderr_saved >= 0:
                os.dup2(_stderr_saved, 2)
                os.close(_stderr_saved)
                _stderr_saved = -1


def _divert_stderr() -> int:
    """Points descriptor 2 at nothing; returns a copy of the old one, -1 where there is none."""
    try:
        saved = os.dup(2)
    except OSError:
        return -1
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    return saved
