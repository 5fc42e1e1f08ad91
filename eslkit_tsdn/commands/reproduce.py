"""`eslkit-tsdn reproduce`."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from eslkit_tsdn.commands.exits import exit_codes

__all__ = ["reproduce"]


def reproduce(
    tables: Annotated[
        list[str], typer.Argument(help="table1 to table6, controls, or all.", show_default=False)
    ],
    preset: Annotated[
        str, typer.Option(help="smoke (minutes), mini (a night on 2 cores), paper, paper-fast.")
    ] = "smoke",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photographs and camera files, or a prepared SID store; left out, the "
            "photographs that come with the packages."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for all trainings; runs/reproduce-PRESET, and the length if given."
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Trainings beside each other; one a core.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Seeds, where spread counts.")] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Updates of a training, instead of the preset's length.")
    ] = None,
    shard: Annotated[
        str, typer.Option(help="Only part i of n of the work, as 2/4, for a batch system.")
    ] = "1/1",
    ray: Annotated[bool, typer.Option("--ray", help="Give the trainings to Ray.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the trainings, their cost and hours; no more.")
    ] = False,
) -> None:
    """Train what the paper's tables need, measure it, and lay it beside the paper's numbers.

    Trainings that several tables need are shared. Stopped at any moment and called again, it
    goes on where it was; a finished training is never repeated.
    """
    length = "" if iterations is None else f"-{iterations}"
    folder = out or Path("runs") / f"reproduce-{preset}{length}"
    with exit_codes(folder):
        from rich.console import Console

        from eslkit_tsdn.tables.forecast import dry_run as show
        from eslkit_tsdn.tables.reproduce import reproduce as run
        from eslkit_tsdn.tables.settings import asked_for

        asked = asked_for(
            tables, preset=preset, data=data, seeds=seeds, iterations=iterations, shard=shard
        )
        at_once = processes or usable_cores()
        console = Console()
        if dry_run:
            show(asked, out=folder, processes=at_once, console=console)
            return
        through = None
        if ray:
            from eslkit_tsdn.tables.rays import carry_out_by_ray

            through = carry_out_by_ray
        command = f"eslkit-tsdn {shlex.join(sys.argv[1:])}"
        run(
            asked,
            out=folder,
            processes=at_once,
            command=command,
            console=console,
            through=through,
        )
        typer.echo(
            f"{folder / 'results.md'} has the tables, {folder / 'results.json'} the figures."
        )


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
