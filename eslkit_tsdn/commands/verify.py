"""`eslkit-tsdn verify`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from eslkit_tsdn.commands.exits import exit_codes

__all__ = ["verify"]


def verify(
    store: Annotated[Path, typer.Argument(help="Folder that eslkit-tsdn prepare has made.")],
) -> None:
    """Read a prepared store again and compare it with its manifest: hashes, sizes, levels.

    Exit code 1 where something is wrong.
    """
    with exit_codes(store):
        run(store)


def run(path: Path) -> None:
    """Checks a store; numpy is imported here, after --help."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from eslkit_tsdn.data.store import Store, verify_store

    began = time.monotonic()
    store = Store(path)
    columns = ("verifying", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(store.frames))
        wrong = verify_store(store, progress=lambda frame: bar.advance(task))
    for bad in wrong:
        typer.echo(f"  {bad.file}: {bad.reason}", err=True)
    seconds = time.monotonic() - began
    if wrong:
        typer.echo(
            f"{path}: {len(wrong)} files are wrong ({seconds:.0f} s). Delete them and run "
            "`eslkit-tsdn prepare` again: it decodes what is missing.",
            err=True,
        )
        raise typer.Exit(1)
    typer.echo(
        f"{path} is sound: {len(store.frames)} files, {len(store.pairs)} pairs ({seconds:.0f} s)."
    )
