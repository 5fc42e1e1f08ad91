"""`eslkit-tsdn complexity`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from eslkit_tsdn.commands.exits import exit_codes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from eslkit_tsdn.complexity import ComplexityRow, Listed, Measurement

__all__ = ["complexity"]


def complexity(
    measured: Annotated[
        bool,
        typer.Option("--measure", help="Time and peak memory on this machine too (some minutes)."),
    ] = False,
    device: Annotated[str, typer.Option(help="Where to measure: cpu or cuda.")] = "cpu",
    repeats: Annotated[int, typer.Option(help="Timed forward passes of each network.")] = 5,
    only: Annotated[
        list[str] | None, typer.Option(help="A network's name; may be given several times.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Sizes and costs of all networks, the paper's Table I beside ours."""
    with exit_codes():
        run(measured=measured, device=device, repeats=repeats, only=only, as_json=as_json)


def run(
    *, measured: bool, device: str, repeats: int, only: Sequence[str] | None, as_json: bool
) -> None:
    """Count, measure where asked, and print; torch is imported here, after --help."""
    from rich.console import Console

    from eslkit.errors import InputError
    from eslkit_tsdn.complexity import complexity_notes, complexity_rows, measure

    if device not in ("cpu", "cuda"):
        raise InputError(f"--device {device!r}: expected cpu or cuda.")
    where: Literal["cpu", "cuda"] = "cuda" if device == "cuda" else "cpu"
    networks = chosen(only)
    rows = complexity_rows(networks)
    took: dict[str, Measurement] = {}
    for listed in networks if measured else ():
        typer.echo(f"measuring {listed.name} ...", err=True)
        took[listed.name] = measure(listed.name, device=where, repeats=repeats)
    notes = complexity_notes(rows)
    if as_json:
        typer.echo(as_text(rows, notes, took))
        return
    console = Console()
    console.print(table(rows, took))
    for line in legend(took):
        console.print(line, highlight=False)
    for note in notes:
        console.print(f"- {note}", highlight=False)


def chosen(only: Sequence[str] | None) -> tuple[Listed, ...]:
    """The networks of those names, in the table's order; all where none is named."""
    from eslkit.errors import InputError
    from eslkit_tsdn.complexity import NETWORKS

    names = [listed.name for listed in NETWORKS]
    for name in only or ():
        if name not in names:
            raise InputError(f"--only {name!r} is none of the networks: {', '.join(names)}.")
    return tuple(listed for listed in NETWORKS if not only or listed.name in only)


def table(rows: Sequence[ComplexityRow], took: dict[str, Measurement]) -> Table:
    """The paper's columns, each with ours beside it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)  # all columns fit into 80 characters
    made.add_column("network")
    titles = ["parameters", "size,\npaper", "saved,\nMiB", "GFLOPs,\npaper", "paper's\nway", "true"]
    for title in titles + (["ms", "peak,\nMiB"] if took else []):
        made.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        cells = [
            row.network,
            f"{row.parameters:,}",
            "" if row.paper_size is None else f"{row.paper_size}",
            f"{row.file_bytes / 2**20:.1f}",
            "" if row.paper_gflops is None else f"{row.paper_gflops:.2f}",
            f"{row.counted_as_paper:.2f}",
            f"{row.gflops:,.2f}",
        ]
        if (found := took.get(row.network)) is not None:
            cells += [f"{found.median:,.0f}", f"{found.peak_bytes / 2**20:,.0f}"]
        made.add_row(*cells)
    return made


def legend(took: dict[str, Measurement]) -> list[str]:
    """What the columns are, a sentence each."""
    from eslkit_tsdn.complexity.table import COUNTINGS

    lines = [
        "All figures are for a raw image of 1024x1024, packed to 1x4x512x512.",
        f"paper's way - {COUNTINGS['paper']}.",
        f"true - {COUNTINGS['true']}.",
    ]
    if took:
        some = next(iter(took.values()))
        gpu = some.kind == "cuda"
        threads = "" if gpu else f" with {some.threads} thread(s)"
        memory = (
            "allocated by PyTorch on the GPU, weights included"
            if gpu
            else f"of the whole process, {some.idle_bytes / 2**20:,.0f} of it before the network"
        )
        lines.append(
            f"ms - median of {len(some.milliseconds)} forward passes, warm, batch 1, on "
            f"{some.device}{threads}; peak - most memory {memory}."
        )
    return lines


def as_text(
    rows: Sequence[ComplexityRow], notes: Sequence[str], took: dict[str, Measurement]
) -> str:
    """The same as JSON, with all digits."""
    from eslkit_tsdn.complexity.table import COUNTINGS

    networks = [
        {
            **row.model_dump(),
            "measured": took[row.network].model_dump() if row.network in took else None,
        }
        for row in rows
    ]
    held = {"input": [1, 4, 512, 512], "countings": dict(COUNTINGS)}
    return json.dumps({**held, "networks": networks, "notes": list(notes)}, indent=2)
