"""One training of one network: what every recipe, command and rival trains through.

```python
metrics = fit(TSDN(), source, budget=Budget(iterations=2000), folder=Path("runs/mine"))
```

Killed at any moment and called again with the same arguments, it ends in the same bits (on the
CPU; CUDA's kernels may add in another order). A folder whose training is finished is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from eslkit.errors import InputError, StoreError, TrainingError
from eslkit.files import write_atomically
from eslkit.lightning import CHECKPOINT, fit_resumably
from eslkit.ranks import rank
from eslkit.seeding import seeded
from eslkit.store import tensors_of
from eslkit_tsdn.budget import Budget, Machine
from eslkit_tsdn.data.source import Source
from eslkit_tsdn.losses import Loss
from eslkit_tsdn.training import DenoisingModule, SourceDataModule

__all__ = ["Listener", "Training", "accelerator", "fit"]

Listener = Callable[[int, float], None]
"""Told (updates made, loss of the last): every update on a CPU, every `TOLD_EVERY` on a GPU."""

TOLD_EVERY = 20
"""Updates between two looks at the loss on a GPU, each of which waits for it."""

MEND = (
    "Lower the learning rate (lr), look for NaN in the data, or train in precision 32, and start "
    "again in another folder."
)
TRAINING, TRAINED = "training.json", "trained.safetensors"


class Training(BaseModel):
    """What the result of a training depends on, apart from the data and the loss."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: int = 1
    """Version of this form."""
    budget: Budget
    """How long and how."""
    seed: int
    """Of torch's, NumPy's and Python's generators."""
    batch_size: int
    """Crops in a batch."""
    crop: int
    """Height and width of a crop, in packed pixels."""
    num_processes: int
    """Processes that train together."""
    trainable: tuple[str, ...] | None
    """Names of the parameters that are updated; None for all."""
    parameters: int
    """Of the network."""


def fit(
    network: nn.Module,
    source: Source,
    *,
    budget: Budget,
    loss: Loss | None = None,
    rate: Callable[[int], float] | None = None,
    seed: int = 0,
    folder: Path | None = None,
    listener: Listener | None = None,
    trainable: Collection[str] | Callable[[str], bool] | None = None,
    machine: Machine | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_every: int | None = None,
) -> dict[str, float]:
    """Train a network in place.

    Args:
        network: ends with trained weights on the device and in the mode that it came in.
        source: gives batch k to update k.
        budget: how long, how fast, in which arithmetic.
        loss: of a network and a batch; None for L1 on the image of every stage, times
            `budget.weights`.
        rate: updates made -> factor of the learning rate, instead of the paper's.
        seed: of torch, NumPy and Python while it trains; the caller's generators are left alone.
        folder: keeps a checkpoint, from which the same call goes on, and the trained weights.
        listener: is told how far it is.
        trainable: names of parameters, or a function of a name: only these are updated. The
            statistics of norms still follow the data.
        machine: where it runs; a GPU if there is one.
        callbacks: Lightning's own, for logs and validation.
        checkpoint_every: updates between checkpoints; by default a 200th of the training, 50
            at least.

    Returns:
        `loss`, that of the last update.

    Raises:
        InputError: parameters that are not there, a device that is not there.
        StoreError: the folder holds another training, or cannot be written.
        TrainingError: the loss or a weight is no longer finite.
    """
    machine = machine or Machine()
    chosen = _chosen(network, trainable)
    training = Training(
        budget=budget,
        seed=seed,
        batch_size=source.batch_size,
        crop=source.crop,
        num_processes=machine.num_processes,
        trainable=None if trainable is None else chosen,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
    )
    if folder is not None:
        finished = _open(folder, training, network)
        if finished is not None:
            return finished
    module = DenoisingModule(
        network,
        loss=loss,
        rate=rate,
        **budget.model_dump(exclude={"precision"}),
    )
    every = checkpoint_every or max(50, budget.iterations // 200)
    watching = _Watch(listener, accelerated=accelerator(machine) != "cpu")
    with seeded(seed + rank()), _only(network, chosen), _as_it_came(network):
        metrics = fit_resumably(
            lambda: _trainer(budget, machine, folder, [*callbacks, watching]),
            module,
            SourceDataModule(source, iterations=budget.iterations, workers=machine.workers),
            folder=folder,
            checkpoint_every=every,
        )
    result = {"loss": metrics["loss"]}
    _check_finite(network)
    if folder is not None and rank() == 0:
        _close(folder, training, network, result)
    return result


def _trainer(
    budget: Budget, machine: Machine, folder: Path | None, callbacks: list[Callback]
) -> Trainer:
    return Trainer(
        max_steps=budget.iterations,
        max_epochs=-1,
        accelerator=accelerator(machine),
        devices=machine.devices,
        num_nodes=machine.num_nodes,
        strategy=machine.strategy,
        precision="bf16-mixed" if budget.precision == "bf16" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the data know their rank
        default_root_dir=folder,
        callbacks=callbacks,
    )


def accelerator(machine: Machine) -> str:
    """Lightning's name of the device that a training runs on.

    Raises:
        InputError: it is not there.
    """
    if machine.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device=cuda, but this PyTorch sees no CUDA GPU: train on the CPU (device=cpu), or "
            "install a PyTorch with CUDA and its driver."
        )
    return "cuda" if machine.device != "cpu" and torch.cuda.is_available() else "cpu"


class _Watch(Callback):
    """Tells the listener, and ends a training that has diverged."""

    def __init__(self, listener: Listener | None, *, accelerated: bool) -> None:
        self.listener, self.every = listener, TOLD_EVERY if accelerated else 1
        self.sum: Tensor | None = None  # of the losses since the last look; NaN stays NaN

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One update was made."""
        loss: Tensor = outputs["loss"]
        if self.every > 1:
            self.sum = loss if self.sum is None else self.sum + loss
        done = trainer.global_step
        if done % self.every and done != trainer.max_steps:
            return
        value, total = float(loss), float(loss if self.sum is None else self.sum)
        self.sum = None
        if not math.isfinite(total):
            raise TrainingError(
                f"The loss is {value if not math.isfinite(value) else total} at update {done} of "
                f"{trainer.max_steps}: the training diverged. {MEND}"
            )
        if self.listener is not None:
            self.listener(done, value)


def _chosen(
    network: nn.Module, trainable: Collection[str] | Callable[[str], bool] | None
) -> tuple[str, ...]:
    """Names of the parameters to update, in the network's order."""
    parameters, kind = dict(network.named_parameters()), type(network).__name__
    if trainable is None:
        chosen = tuple(name for name in parameters if parameters[name].requires_grad)
    elif callable(trainable):
        chosen = tuple(filter(trainable, parameters))
    else:
        if unknown := sorted(set(trainable) - set(parameters)):
            raise InputError(
                f"trainable names {unknown[0]!r}, which is no parameter of the {kind}; it has "
                f"{', '.join([*parameters][:3])}, ..."
            )
        chosen = tuple(name for name in parameters if name in trainable)
    if not chosen:
        raise InputError(
            f"No parameter of the {kind} is left to train: trainable, or requires_grad, leaves "
            "all of them out. Choose one or more."
        )
    return chosen


@contextmanager
def _only(network: nn.Module, chosen: Collection[str]) -> Generator[None]:
    """Only the chosen parameters get gradients; afterwards all are as they were."""
    before = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    kept = set(chosen)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in kept)
    try:
        yield
    finally:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(before[name])
            parameter.grad = None


@contextmanager
def _as_it_came(network: nn.Module) -> Generator[None]:
    """Training mode while it trains; afterwards mode, device and layout are as they were."""
    modes = {module: module.training for module in network.modules()}
    device = next(network.parameters()).device
    if not network.training:
        network.train()
    try:
        yield
    finally:
        network.to(device)
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for module, training in modes.items():
            module.training = training


def _check_finite(network: nn.Module) -> None:
    """The last update itself may have been the one."""
    for name, parameter in network.named_parameters():
        if not torch.isfinite(parameter).all():
            raise TrainingError(
                f"{name} holds NaN or infinity after the last update: the training diverged. {MEND}"
            )


def _open(folder: Path, training: Training, network: nn.Module) -> dict[str, float] | None:
    """Claim the folder for this training; what came out of it where it is finished."""
    path = folder / TRAINING
    if path.is_file():
        try:
            before = Training.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise StoreError(
                f"{path} cannot be read as the settings of a training. It was changed or written "
                "by another version; choose another folder."
            ) from error
        if before != training:
            raise StoreError(
                f"{folder} holds a training with other settings ({_differences(before, training)})."
                " Use those again, or choose another folder."
            )
        return _finished(folder / TRAINED, network)
    if (folder / CHECKPOINT).is_file() or (folder / TRAINED).is_file():
        raise StoreError(
            f"{folder} holds a checkpoint, but no {TRAINING} says of which training. Choose "
            "another folder."
        )
    if rank() == 0:
        write_atomically(path, training.model_dump_json(indent=2).encode())
    return None


def _differences(before: Training, now: Training) -> str:
    """The settings in which two trainings differ, as `iterations 600, now 300`."""
    old, new = (
        {**each.budget.model_dump(), **each.model_dump(exclude={"budget"})}
        for each in (before, now)
    )
    differing = [name for name in old if old[name] != new[name]]
    return "; ".join(f"{name} {old[name]}, now {new[name]}" for name in differing)


def _finished(path: Path, network: nn.Module) -> dict[str, float] | None:
    """The trained weights into the network, and the metrics; None where it is not finished."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metrics = json.loads(file.metadata()["metrics"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network.load_state_dict(weights, strict=True)
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path} is damaged, or of another network ({type(error).__name__}). Choose another "
            "folder, or remove it to train again."
        ) from error
    return metrics


def _close(folder: Path, training: Training, network: nn.Module, result: dict[str, float]) -> None:
    """Keep what came out of it; the checkpoint is needed no more."""
    metadata = {"metrics": json.dumps(result), "training": training.model_dump_json()}
    write_atomically(folder / TRAINED, save(tensors_of(network), metadata))
    (folder / CHECKPOINT).unlink(missing_ok=True)
