"""Files that are there completely or not at all, and the lock that keeps two writers apart."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Generator
from pathlib import Path
from typing import IO

from eslkit.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows has no flock; two runs in one folder are then not noticed.
    fcntl = None

__all__ = ["FolderLock", "check_free_space", "sha256_file", "storing", "write_atomically"]


@contextlib.contextmanager
def storing(path: Path) -> Generator[None]:
    """Turn the operating system's refusals to write `path` into a StoreError that helps."""
    try:
        yield
    except OSError as error:
        raise StoreError(_explain(error, path)) from error


def _explain(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"No space left to write {path}. Free some space on that disk and start again; what "
            "was finished is kept."
        )
    if error.errno == errno.EFBIG:
        return (
            f"{path} is larger than this process may write (ulimit -f, or the file system). Raise "
            "the limit and start again; what was finished is kept."
        )
    if error.errno == errno.EROFS:
        return f"{path} is on a file system that is mounted read-only. Choose another folder."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"No permission to write {path}. Grant it, or choose another folder."
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{path} cannot be made, a file is in the way. Choose another folder."
    return f"{path} cannot be written ({error.strerror or error}). Choose another folder."


def write_atomically(path: Path, data: bytes) -> str:
    """Write a file so that a reader, or a crash, meets the old one or the new one.

    The data go to a temporary file beside it, reach the disk (fsync), and are renamed.

    Args:
        path: the file; its folder is made when it is missing.
        data: all of its bytes.

    Returns:
        SHA-256 of the data, 64 hexadecimal digits.

    Raises:
        StoreError: the disk is full, or the folder cannot be written.
    """
    part = path.with_name(path.name + ".part")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder: Path) -> None:
    """The rename itself reaches the disk only with the folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_free_space(folder: Path, num_bytes: int) -> None:
    """Refuse before hours of training what could not be saved after them.

    Raises:
        StoreError: the disk of `folder` has less than `num_bytes` free.
    """
    with storing(folder):
        free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise StoreError(
            f"The disk of {folder} has {_size(free)} free, the weights of the next step need "
            f"{_size(num_bytes)}. Free some space and start the same run again."
        )


def _size(num_bytes: int) -> str:
    small = num_bytes < 2**20
    return f"{num_bytes / 2**10:.1f} KiB" if small else f"{num_bytes / 2**20:.1f} MiB"


class FolderLock:
    """An advisory lock on a folder; the system gives it back when the process dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def acquire(self, *, patience: float = 2.0) -> None:
        """Take the lock.

        Args:
            patience: seconds to go on trying; others probe the lock for a moment.

        Raises:
            StoreError: another process holds it, or the lock file cannot be made.
        """
        with storing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("ab")
        end = time.monotonic() + patience
        while not _lock(file, exclusive=True):
            if time.monotonic() > end:
                file.close()
                raise StoreError(
                    f"Another process is running in {self._path.parent}. Wait until it has "
                    "finished, stop it, or choose another folder."
                )
            time.sleep(0.05)
        self._file = file
        _held.add(file)

    def release(self) -> None:
        """Give the lock back; nothing happens when it is not held."""
        if self._file is not None:
            _held.discard(self._file)
            self._file.close()
            self._file = None

    def is_held(self) -> bool:
        """Whether any process, this one included, holds the lock now."""
        try:
            file = self._path.open("rb")
        except OSError:
            return False
        with file:
            return not _lock(file, exclusive=False)


_held: set[IO[bytes]] = set()


def _close_in_child() -> None:
    """A forked data worker that outlives a killed run must not keep the run's lock."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _lock(file: IO[bytes], *, exclusive: bool) -> bool:
    """False when another holds it; True when taken, or where the system has no such locks."""
    if fcntl is None:
        return True
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system without locks: nothing can be said
        return True
    return True
