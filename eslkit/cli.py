"""The command line: look at a model, plan its schedule, look at a run.

A model is named `package.module:factory`; the factory is a function without arguments, a class,
or a module that exists already. What cannot be used ends in one sentence and exit code 2.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from eslkit.cost import cost
from eslkit.errors import EslError, InputError
from eslkit.files import write_atomically
from eslkit.manifest import StepState
from eslkit.plan import Plan
from eslkit.report import report
from eslkit.schedule import schedule
from eslkit.store import RunStore
from eslkit.surgery.api import trace

__all__ = ["app", "load_model", "parse_shape"]

app = typer.Typer(
    name="eslkit",
    help="Expand-Shrink-Learning for any encoder-decoder in PyTorch.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)

P = ParamSpec("P")
R = TypeVar("R")

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="package.module:factory")]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="the folder of a run")]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--input", "-i", metavar="SHAPE", help="shape of an input, as 1,4,64,64; once for each"
    ),
]
ProtectOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="group, layer or parameter that keeps its width"),
]


def _one_sentence(command: Callable[P, R]) -> Callable[P, R]:
    """Errors of eslkit, and failing output, become one line on stderr and exit code 2."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except EslError as error:
            typer.echo(f"eslkit: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2)

    return wrapped


@app.command()
@_one_sentence
def inspect(model: ModelArgument, input: InputOption = None, protect: ProtectOption = None) -> None:  # noqa: A002
    """Show a model's channel groups, and what is coupled with what."""
    network, inputs = load_model(model), _inputs(input)
    typer.echo(str(trace(network, example_inputs=inputs, protect=tuple(protect or ()))))
    if inputs is not None:
        price = cost(network, example_inputs=inputs)
        memory = price.peak_activation_bytes / 2**20
        typer.echo(
            f"{price.parameters:,} parameters, {2 * price.macs / 1e9:.3f} GFLOPs, "
            f"{memory:.1f} MiB of activations at most"
        )


@app.command()
@_one_sentence
def plan(
    model: ModelArgument,
    input: InputOption = None,  # noqa: A002
    width: Annotated[float, typer.Option(help="width multiplier of the expansion")] = 2.0,
    depth: Annotated[int, typer.Option(help="levels that the expansion inserts")] = 1,
    init: Annotated[str, typer.Option(help="init policy of the shrinking steps")] = "first",
    expand_init: Annotated[str, typer.Option(help="init policy of the expansion")] = "random",
    granularity: Annotated[str, typer.Option(help="fine, one-shot, or layers a step")] = "fine",
    iterations: Annotated[int | None, typer.Option(help="updates of every step")] = None,
    seed: Annotated[int, typer.Option(help="seed of the schedule")] = 0,
    protect: ProtectOption = None,
    draw: Annotated[Path | None, typer.Option(metavar="SVG", help="draw the steps")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="write JSON, - prints")] = None,
    yaml: Annotated[Path | None, typer.Option(metavar="FILE", help="write YAML, - prints")] = None,
) -> None:
    """Show every step of a model's schedule: what changes, parameters, FLOPs, cost."""
    made = schedule(
        load_model(model),
        width=width,
        depth=depth,
        init=init,
        granularity=int(granularity) if granularity.isdigit() else granularity,
        expand_init=expand_init,
        example_inputs=_inputs(input),
        protect=tuple(protect or ()),
        iterations=iterations,
        seed=seed,
    )
    written = [(json, made.plan.to_json), (yaml, made.plan.to_yaml)]
    if not any(path == Path("-") for path, _ in written):
        typer.echo(str(made))
    for path, text in written:
        if path == Path("-"):
            typer.echo(text(), nl=False)
        elif path is not None:
            write_atomically(path, text().encode())
    if draw is not None:
        made.draw(draw)


@app.command()
@_one_sentence
def status(folder: FolderArgument) -> None:
    """Show how far a run is; every file of it is checked against its hash."""
    store = RunStore(folder)
    store.verify()
    run_plan, running = store.plan(), store.is_running()
    records = {record.index: record for record in store.records()}
    names = list(dict.fromkeys(name for r in records.values() for name in r.metrics))
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("step", no_wrap=True)
    table.add_column("state")
    for name in ("seconds", *names):
        table.add_column(name, justify="right")
    for entry in store.manifest().steps:
        record = records.get(entry.index)
        cells = [""] * (1 + len(names))
        if record is not None:
            numbers = [record.metrics.get(name) for name in names]
            cells = [f"{record.seconds:,.1f}"]
            cells += ["" if number is None else f"{number:.4g}" for number in numbers]
        table.add_row(entry.name, _state(entry, running=running), *cells)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(f"{run_plan.model}: {_progress(run_plan, len(records), running=running)}")
    console.print(table)


@app.command(name="report")
@_one_sentence
def report_command(
    folder: FolderArgument,
    out: Annotated[Path | None, typer.Option(help="HTML file [DIR/report.html]")] = None,
) -> None:
    """Write a self-contained HTML page about a run."""
    store = RunStore(folder)
    store.verify()
    name = store.plan().model.rsplit(".", 1)[-1]
    path = report(
        store, title=f"Expand-Shrink-Learning of {name}", out=out or folder / "report.html"
    )
    typer.echo(path)


@app.command()
@_one_sentence
def rewind(
    folder: FolderArgument,
    step: Annotated[str, typer.Argument(help="the first step to train again, such as CSL2")],
) -> None:
    """Forget a step and all that follow; their files are moved aside, not deleted."""
    aside = RunStore(folder).rewind(step)
    typer.echo(f"Start the run again to train from {step} on. The old files are in {aside}.")


def load_model(name: str) -> nn.Module:
    """The model that `package.module:factory` names.

    Raises:
        InputError: it cannot be imported, does not exist, or gives no torch.nn.Module.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError(
            f"{name!r} names no model; expected package.module:factory, such as my_models:UNet."
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does when imported
        raise InputError(
            f"{module_name} cannot be imported from {Path.cwd()} "
            f"({type(error).__name__}: {error}). Install it, or start where it lies."
        ) from error
    try:
        made: Any = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise InputError(f"{module_name} has no {attribute!r}; look at its spelling.") from error
    if callable(made) and not isinstance(made, nn.Module):
        try:
            made = made()
        except Exception as error:  # whatever the user's factory does
            raise InputError(
                f"{name} could not be called without arguments ({type(error).__name__}: {error}). "
                "Name a function that makes the model by itself."
            ) from error
    if not isinstance(made, nn.Module):
        raise InputError(f"{name} gives a {type(made).__name__}, expected a torch.nn.Module.")
    return made


def parse_shape(text: str) -> tuple[int, ...]:
    """The shape that `1,4,64,64` writes.

    Raises:
        InputError: it is no list of positive whole numbers.
    """
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise InputError(
            f"--input {text!r} is no shape; expected positive whole numbers as in 1,4,64,64."
        )
    return shape


def _inputs(shapes: list[str] | None) -> tuple[torch.Tensor, ...] | None:
    return tuple(torch.zeros(parse_shape(text)) for text in shapes) if shapes else None


def _state(entry: StepState, *, running: bool) -> str:
    if entry.state == "running" and not running:
        return "interrupted (the process is gone)"
    return f"{entry.state}: {entry.reason}" if entry.reason else entry.state


def _progress(run_plan: Plan, num_finished: int, *, running: bool) -> str:
    total = len(run_plan.steps)
    if num_finished == total:
        return f"finished, {total} steps"
    now = "running" if running else "not running; start it again to go on"
    return f"{num_finished} of {total} steps finished, {now}"
