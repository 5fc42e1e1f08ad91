"""`eslkit-tsdn train`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from eslkit_tsdn.commands.exits import exit_codes

__all__ = ["train"]


def train(
    data: Annotated[
        str,
        typer.Option(
            help="A store that `prepare` made of SID, a folder of photographs or camera files, or "
            "`packaged`: photographs that come with the packages."
        ),
    ],
    model: Annotated[
        str,
        typer.Option(help="tsdn, unet, sunet, thsdn, tsdn1 to tsdn4, cbdnet, nbnet or deamnet."),
    ] = "tsdn",
    preset: Annotated[
        str, typer.Option(help="paper, paper-fast, mini, shipped or smoke: sizes, lengths.")
    ] = "mini",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/MODEL-PRESET by default.")
    ] = None,
    esl: Annotated[
        bool, typer.Option("--esl", help="By Expand-Shrink-Learning: the whole schedule.")
    ] = False,
    init: Annotated[
        str, typer.Option(help="With --esl: how weights are carried into a smaller network.")
    ] = "first",
    linear: Annotated[
        bool,
        typer.Option("--linear", help="With layers that are larger inside while they are trained."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
    noise: Annotated[
        str | None, typer.Option(help="real or synthetic; real pairs where a store has them.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="Split of a store to validate on; val-first by default.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the preset's length.")] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Updates of each training, instead of the preset's length.")
    ] = None,
    widths: Annotated[
        str | None, typer.Option(help="Channels of a stage of the small TSDN: 8,16,32.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Crops in a batch.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of a crop, packed pixels.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate at the start.")] = None,
    precision: Annotated[str | None, typer.Option(help="32 or bf16.")] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compiled/--not-compiled", help="Through torch.compile.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    devices: Annotated[int, typer.Option(help="Processes on this machine, a GPU each.")] = 1,
    num_nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    strategy: Annotated[str, typer.Option(help="Lightning's strategy, as ddp.")] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that prepare batches ahead.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move an earlier run aside.")] = False,
) -> None:
    """Train a denoiser, from scratch or by Expand-Shrink-Learning.

    Stopped at any moment and started again, it goes on where it was. TensorBoard shows its curves:
    tensorboard --logdir RUN/tensorboard.
    """
    changes = {
        "epochs": epochs,
        "iterations": iterations,
        "widths": None if widths is None else widths.split(","),
        "batch_size": batch,
        "crop": crop,
        "lr": lr,
        "precision": precision,
        "compiled": compiled,
    }
    machine = {
        "device": device,
        "devices": devices,
        "num_nodes": num_nodes,
        "strategy": strategy,
        "workers": workers,
    }
    asked = {
        "model": model,
        "esl": esl,
        "init": init,
        "linear": linear,
        "seed": seed,
        "validation": validation,
    }
    way = f"{'-esl' if esl else ''}{'-linear' if linear else ''}"
    folder = out or Path("runs") / f"{model}{way}-{preset}"
    with exit_codes(folder):
        run(
            asked,
            data=data,
            noise=noise,
            preset=preset,
            changes={name: value for name, value in changes.items() if value is not None},
            machine=machine,
            out=folder,
            fresh=fresh,
        )


def run(
    asked: dict[str, Any],
    *,
    data: str,
    noise: str | None,
    preset: str,
    changes: dict[str, Any],
    machine: dict[str, Any],
    out: Path,
    fresh: bool,
) -> None:
    """The training itself; torch is imported here, after --help."""
    from rich.console import Console

    from eslkit.ranks import rank
    from eslkit_tsdn.budget import Machine
    from eslkit_tsdn.commands.checked import checked, one_of
    from eslkit_tsdn.datasets import open_dataset
    from eslkit_tsdn.presets import NETWORKS, PRESETS, Preset
    from eslkit_tsdn.training_run import make_settings, run_training, validation_table

    one_of("--model", asked["model"], NETWORKS)
    base = PRESETS[one_of("--preset", preset, PRESETS)].model_dump()
    if "iterations" in changes or "epochs" in changes:
        base |= {"iterations": None, "epochs": None}
    where = checked(Machine, machine)
    dataset = open_dataset(data, noise=one_of("--noise", noise, ("real", "synthetic")))
    settings = make_settings(
        dataset=dataset, preset=checked(Preset, {**base, **changes}), machine=where, **asked
    )
    with Path(os.devnull).open("w") as nowhere:
        console = Console() if rank() == 0 else Console(file=nowhere)
        length = settings.budget.iterations
        console.print(
            f"{asked['model']} on {dataset.words}: {length:,} updates of "
            f"{settings.preset.batch_size * settings.num_processes} crops of "
            f"{settings.preset.crop}x{settings.preset.crop} a training. {out} keeps every step.",
            highlight=False,
            soft_wrap=True,
        )
        trained = run_training(
            settings, dataset, out=out, machine=where, fresh=fresh, console=console
        )
        console.print(validation_table(trained, settings))
        if trained.weights is not None:
            console.print(f"{trained.weights} is the network.", soft_wrap=True, highlight=False)
