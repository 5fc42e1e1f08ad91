"""`eslkit-tsdn demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from eslkit_tsdn.commands.exits import exit_codes

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for networks, numbers and the page.")] = Path(
        "runs/demo"
    ),
    raw: Annotated[
        Path | None, typer.Option(help="Folder of camera files, instead of packaged photographs.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
    iterations: Annotated[int | None, typer.Option(help="Updates in one training.")] = None,
    widths: Annotated[
        str | None, typer.Option(help="Channels of the small network, level by level: 8,16,32.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Crops in a batch.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of a crop, packed pixels.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate at the start.")] = None,
    processes: Annotated[
        int | None, typer.Option(help="Trainings beside each other; 2 where there are 2 cores.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an earlier run aside.")] = False,
) -> None:
    """Train a small denoiser in four ways, and compare them.

    From scratch, for longer, by Expand-Shrink-Learning, and for longer with layers that are larger
    inside. Takes some minutes. Stopped at any moment and started again, it goes on where it was.
    """
    asked = {
        "raw": None if raw is None else str(raw.resolve()),
        "seed": seed,
        "iterations": iterations,
        "widths": None if widths is None else widths.split(","),
        "batch_size": batch,
        "crop": crop,
        "lr": lr,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    with exit_codes(out):
        run(given, out=out, processes=processes, fresh=fresh)


def run(given: dict[str, Any], *, out: Path, processes: int | None, fresh: bool) -> None:
    """The demo with some settings given; torch is imported here, after --help."""
    from rich.console import Console

    from eslkit_tsdn.commands.checked import checked
    from eslkit_tsdn.demo.command import run_demo
    from eslkit_tsdn.demo.settings import DemoSettings

    settings = checked(DemoSettings, given)
    console = Console()
    began = time.monotonic()
    run_demo(settings, out=out, processes=processes, fresh=fresh, console=console)
    seconds = time.monotonic() - began
    typer.echo(f"{out / 'report.html'} shows it all ({seconds:.0f} s).")
