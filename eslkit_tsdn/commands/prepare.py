"""`eslkit-tsdn prepare`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from eslkit_tsdn.commands.exits import exit_codes

if TYPE_CHECKING:
    from eslkit_tsdn.data.store import Skipped, Store

__all__ = ["prepare"]

_MAX_LINES = 40
_MAX_MISSING = 10


def prepare(
    folder: Annotated[
        Path, typer.Argument(help="SID as it is unpacked: holds Sony/short and Sony/long.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the store.")] = Path("runs/sid"),
    shots: Annotated[
        Literal["all", "first", "none"],
        typer.Option(
            help="Short exposures: all (71 GB with SID's 231 long ones), the first of each "
            "exposure time (16 GB; what ELD and the paper train and test on), or none (6 GB; for "
            "training with drawn noise)."
        ),
    ] = "all",
    processes: Annotated[
        int | None, typer.Option(min=1, help="Files decoded at once; one per core, 8 at most.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on without files that cannot be used.")
    ] = False,
) -> None:
    """Decode the SID dataset once, into a store from which training reads its crops.

    Stopped at any moment and started again, it goes on where it was.
    """
    with exit_codes(out):
        run(folder, out=out, shots=shots, processes=processes, skip_bad=skip_bad)


def run(
    folder: Path,
    *,
    out: Path,
    shots: Literal["all", "first", "none"],
    processes: int | None,
    skip_bad: bool,
) -> None:
    """Prepares a store; torch is imported here, after --help."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from eslkit_tsdn.data.prepare import BadFilesError
    from eslkit_tsdn.data.prepare import prepare as prepare_store
    from eslkit_tsdn.data.sid_folder import find_dataset

    began = time.monotonic()
    dataset = find_dataset(folder, shots=shots)
    lists = ", ".join(path.name for path in dataset.lists) or "the names of the files"
    typer.echo(f"{len(dataset.files)} files, {len(dataset.pairs)} pairs by {lists}.")
    if dataset.num_unlisted:
        typer.echo(f"{dataset.num_unlisted} more files are in no list and are left out.")
    columns = ("decoding", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=len(dataset.files))
            store = prepare_store(
                dataset,
                out,
                processes=processes,
                skip_bad=skip_bad,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except BadFilesError as error:
        tell(error.files)
        raise
    tell(store.manifest.skipped)
    conclude(store, seconds=time.monotonic() - began)


def tell(files: Sequence[Skipped]) -> None:
    """Files that are amiss, a line each; of very many the first, and of missing ones fewer."""
    missing = [bad for bad in files if bad.reason.startswith("missing")]
    others = [bad for bad in files if not bad.reason.startswith("missing")]
    for kind, bads, most in (("", others, _MAX_LINES), (" missing", missing, _MAX_MISSING)):
        for bad in bads[:most]:
            typer.echo(f"  {bad.file}: {bad.reason}", err=True)
        if len(bads) > most:
            typer.echo(f"  ... and {len(bads) - most} more{kind}", err=True)


def conclude(store: Store, *, seconds: float) -> None:
    """What a store holds now."""
    from eslkit.errors import InputError
    from eslkit_tsdn.data.sid import SPLIT_SIZES, select

    frames = store.manifest.frames
    size = sum(frame.size for frame in frames) / 1e9
    skipped = len(store.manifest.skipped)
    without = f", without {skipped} files" if skipped else ""
    typer.echo(
        f"{store.path}: {len(frames)} files, {size:.2f} GB, {len(store.pairs)} pairs{without} "
        f"({seconds:.0f} s)."
    )
    if not store.pairs:
        typer.echo("It holds long exposures only: for training with drawn noise.")
        return
    counts: list[str] = []
    for split, whole in SPLIT_SIZES.items():
        try:
            num = len(select(store.pairs, split))
        except InputError:
            num = 0
        counts.append(f"{split} {num}" + ("" if num == whole else f" of {whole}"))
    typer.echo(f"Splits: {', '.join(counts)}.")
