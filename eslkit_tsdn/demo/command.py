"""The demo as a whole: photographs in, a folder with networks, numbers and a page out."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path

import torch
from pydantic import ValidationError
from rich.console import Console

from eslkit.errors import InputError, StoreError
from eslkit.files import write_atomically
from eslkit.store import RunStore
from eslkit_tsdn.data.pairs import TestPair
from eslkit_tsdn.data.photos import Photo, packaged_photos, photos_digest, raw_photos, split
from eslkit_tsdn.demo.progress import DemoProgress, Work, say
from eslkit_tsdn.demo.settings import LINEAR, LONG, SCRATCH, DemoResults, DemoSettings, Row
from eslkit_tsdn.demo.table import results_table
from eslkit_tsdn.demo.verdict import verdict
from eslkit_tsdn.evaluation import evaluate_input, test_pairs
from eslkit_tsdn.run_folder import SETTINGS, claim_folder, read_settings

__all__ = ["run_demo"]

RESULTS, REPORT = "results.json", "report.html"


def run_demo(
    settings: DemoSettings,
    *,
    out: Path,
    processes: int | None = None,
    fresh: bool = False,
    console: Console,
) -> DemoResults:
    """Run the demo, go on with an interrupted one, or read a finished one.

    Args:
        settings: what to train; its digest of the photographs is filled in here.
        out: gets everything; made when missing.
        processes: trainings beside each other, 1 or 2; None for as many as there are cores.
        fresh: move what `out` holds aside and start over.
        console: where progress and the table go.

    Returns:
        The table and what it was measured with, as in `out/results.json`.

    Raises:
        EslError: photographs, settings or a folder that cannot be used, or a training that
            diverged; what was finished is kept.
    """
    processes = usable(processes)
    photos = read_photos(settings)
    settings = settings.model_copy(update={"photos": photos_digest(photos)})
    claim_folder(out, settings, what="demo", fresh=fresh, say=partial(say, console))
    results = finished_results(out, settings)
    if results is None:
        results = train_and_report(settings, photos, out=out, processes=processes, console=console)
    console.print(results_table(results))
    for sentence in verdict(results):
        say(console, sentence)
    return results


def usable(processes: int | None) -> int:
    """How many trainings can run beside each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = min(2, cores or 1)
    wanted = most if processes is None else processes
    if not 1 <= wanted <= most:
        raise InputError(
            f"processes={wanted}, but this process may use {cores} processor core(s), and no more "
            f"than two trainings run beside each other: ask for 1 to {most}, or leave it out."
        )
    return wanted


def read_photos(settings: DemoSettings) -> tuple[Photo, ...]:
    """The packaged photographs, or the camera files that were asked for."""
    return packaged_photos() if settings.raw is None else raw_photos(settings.raw)


def divided(
    settings: DemoSettings, photos: Sequence[Photo]
) -> tuple[tuple[Photo, ...], tuple[TestPair, ...]]:
    """What is trained on, and what is tested on."""
    train, test = split(photos)
    return train, test_pairs(test, gain=settings.gain, multiple=settings.multiple)


def prepared(out: Path) -> tuple[DemoSettings, tuple[Photo, ...], tuple[TestPair, ...]]:
    """Settings and photographs of the run in a folder, for one more process of that run.

    Raises:
        EslError: settings or photographs are not what they were.
    """
    torch.set_num_threads(1)
    settings = read_settings(out / SETTINGS, DemoSettings, what="demo")
    photos = read_photos(settings)
    if photos_digest(photos) != settings.photos:
        raise StoreError(f"The photographs have changed since {out} was begun; use --fresh.")
    return settings, *divided(settings, photos)


def finished_results(out: Path, settings: DemoSettings) -> DemoResults | None:
    """The results of a finished run, if all its networks are still what they were."""
    path = out / RESULTS
    if not path.is_file() or not (out / REPORT).is_file():
        return None
    try:
        results = DemoResults.model_validate_json(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None  # made again from the stored networks, at no cost
    if results.settings != settings:
        return None
    for name in (SCRATCH, LONG, LINEAR, "esl"):
        RunStore(out / name).verify()
    return results


def train_and_report(
    settings: DemoSettings,
    photos: Sequence[Photo],
    *,
    out: Path,
    processes: int,
    console: Console,
) -> DemoResults:
    """Everything that takes time."""
    # Lightning takes seconds to import; a finished demo answers without it.
    from eslkit_tsdn.demo.page import write_page
    from eslkit_tsdn.demo.runs import train_all

    torch.set_num_threads(1)
    train, pairs = divided(settings, photos)
    test = {pair.name for pair in pairs}
    noisy = Row(name="noisy", what="the noisy input", metrics=evaluate_input(pairs))
    say(
        console,
        f"{len(train)} photographs to train on, {len(test)} to test on. Four ways to train one "
        f"small network; {out} keeps every step.",
    )

    def show(works: Sequence[Work]) -> DemoProgress:
        return DemoProgress(works, console=console)

    runs = train_all(settings, train=train, pairs=pairs, out=out, processes=processes, show=show)
    results = DemoResults(
        settings=settings,
        train=tuple(photo.name for photo in train),
        test=tuple(sorted(test)),
        rows=(noisy, *runs.rows),
        machine=machine(processes),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_page(results, runs, pairs=pairs, out=out / REPORT)
    write_atomically(out / RESULTS, results.model_dump_json(indent=2).encode())
    return results


def machine(processes: int) -> dict[str, str]:
    """What the numbers were computed on."""
    versions = {name: metadata.version(name) for name in ("torch", "lightning")}
    return {
        "processor": platform.processor() or platform.machine(),
        "processes": f"{processes} with one thread each",
        "python": platform.python_version(),
        **versions,
    }
