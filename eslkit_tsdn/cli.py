"""The command line of eslkit_tsdn."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["app"]

app = typer.Typer(
    name="eslkit-tsdn",
    help="Raw low-light denoising, trained by Expand-Shrink-Learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Raw low-light denoising, trained by Expand-Shrink-Learning."""


@app.command()
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
    """Train a small denoiser from scratch, for longer, and by Expand-Shrink-Learning; compare.

    Takes some minutes. Stopped at any moment and started again, it goes on where it was.
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
    from pydantic import ValidationError
    from rich.console import Console

    from eslkit.errors import InputError
    from eslkit_tsdn.demo.command import run_demo
    from eslkit_tsdn.demo.settings import DemoSettings

    try:
        settings = DemoSettings(**given)
    except ValidationError as error:
        raise InputError(
            f"A setting cannot be used: {'; '.join(map(told, error.errors()))}."
        ) from error
    console = Console()
    began = time.monotonic()
    run_demo(settings, out=out, processes=processes, fresh=fresh, console=console)
    seconds = time.monotonic() - began
    typer.echo(f"{out / 'report.html'} shows it all ({seconds:.0f} s).")


def told(problem: Mapping[str, Any]) -> str:
    """One problem that pydantic found."""
    place = ".".join(map(str, problem["loc"]))
    if not place:
        return str(problem["ctx"]["error"])
    return f"{place}: {problem['msg']}, got {problem['input']!r}"


@contextmanager
def exit_codes(folder: Path) -> Generator[None]:
    """Errors that a user can mend as one sentence and code 2; Ctrl-C as one line and code 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(
            f"\nStopped. What is done is kept in {folder}; the same command goes on from there.",
            err=True,
        )
        raise typer.Exit(130) from None
    except OSError as error:
        typer.echo(f"{error.filename or folder}: {error.strerror or error}.", err=True)
        raise typer.Exit(2) from None
    except Exception as error:
        from eslkit.errors import EslError

        if not isinstance(error, EslError):
            raise
        typer.echo(" ".join(str(error).split()), err=True)
        raise typer.Exit(2) from None
