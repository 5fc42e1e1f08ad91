"""SID's camera files decoded into a store, in several processes; goes on where it was stopped."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eslkit.errors import InputError, StoreError
from eslkit.files import FolderLock, storing, write_atomically
from eslkit_tsdn.data.decoder import Decoder
from eslkit_tsdn.data.sid import parse_name
from eslkit_tsdn.data.sid_folder import CameraFile, Dataset
from eslkit_tsdn.data.store import MANIFEST, Frame, Skipped, Store, StoreManifest, read_manifest

__all__ = ["PROBLEMS", "BadFilesError", "prepare"]

JOURNAL = "decoded.jsonl"
"""What is decoded while the manifest is not written yet: a line for every file."""

PROBLEMS = "problems.txt"
"""Every file that was amiss at the last attempt."""

_SPARE = 64 * 2**20


class BadFilesError(InputError):
    """Files of the dataset are missing, unreadable or do not belong together."""

    def __init__(self, message: str, *, files: tuple[Skipped, ...]) -> None:
        super().__init__(message)
        self.files = files
        """All of them."""


def prepare(
    dataset: Dataset,
    out: str | Path,
    *,
    processes: int | None = None,
    skip_bad: bool = False,
    limit_s: float = 120.0,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> Store:
    """Decodes a dataset into a store.

    Every file is there completely or not at all. Killed at any moment, or stopped by files that
    are amiss, the same call goes on from there. Files that have changed since are decoded again.

    Args:
        dataset: what `find_dataset` found.
        out: the store's folder.
        processes: how many decode beside each other; None for one per core, 8 at most.
        skip_bad: go on without the files that are amiss, and the pairs that they belong to.
        limit_s: a file that takes longer to decode, in seconds, counts as unreadable.
        progress: is called with the number of files that are done, and of all.

    Returns:
        The store, opened.

    Raises:
        BadFilesError: files are missing, unreadable or mismatched (all of them are listed), and
            `skip_bad` is not set.
        InputError: no file is usable.
        StoreError: the disk is full or too small, the folder cannot be written, or another
            process is preparing it.
    """
    out = Path(out)
    if out.is_dir() and not _is_ours(out):
        raise StoreError(f"{out} holds other files; choose an empty or a new folder for the store.")
    lock = FolderLock(out / ".lock")
    lock.acquire()
    try:
        _tidy(out)
        recorded = _recorded(out, dataset)
        known = _known(out, dataset.files, recorded)
        frames, refused = _decode_all(
            dataset.files, out, known=known, processes=processes, limit_s=limit_s, progress=progress
        )
        return _finish(dataset, out, frames=frames, refused=refused, skip_bad=skip_bad)
    finally:
        _tidy(out)
        lock.release()


def _tidy(out: Path) -> None:
    """Takes away what was being written when a process was killed."""
    for role in ("short", "long"):
        for part in (out / role).glob("*.part"):
            part.unlink(missing_ok=True)


def _is_ours(out: Path) -> bool:
    names = {path.name for path in out.iterdir()}
    return not names or bool(names & {MANIFEST, JOURNAL, PROBLEMS, ".lock"})


def _recorded(out: Path, dataset: Dataset) -> dict[str, Frame]:
    """What earlier calls have decoded: the manifest's frames, and the journal's.

    Raises:
        StoreError: the manifest holds files that the dataset is without; they would be lost.
    """
    frames: dict[str, Frame] = {}
    with contextlib.suppress(StoreError):
        frames = {frame.key: frame for frame in read_manifest(out).frames}
    wanted = {file.key for file in dataset.files}
    more = sorted(set(frames) - wanted)
    if more:
        raise StoreError(
            f"{out} holds {len(more)} files that were not asked for now, such as {more[0]}; they "
            "would be lost. Choose another folder for the store, or delete this one first."
        )
    # A line that a crash cut off does not count.
    with contextlib.suppress(FileNotFoundError):
        for line in (out / JOURNAL).read_bytes().splitlines():
            with contextlib.suppress(ValidationError):
                frame = Frame.model_validate_json(line)
                frames[frame.key] = frame
    return frames


def _known(
    out: Path, files: Sequence[CameraFile], recorded: Mapping[str, Frame]
) -> dict[str, Frame]:
    """What is decoded, still there, and made from the camera files as they are now."""
    known: dict[str, Frame] = {}
    for file in files:
        frame = recorded.get(file.key)
        if frame is None:
            continue
        with contextlib.suppress(OSError):
            source, decoded = file.path.stat(), (out / frame.path).stat()
            made_from = (frame.source_size, frame.source_mtime_ns)
            if made_from == (source.st_size, source.st_mtime_ns) and decoded.st_size == frame.size:
                known[file.key] = frame
    return known


def _decode_all(
    files: Sequence[CameraFile],
    out: Path,
    *,
    known: dict[str, Frame],
    processes: int | None,
    limit_s: float,
    progress: Callable[[int, int], Any],
) -> tuple[dict[str, Frame], list[Skipped]]:
    """Decodes what is not known yet. Returns frames by key, and what cannot be read."""
    frames, refused = dict(known), list[Skipped]()
    todo = [file for file in files if file.key not in known]
    progress(len(known), len(files))
    with storing(out / JOURNAL), (out / JOURNAL).open("ab") as journal:
        largest = max((frame.size for frame in known.values()), default=0)
        for file, answer in _answers(todo, out, num=_num_processes(processes), limit_s=limit_s):
            if isinstance(answer, Frame):
                frames[file.key] = answer
                journal.write(answer.model_dump_json().encode() + b"\n")
                journal.flush()
                if answer.size > largest:
                    largest = answer.size
                    left = len(todo) + len(known) - len(frames) - len(refused)
                    _check_space(out, num_files=left, size=largest)
            else:
                refused.append(Skipped(file=file.key, reason=_without(answer, file.path)))
            progress(len(frames) + len(refused), len(files))
        os.fsync(journal.fileno())
    return frames, refused


def _answers(
    files: Sequence[CameraFile], out: Path, *, num: int, limit_s: float
) -> Iterator[tuple[CameraFile, Frame | InputError]]:
    """Decodes files in `num` processes; yields them as they come."""
    idle: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        num = min(num, len(files))
        pool = stack.enter_context(ThreadPoolExecutor(max(1, num)))
        decoders = [stack.enter_context(Decoder(out, limit_s=limit_s)) for _ in range(num)]
        for decoder in decoders:
            idle.put(decoder)

        def work(file: CameraFile) -> Frame | InputError:
            decoder = idle.get()
            try:
                return decoder.decode(file)
            except InputError as error:
                return error
            finally:
                idle.put(decoder)

        waiting = iter(files)
        running: dict[Future[Frame | InputError], CameraFile] = {}
        while True:
            for file in waiting:
                running[pool.submit(work, file)] = file
                if len(running) >= num:
                    break
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()


def _num_processes(asked: int | None) -> int:
    if asked is not None and asked < 1:
        raise InputError(f"processes={asked}; expected 1 or more")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return asked or min(8, cores or 1)


def _check_space(out: Path, *, num_files: int, size: int) -> None:
    """Refuses early what would fill the disk hours later."""
    with storing(out):
        free = shutil.disk_usage(out).free
    need = num_files * size + (_SPARE if num_files else 0)
    if free < need:
        raise StoreError(
            f"The disk of {out} has {free / 2**30:.1f} GiB free; {num_files} more files of "
            f"{size / 2**20:.1f} MiB need {need / 2**30:.1f} GiB. Free some space, choose a folder "
            "on another disk, or take fewer short exposures (--shots first, or none); what is "
            "decoded is kept."
        )


def _without(error: InputError, path: Path) -> str:
    """An error's sentence without the path that stands before it anyway."""
    return str(error).removeprefix(f"{path} ")


def _finish(
    dataset: Dataset,
    out: Path,
    *,
    frames: dict[str, Frame],
    refused: list[Skipped],
    skip_bad: bool,
) -> Store:
    """Compares what belongs together, then writes the manifest."""
    mismatched = _mismatched(dataset, frames)
    amiss = tuple(sorted([*dataset.amiss, *refused, *mismatched], key=lambda bad: bad.file))
    text = "".join(f"{bad.file}: {bad.reason}\n" for bad in amiss)
    if amiss:
        write_atomically(out / PROBLEMS, text.encode())
    else:
        (out / PROBLEMS).unlink(missing_ok=True)
    if amiss and not skip_bad:
        raise BadFilesError(
            f"{len(amiss)} files are missing, unreadable or mismatched (all listed in "
            f"{out / PROBLEMS}). Mend them and run the same command again, or go on without them "
            "with --skip-bad; what is decoded is kept.",
            files=amiss,
        )
    bad = {entry.file for entry in amiss}
    keys = {file.key for file in dataset.files} - bad
    pairs = tuple(
        (pair.short, pair.long)
        for pair in dataset.pairs
        if f"short/{pair.short}" in keys and f"long/{pair.long}" in keys
    )
    # A short exposure is of no use without its long one.
    keys -= {file.key for file in dataset.files if file.role == "short"}
    keys |= {f"short/{short}" for short, _ in pairs}
    kept = tuple(frames[file.key] for file in dataset.files if file.key in keys)
    if not kept:
        raise InputError("not one camera file of the dataset can be used")
    manifest = StoreManifest(frames=kept, pairs=pairs, skipped=amiss).sealed()
    write_atomically(out / MANIFEST, manifest.model_dump_json().encode())
    for path in set((out / "short").glob("*.npy")) | set((out / "long").glob("*.npy")):
        if f"{path.parent.name}/{path.name}" not in {frame.path for frame in kept}:
            path.unlink()
    (out / JOURNAL).unlink(missing_ok=True)
    return Store(out)


def _mismatched(dataset: Dataset, frames: dict[str, Frame]) -> Iterator[Skipped]:
    """Files whose exposure is not what their name says, and pairs that do not fit together."""
    for frame in frames.values():
        stated = parse_name(frame.name)[2]
        if frame.exposure is not None and not 0.8 < frame.exposure / stated < 1.25:
            yield Skipped(
                file=frame.key,
                reason=f"its name says {stated:g} s, the file was exposed for {frame.exposure:g} s",
            )
    for pair in dataset.pairs:
        short, long = frames.get(f"short/{pair.short}"), frames.get(f"long/{pair.long}")
        if short is not None and long is not None:
            differing = [
                f"{what} {mine}, its long exposure {other}"
                for (what, mine), (_, other) in zip(_form(short), _form(long), strict=True)
                if mine != other
            ]
            if differing:
                yield Skipped(file=short.key, reason="; ".join(differing))


def _form(frame: Frame) -> list[tuple[str, object]]:
    """What two files of a pair must have in common."""
    return [
        ("size", f"{frame.height}x{frame.width}"),
        ("colour filter", frame.pattern),
        ("black level", frame.black),
        ("white level", frame.white),
        ("camera", frame.camera),
    ]
