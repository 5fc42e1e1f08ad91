"""One run of `eslkit-tsdn train`: its settings, its trainings, what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from eslkit.errors import InputError
from eslkit.plan import Plan, Step
from eslkit.ranks import rank
from eslkit.recipes import RECIPES
from eslkit.schedule import Result
from eslkit.trainer import StepContext
from eslkit.words import describe
from eslkit_tsdn.budget import Budget, Machine
from eslkit_tsdn.data.pairs import TestPair
from eslkit_tsdn.data.source import Source
from eslkit_tsdn.datasets import Dataset, Noise, StoredSid
from eslkit_tsdn.demo.progress import DemoProgress, Work, say
from eslkit_tsdn.demo.runs import follow
from eslkit_tsdn.esl import FitTrainer, plan_esl, train_esl
from eslkit_tsdn.evaluation import evaluate, evaluate_input
from eslkit_tsdn.fitting import accelerator, fit
from eslkit_tsdn.journal import Journal
from eslkit_tsdn.metrics import illuminance_correct, psnr
from eslkit_tsdn.presets import NETWORKS, Preset, build_network
from eslkit_tsdn.run_folder import claim_folder
from eslkit_tsdn.stages import fit_stage_by_stage
from eslkit_tsdn.weights import NETWORK_FILE, save_network

__all__ = ["TrainSettings", "Trained", "make_settings", "run_training", "validation_table"]

SCRATCH = "scratch"


class TrainSettings(BaseModel):
    """Everything that the numbers of a training run depend on."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: Literal[1] = 1
    """Version of this form."""
    model: str
    """Which network, a key of `eslkit_tsdn.presets.NETWORKS`."""
    esl: bool
    """Whether it is trained by Expand-Shrink-Learning, or once as it is."""
    init: str = "first"
    """Policy of the shrinking steps."""
    linear: bool = False
    """Whether every layer is larger inside while it is trained, as in eslkit's recipe `linear`."""
    preset: Preset
    """Sizes and lengths, as asked for."""
    budget: Budget
    """Of each training, epochs counted out."""
    epoch: int = Field(ge=1)
    """Updates in a pass over the data."""
    data: Literal["packaged", "folder", "store"]
    """What kind of pictures."""
    photos: str
    """SHA-256 of the pictures."""
    noise: Noise
    """Where the noise comes from."""
    validation: str | None
    """Split that is validated on; None for the test pictures of photographs."""
    seed: int = Field(default=0, ge=0)
    """Of weights and batches."""
    num_processes: int = Field(default=1, ge=1)
    """Processes that train together."""


@dataclass(frozen=True)
class Trained:
    """What a run ends with."""

    result: Result
    """The network, and the record of every training."""
    plan: Plan
    """The trainings."""
    noisy: Mapping[str, float]
    """PSNR and SSIM of the noisy pictures that were validated on."""
    weights: Path | None
    """The file of the network; None where its form cannot be named in one."""


def make_settings(
    model: str,
    dataset: Dataset,
    *,
    preset: Preset,
    esl: bool = False,
    init: str = "first",
    linear: bool = False,
    validation: str | None = None,
    seed: int = 0,
    machine: Machine | None = None,
) -> TrainSettings:
    """The settings of a run, epochs counted out on the data.

    Args:
        model: a key of `NETWORKS`.
        dataset: what to train on.
        preset: sizes and lengths.
        esl: by Expand-Shrink-Learning.
        init: policy of the shrinking steps.
        linear: with layers that are larger inside while they are trained, at the lower rates of
            eslkit's recipe `linear`.
        validation: a split of a store; `val-first` if none is named.
        seed: of weights and batches.
        machine: how many processes train together.

    Raises:
        InputError: no such network, one that cannot be trained so, or a preset that does not go
            with the data.
    """
    if model not in NETWORKS:
        raise InputError(f"{model!r} is no network; known are {', '.join(NETWORKS)}.")
    if esl and NETWORKS[model].in_turn:
        raise InputError(
            f"{model} is trained stage by stage, so it has no Expand-Shrink-Learning: leave out "
            "--esl, or take --model tsdn."
        )
    processes = (machine or Machine()).num_processes
    num_crops = dataset.num_crops(crop=preset.crop)
    named = NETWORKS[model].weights
    weights = None if NETWORKS[model].in_turn else named
    budget = preset.budget(num_crops=num_crops, num_processes=processes)
    if isinstance(dataset, StoredSid):
        validation = validation or "val-first"
    return TrainSettings(
        model=model,
        esl=esl,
        init=init,
        linear=linear,
        preset=preset,
        budget=budget.model_copy(update={"weights": weights}),
        epoch=preset.epoch_iterations(num_crops=num_crops, num_processes=processes),
        data=dataset.kind,
        photos=dataset.digest,
        noise=dataset.noise,
        validation=validation,
        seed=seed,
        num_processes=processes,
    )


def run_training(
    settings: TrainSettings,
    dataset: Dataset,
    *,
    out: Path,
    machine: Machine | None = None,
    fresh: bool = False,
    console: Console,
) -> Trained:
    """Train, go on with an interrupted run, or read a finished one.

    Args:
        settings: what to train, and for how long.
        dataset: the pictures that the settings were made for.
        out: gets everything; made when missing.
        machine: where it runs.
        fresh: move what `out` holds aside and start over.
        console: where progress goes; of several processes the first shows it.

    Raises:
        EslError: pictures, settings or a folder that cannot be used, or a training that
            diverged; what was finished is kept.
    """
    accelerator(machine or Machine())
    if rank() == 0:
        tell = partial(say, console)
        claim_folder(out, settings, what="training", fresh=fresh, say=tell)
    preset, budget = settings.preset, settings.budget
    pairs = dataset.pairs(
        split=settings.validation,
        largest=preset.largest,
        gain=preset.gain,
        multiple=_multiple(settings),
    )
    model = build_network(settings.model, widths=preset.widths, seed=settings.seed)
    first = _source(settings, dataset, index=1)
    options = _options(settings)
    plan = plan_esl(model, first, budget=budget, seed=settings.seed, **options).plan
    with DemoProgress(_works(plan, settings), console=console) as progress:
        result = train_esl(
            model,
            first,
            budget=budget,
            out=out,
            seed=settings.seed,
            trainer=_trainer(settings, dataset, pairs, out=out, machine=machine, shown=progress),
            followers=[follow(progress)],
            **options,
        )
    noisy = evaluate_input(pairs)
    weights = _keep(settings, result, out=out) if rank() == 0 else None
    return Trained(result, plan, noisy, weights)


def _options(settings: TrainSettings) -> dict[str, Any]:
    """What `train_esl` is told of the schedule."""
    options = {"row": None, "init": settings.init} if settings.esl else {"row": "ESL4"}
    if not settings.linear:
        return options
    inside = RECIPES["linear"]
    return {**options, "linear": inside.linear, "scale_rates": inside.scale_rates}


def _multiple(settings: TrainSettings) -> int:
    """What sides must be divisible by for all networks of a run: they halve so often at most."""
    halvings = len(settings.preset.widths) + settings.esl
    return 2 ** max(halvings, 4 if settings.model in ("nbnet", "deamnet") else 0)


def _source(settings: TrainSettings, dataset: Dataset, *, index: int) -> Source:
    """The batches of one training; each sees others."""
    preset = settings.preset
    return dataset.source(
        batch_size=preset.batch_size,
        crop=preset.crop,
        gain=preset.gain,
        ratios=preset.ratios,
        seed=f"{settings.seed}/{index}",
    )


def _trainer(
    settings: TrainSettings,
    dataset: Dataset,
    pairs: Sequence[TestPair],
    *,
    out: Path,
    machine: Machine | None,
    shown: DemoProgress,
) -> FitTrainer:
    length = settings.budget.iterations
    every = settings.epoch if settings.preset.epochs else max(10, length // 10)

    def journals(step: StepContext) -> list[Journal]:
        def tell(done: int, measures: Mapping[str, float]) -> None:
            if not shown.console.is_terminal:
                values = _in_words(measures)
                say(shown.console, f"  {step.name}: {done:,} of {length:,} updates, {values}")

        folder = out / "tensorboard" / step.name
        validate = partial(evaluate, pairs=pairs, compare=_psnr_only)
        return [
            Journal(
                folder,
                validate=validate,
                validate_every=every,
                log_every=max(1, min(50, length // 20)),
                tell=tell,
            )
        ]

    return FitTrainer(
        source=lambda step: _source(settings, dataset, index=step.index),
        budget=settings.budget,
        validate=partial(evaluate, pairs=pairs),
        machine=machine,
        listener=lambda step, done, loss: shown.update(step.name, done, loss),
        callbacks=journals,
        method=fit_stage_by_stage if NETWORKS[settings.model].in_turn else fit,
    )


def _psnr_only(pred: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """PSNR by ELD's protocol, without SSIM, which takes much longer."""
    return {"psnr": psnr(illuminance_correct(pred, target).clamp(0, 1), target)}


def _works(plan: Plan, settings: TrainSettings) -> list[Work]:
    return [
        Work(
            name=step.name,
            title=f"{step.name}, step {step.index} of {len(plan.steps)}: {describe(step, plan)}"
            if settings.esl
            else f"{NETWORKS[settings.model].words}",
            iterations=_updates(step, settings),
            macs=step.macs,
            label=step.name if settings.esl else settings.model,
        )
        for step in plan.steps
    ]


def _updates(step: Step, settings: TrainSettings) -> int:
    """All updates of a training; two stages that are trained in turn have twice as many."""
    return (2 if NETWORKS[settings.model].in_turn else 1) * (step.iterations or 1)


def _in_words(measures: Mapping[str, float]) -> str:
    values = (
        f"{value:.2f} at {name.removeprefix('psnr_')}"
        for name, value in measures.items()
        if name.startswith("psnr_")
    )
    return f"PSNR {', '.join(values)}"


def _keep(settings: TrainSettings, result: Result, *, out: Path) -> Path | None:
    """The network as one file beside the run; one that is there already stays."""
    path = out / NETWORK_FILE
    if path.is_file():
        kept, now = load_file(path), result.model.state_dict()
        if kept.keys() == now.keys() and all(torch.equal(kept[key], now[key]) for key in now):
            return path
    figures = result.records[-1].metrics
    metadata = {
        "trained_by": "eslkit-tsdn train",
        "settings": settings.model_dump_json(),
        "validation": ", ".join(f"{name} {value:.4f}" for name, value in figures.items()),
        **{f"version_{name}": value for name, value in result.records[-1].versions.items()},
    }
    try:
        save_network(result.model, path, metadata=metadata)
    except InputError:  # a form that no file names yet: the run's own folder has the weights
        return None
    return path


def validation_table(trained: Trained, settings: TrainSettings) -> Table:
    """PSNR and SSIM of every network of a run on the pictures that it was validated on.

    Args:
        trained: what came out of it.
        settings: what it was.
    """
    ratios = [name.removeprefix("psnr_") for name in trained.noisy if name.startswith("psnr_")]
    where = settings.validation or "held-out photographs"
    table = Table(title=f"{settings.model} on {where}: PSNR in dB / SSIM", title_justify="left")
    table.add_column("network", no_wrap=True)
    for name in ("parameters", "updates", *ratios):
        table.add_column(name, justify="right", no_wrap=True)

    def figures(metrics: Mapping[str, float]) -> list[str]:
        values = ((metrics[f"psnr_{ratio}"], metrics[f"ssim_{ratio}"]) for ratio in ratios)
        return [f"{decibels:.2f}/{likeness:.3f}" for decibels, likeness in values]

    table.add_row("noisy input", "", "", *figures(trained.noisy))
    for step, record in zip(trained.plan.steps, trained.result.records, strict=True):
        table.add_row(
            step.name if settings.esl else settings.model,
            f"{step.parameters:,}",
            f"{_updates(step, settings):,}",
            *figures(record.metrics),
        )
    return table
