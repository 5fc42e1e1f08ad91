"""What happens inside a training, written down for TensorBoard and told to whoever listens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

__all__ = ["Journal", "Validate"]

Validate = Callable[[nn.Module], Mapping[str, float]]
"""Network -> measures by name; it leaves the network as it was."""


class Journal(Callback):
    """Writes loss, learning rate and validation as TensorBoard reads them.

    A training that goes on after an interruption goes on in the same curves: what was written
    beyond its checkpoint is marked as overtaken. Of several processes the first writes.

    Args:
        folder: of this training; TensorBoard shows its name.
        validate: called with the network.
        validate_every: updates between validations; there is none after the last update.
        log_every: updates that a point of the loss stands for.
        tell: is told (updates made, measures) after every validation.
    """

    def __init__(
        self,
        folder: Path,
        *,
        validate: Validate | None = None,
        validate_every: int = 1000,
        log_every: int = 50,
        tell: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> None:
        self.folder, self.validate, self.tell = folder, validate, tell
        self.validate_every, self.log_every = validate_every, log_every
        self._writer: SummaryWriter | None = None
        self._sum, self._num = torch.zeros(()), 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the curves."""
        if trainer.is_global_zero:
            done = trainer.global_step
            self._writer = SummaryWriter(self.folder, purge_step=done + 1 if done else None)
            self._sum, self._num = torch.zeros((), device=pl_module.device), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One update was made."""
        if self._writer is None:
            return
        loss: Tensor = outputs["loss"]
        self._sum, self._num = self._sum + loss.detach(), self._num + 1
        done = trainer.global_step
        if done % self.log_every == 0 or done == trainer.max_steps:
            self._writer.add_scalar("loss", float(self._sum) / self._num, done)
            self._writer.add_scalar("lr", float(trainer.optimizers[0].param_groups[0]["lr"]), done)
            self._sum, self._num = torch.zeros_like(self._sum), 0
        if self.validate and done % self.validate_every == 0 and done != trainer.max_steps:
            measures = self.validate(cast(Any, pl_module).network)
            self.write(measures, done)
            if self.tell is not None:
                self.tell(done, measures)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the curves."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the curves; they go on where the training does."""
        self._close()

    def write(self, measures: Mapping[str, float], done: int) -> None:
        """Measures of a validation, `psnr_x100` as `psnr/x100`; also after the training.

        Args:
            measures: by name.
            done: updates that were made.
        """
        writer = self._writer or SummaryWriter(self.folder)
        for name, value in measures.items():
            writer.add_scalar(name.replace("_x", "/x"), value, done)
        if self._writer is None:
            writer.close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
