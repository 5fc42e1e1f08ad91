"""The command line: look at a model, plan its schedule, look at a run.

A model is named `package.module:factory`; the factory is a function without arguments, a class,
or a module that exists already. What cannot be used ends in one sentence and exit code 2.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from eslkit.arguments import load_model, parse_shape, parse_share, parse_step, parse_table
from eslkit.cost import cost
from eslkit.errors import EslError, InputError
from eslkit.files import write_atomically
from eslkit.manifest import StepRecord, StepState
from eslkit.paper import paper
from eslkit.plan import Plan
from eslkit.report import report
from eslkit.schedule import Schedule, schedule, schedule_from
from eslkit.store import RunStore
from eslkit.surgery.api import trace

__all__ = ["app"]

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
    recipe: Annotated[
        str | None,
        typer.Option(
            help="what holds for options not given: paper; thrifty; linear [with --budget]"
        ),
    ] = None,
    width: Annotated[
        list[str] | None, typer.Option(help="multiplier of the expansion [2]; or NAME=1.5, each")
    ] = None,
    depth: Annotated[int | None, typer.Option(help="levels that the expansion inserts [1]")] = None,
    at: Annotated[
        list[str] | None, typer.Option(metavar="MODULE", help="insert the levels there; each")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="init policy of the shrinking steps [first; merge after an expansion by copies]"
        ),
    ] = None,
    expand_init: Annotated[
        str | None, typer.Option(help="init policy of the expansion [random]")
    ] = None,
    granularity: Annotated[
        str | None, typer.Option(help="fine, one-shot, direct, or layers a step [fine]")
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option(help="a step of your own: names, or widths as enter=12,down=0.75; each"),
    ] = None,
    factor: Annotated[
        float | None, typer.Option(help="least part of a width that a step keeps")
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(help="levels narrowed first: outwards from the bottleneck [this], or inwards"),
    ] = None,
    paper_row: Annotated[
        str | None, typer.Option("--paper", metavar="ROW", help="CSL1 to CSL3, ESL1 to ESL5")
    ] = None,
    source: Annotated[
        str | None, typer.Option(metavar="MODEL", help="a large model to come down from")
    ] = None,
    iterations: Annotated[
        list[str] | None, typer.Option(help="updates of every step; or STEP=1000, each")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="instead: cost of all, in updates of the small model")
    ] = None,
    share: Annotated[
        list[str] | None,
        typer.Option(help="a step's part of the budget, LSL2=3 or last=70%; each"),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(help="learning rate: restart, once, or 0.1: so high after the first step"),
    ] = None,
    scale_rates: Annotated[
        bool | None,
        typer.Option(
            "--scale-rates/--one-rate", help="lower learning rates for larger networks, or one"
        ),
    ] = None,
    teach: Annotated[float, typer.Option(help="weight of the step before as a teacher")] = 0.0,
    linear: Annotated[
        int | None, typer.Option(help="so many times the channels inside of each layer")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the schedule")] = 0,
    protect: ProtectOption = None,
    draw: Annotated[Path | None, typer.Option(metavar="SVG", help="draw the steps")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="write JSON, - prints")] = None,
    yaml: Annotated[Path | None, typer.Option(metavar="FILE", help="write YAML, - prints")] = None,
) -> None:
    """Show every step of a model's schedule: what changes, parameters, FLOPs, memory, cost."""
    _check_together(
        expands={"--width": width, "--depth": depth, "--paper": paper_row},
        recipe={
            "--recipe": recipe,
            "--granularity": granularity,
            "--step": step,
            "--order": order,
            "--factor": factor,
        },
        source=source,
        paper_row=paper_row,
    )
    options: dict[str, Any] = {
        "init": init,
        "example_inputs": _inputs(input),
        "protect": tuple(protect or ()),
        "iterations": parse_table(iterations, option="--iterations", kind=int)
        if iterations
        else None,
        "budget": budget,
        "shares": parse_table(share, option="--share", kind=parse_share, plain=False)
        if share
        else None,
        "rates": None if rates is None else _number_or_word(rates),
        "scale_rates": scale_rates,
        "teach": teach,
        "linear": linear,
        "seed": seed,
        "recipe": recipe,
        "order": order,
        "granularity": [parse_step(text) for text in step or ()] or _layers_or_word(granularity),
        "factor": factor,
    }
    if source is None:
        options["width"] = parse_table(width, option="--width", kind=float) if width else None
        options.update(depth=depth, at=at, expand_init=expand_init)
    options = {name: value for name, value in options.items() if value is not None}
    network = load_model(model)
    if source is not None:
        made = schedule_from(load_model(source), target=network, **options)
    elif paper_row is not None:
        made = paper(network, paper_row, **options)
    else:
        made = schedule(network, **options)
    _show(made, draw=draw, json=json, yaml=yaml)


def _check_together(
    *,
    expands: Mapping[str, object],
    recipe: Mapping[str, object],
    source: str | None,
    paper_row: str | None,
) -> None:
    given = [name for name, value in expands.items() if value is not None]
    if source is not None and given:
        raise InputError(f"--source has nothing to expand: leave {', '.join(given)} out.")
    given = [name for name, value in recipe.items() if value is not None]
    if paper_row is not None and given:
        raise InputError(
            f"--paper {paper_row} says what each step changes: leave {', '.join(given)} out."
        )


def _layers_or_word(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdigit() else text


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _show(made: Schedule, *, draw: Path | None, json: Path | None, yaml: Path | None) -> None:
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
    for name in ("parameters", "iterations", "seed", "seconds", *names):
        table.add_column(name, justify="right", overflow="fold")
    for entry, step in zip(store.manifest().steps, run_plan.steps, strict=True):
        record = records.get(entry.index)
        cells = [f"{step.parameters:,}", "" if step.iterations is None else f"{step.iterations:,}"]
        cells += [f"{step.seed}", *[""] * (1 + len(names))]
        if record is not None:
            numbers = [record.metrics.get(name) for name in names]
            cells[3:] = [f"{record.seconds:,.1f}"]
            cells += ["" if number is None else f"{number:.4g}" for number in numbers]
        table.add_row(entry.name, _state(entry, running=running), *cells)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(f"{run_plan.model}: {_progress(run_plan, len(records), running=running)}")
    console.print(table)
    for entry in store.manifest().steps:
        if entry.state not in ("waiting", "finished"):
            typer.echo(f"{entry.name}: {_details(store, entry, running=running)}")
    for name, values in _versions(records.values()).items():
        typer.echo(f"{name}: {', '.join(values)}")


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


def _inputs(shapes: list[str] | None) -> tuple[torch.Tensor, ...] | None:
    return tuple(torch.zeros(parse_shape(text)) for text in shapes) if shapes else None


def _state(entry: StepState, *, running: bool) -> str:
    return "interrupted" if entry.state == "running" and not running else entry.state


def _details(store: RunStore, entry: StepState, *, running: bool) -> str:
    """Why a step that was begun is not finished, and what its trainer has kept."""
    reason = "the process is gone" if not running else "a process trains it"
    told = f"{_state(entry, running=running)} ({entry.reason or reason})"
    files = [path for path in store.trainer_folder(entry).rglob("*") if path.is_file()]
    if not files:
        return f"{told}; no checkpoint inside the step"
    size = sum(path.stat().st_size for path in files) / 2**20
    last = datetime.fromtimestamp(max(path.stat().st_mtime for path in files), UTC)
    count = f"{len(files)} file{'s' if len(files) > 1 else ''}"
    return f"{told}; checkpoints: {count}, {size:.1f} MiB, {last:%Y-%m-%d %H:%M:%S} UTC"


def _versions(records: Iterable[StepRecord]) -> dict[str, list[str]]:
    """With what the finished steps were trained; more than one value is worth a look."""
    found: dict[str, list[str]] = {}
    for record in records:
        for name, value in record.versions.items():
            values = found.setdefault(name, [])
            if value not in values:
                values.append(value)
    return found


def _progress(run_plan: Plan, num_finished: int, *, running: bool) -> str:
    total = len(run_plan.steps)
    if num_finished == total:
        return f"finished, {total} steps"
    now = "running" if running else "not running; start it again to go on"
    return f"{num_finished} of {total} steps finished, {now}"
