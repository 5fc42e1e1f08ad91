"""`eslkit-tsdn evaluate`."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eslkit_tsdn.commands.exits import exit_codes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from eslkit_tsdn.evaluation import Restore

__all__ = ["evaluate"]


def evaluate(
    weights: Annotated[
        Path, typer.Argument(help="A file of weights, or the folder of a run of `train` or `demo`.")
    ],
    data: Annotated[
        str,
        typer.Option(
            help="A store that `prepare` made of SID, a folder of photographs or camera files, or "
            "`packaged`."
        ),
    ],
    protocol: Annotated[
        str,
        typer.Option(
            help="eld-crop: ELD's, the paper's (centre 512, brightness corrected). eld-full: whole "
            "frames with its correction. plain: whole frames, nothing corrected."
        ),
    ] = "eld-crop",
    split: Annotated[
        str | None, typer.Option(help="Split of a store: eld15 (the default), sid129, test, ...")
    ] = None,
    drop_misaligned: Annotated[
        bool, typer.Option("--drop-misaligned", help="Leave out SID's three misaligned scenes.")
    ] = False,
    gain: Annotated[
        float,
        typer.Option(help="System gain K of the noise on photographs, DN per electron."),
    ] = 4.0,
    model: Annotated[
        str | None, typer.Option(help="Name of the network, where the file does not say.")
    ] = None,
    step: Annotated[str | None, typer.Option(help="Step of a run, such as EL.")] = None,
    tile: Annotated[
        int | None,
        typer.Option(help="Restore whole frames in parts of so many packed pixels a side."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Where the values go, without an extension.")
    ] = None,
) -> None:
    """Measure a network on test pictures: PSNR, SSIM, and the noise that is left.

    Prints means for each exposure ratio; values of every picture go into a JSON and a CSV file.
    """
    with exit_codes(weights):
        run(
            weights,
            data=data,
            protocol=protocol,
            split=split,
            drop_misaligned=drop_misaligned,
            gain=gain,
            model=model,
            step=step,
            tile=tile,
            device=device,
            out=out or default_out(weights, step=step, protocol=protocol, data=data, split=split),
        )


def default_out(
    weights: Path, *, step: str | None, protocol: str, data: str, split: str | None
) -> Path:
    """Inside a run's folder, or beside a file of weights."""
    words = [*([step] if step else []), protocol, Path(data).name, *([split] if split else [])]
    name = re.sub(r"[^\w.-]+", "-", "-".join(words))
    if weights.is_dir():
        return weights / "evaluation" / name
    return weights.with_name(f"{weights.stem}-{name}")


def in_parts(side: int | None) -> Restore:
    """What runs a network, or one of its stages, on a picture of any size.

    Args:
        side: of the largest part, its surroundings included; None for the whole picture at once.
    """
    from eslkit.errors import InputError
    from eslkit_tsdn.evaluation import restore
    from eslkit_tsdn.reach import Reach, measure_reach
    from eslkit_tsdn.tiles import run_tiled

    if side is not None and side < 1:
        raise InputError(f"--tile {side}: expected a number of packed pixels, such as 512.")
    reaches: dict[int, Reach] = {}

    def restored(network: nn.Module, noisy: Tensor) -> Tensor:
        if id(network) not in reaches:
            reaches[id(network)] = measure_reach(copy.deepcopy(network).cpu())
        return run_tiled(
            lambda part: restore(network, part),
            noisy,
            reach=reaches[id(network)],
            max_pixels=noisy.shape[-2] * noisy.shape[-1] * 2 if side is None else side**2,
        )

    return restored


def run(
    weights: Path,
    *,
    data: str,
    protocol: str,
    split: str | None,
    drop_misaligned: bool,
    gain: float,
    model: str | None,
    step: str | None,
    tile: int | None,
    device: str,
    out: Path,
) -> None:
    """The evaluation itself; torch is imported here, after --help."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from eslkit_tsdn.budget import Machine
    from eslkit_tsdn.commands.checked import checked, one_of
    from eslkit_tsdn.datasets import StoredSid, open_dataset
    from eslkit_tsdn.fitting import accelerator
    from eslkit_tsdn.measuring import (
        evaluation_table,
        measure_network,
        remaining_noise_table,
        write_evaluation,
    )
    from eslkit_tsdn.metrics import PROTOCOLS
    from eslkit_tsdn.weights import load_network

    one_of("--protocol", protocol, PROTOCOLS)
    place = accelerator(checked(Machine, {"device": device}))
    dataset = open_dataset(data)
    network = load_network(weights, model=model, step=step).to(place)
    pairs = dataset.pairs(
        split=split,
        largest=PROTOCOLS[protocol].crop,
        gain=gain,
        drop_misaligned=drop_misaligned,
    )
    named = f"{weights}" if step is None else f"{weights}, step {step}"
    columns = ("measuring", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(pairs))
        evaluation = measure_network(
            network,
            pairs,
            name=named,
            protocol=protocol,
            data=data,
            split=(split or "eld15") if isinstance(dataset, StoredSid) else None,
            restore=in_parts(tile),
            advance=lambda: bar.advance(task),
        )
    console = Console()
    console.print(f"{type(network).__name__} of {named}", highlight=False, soft_wrap=True)
    console.print(evaluation_table(evaluation))
    console.print(remaining_noise_table(evaluation))
    for path in write_evaluation(evaluation, out):
        console.print(f"{path}", highlight=False, soft_wrap=True)
