"""`eslkit-tsdn export`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eslkit_tsdn.commands.exits import exit_codes

if TYPE_CHECKING:
    from torch import nn

    from eslkit_tsdn.export import Exported, ExportReport
    from eslkit_tsdn.reach import Reach

__all__ = ["export"]

ALLOWED = 1e-4
"""Largest difference between what was exported and the network, before it is refused."""


def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the files.")] = Path(
        "exported"
    ),
    weights: Annotated[
        Path | None,
        typer.Option(help="File of weights, or a run's folder. Default: eslkit's own."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of the network, where its file does not tell.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8/--no-int8", help="Also write integer arithmetic of 8 bits.")
    ] = True,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            help="Camera files that fix the ranges of integer arithmetic; again for more. "
            "Default: the packaged photographs."
        ),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure/--no-measure", help="Compare PSNR on the packaged test pictures."),
    ] = True,
) -> None:
    """Write a network as ONNX, torch.export and int8 ONNX; compare each with the original."""
    with exit_codes(out):
        run(out, weights, model, calibrate or [], int8=int8, measure=measure)


def run(
    out: Path,
    weights: Path | None,
    model: str | None,
    calibrate: list[Path],
    *,
    int8: bool,
    measure: bool,
) -> None:
    """The command; torch is imported here, after --help."""
    import io

    import torch
    from rich.console import Console

    from eslkit.files import write_atomically
    from eslkit_tsdn.data.photos import packaged_photos, split
    from eslkit_tsdn.evaluation import evaluate, test_pairs
    from eslkit_tsdn.export import (
        ExportReport,
        OnnxNetwork,
        calibration_pictures,
        quantized,
        to_onnx,
        to_program,
    )
    from eslkit_tsdn.reach import measure_reach
    from eslkit_tsdn.weights import describe_network, find_weights, load_network

    path = find_weights(weights)
    network = load_network(path, model=model)
    described = describe_network(network)
    typer.echo(f"Weights: {path} ({described}).")
    reach = measure_reach(network)
    pictures = calibration_pictures(calibrate, multiple=reach.multiple) if int8 else []
    pairs = test_pairs(split(packaged_photos())[1], multiple=max(16, reach.multiple))

    def metrics(of: nn.Module) -> dict[str, float] | None:
        return evaluate(of, pairs) if measure else None

    typer.echo("Exporting with torch.export ...")
    program, buffer = to_program(network, reach=reach), io.BytesIO()
    torch.export.save(program, buffer)
    write_atomically(out / "network.pt2", buffer.getvalue())
    files = [checked("network.pt2", buffer.getvalue(), program.module(), network, reach, None)]
    typer.echo("Exporting to ONNX ...")
    onnx = to_onnx(network, reach=reach)
    write_atomically(out / "network.onnx", onnx)
    session = OnnxNetwork(onnx)
    files.append(checked("network.onnx", onnx, session, network, reach, metrics(session)))
    if int8:
        typer.echo(f"Quantizing, calibrated on {len(pictures)} pictures ...")
        integers = quantized(onnx, pictures)
        write_atomically(out / "network-int8.onnx", integers)
        measured = metrics(OnnxNetwork(integers))
        files.append(checked("network-int8.onnx", integers, None, network, reach, measured))
    report = ExportReport(
        weights=str(path),
        network=described,
        multiple=reach.multiple,
        metrics=metrics(network),
        files=tuple(files),
    )
    write_atomically(out / "export.json", (report.model_dump_json(indent=2) + "\n").encode())
    show(report, Console())
    typer.echo(f"{out} holds the files; export.json the numbers.")


def checked(
    name: str,
    data: bytes,
    made: Callable[..., object] | None,
    network: nn.Module,
    reach: Reach,
    metrics: dict[str, float] | None,
) -> Exported:
    """What was written, compared with the network where it must agree with it."""
    import io

    import torch

    from eslkit.errors import InputError
    from eslkit_tsdn.export import Exported, deviation, operations

    apart = None if made is None else deviation(made, network, reach=reach)  # type: ignore[arg-type]
    if apart is not None and not apart <= ALLOWED:
        raise InputError(f"{name} differs from the network by {apart:.1e}; at most {ALLOWED:g} is.")
    program = name.endswith(".pt2")
    listed = operations(torch.export.load(io.BytesIO(data)) if program else data)
    kinds = {
        "network.pt2": "torch.export",
        "network.onnx": "ONNX",
        "network-int8.onnx": "ONNX int8",
    }
    return Exported(
        path=name,
        what=kinds[name],
        num_bytes=len(data),
        operations=listed,
        deviation=apart,
        metrics=metrics,
    )


def show(report: ExportReport, console: object) -> None:
    """The table, and the operations of every file."""
    from rich.console import Console
    from rich.table import Table

    assert isinstance(console, Console)
    own = report.metrics or {}
    ratios = [name.removeprefix("psnr_") for name in own if name.startswith("psnr_")]
    table = Table()
    table.add_column("", no_wrap=True)
    for heading in ("KiB", "differs", *(f"PSNR {ratio}" for ratio in ratios)):
        table.add_column(heading, justify="right")
    table.add_row("the network", "", "", *(f"{own[f'psnr_{ratio}']:.2f}" for ratio in ratios))
    for file in report.files:
        apart = "" if file.deviation is None else f"{file.deviation:.0e}"
        measured = file.metrics or {}
        cells = [f"{measured[f'psnr_{r}']:.2f}" if measured else "" for r in ratios]
        table.add_row(file.path, f"{file.num_bytes / 1024:.0f}", apart, *cells)
        if measured and file.deviation is None:
            costs = [f"{measured[f'psnr_{r}'] - own[f'psnr_{r}']:+.2f}" for r in ratios]
            table.add_row("  what that costs, dB", "", "", *costs)
    console.print(table)
    for file in report.files:
        listed = ", ".join(f"{name} {times}" for name, times in file.operations.items())
        console.print(f"{file.path}: {listed}.", highlight=False, soft_wrap=True)
    console.print(f"Height and width are free, in multiples of {report.multiple}.")
