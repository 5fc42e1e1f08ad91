"""Training with Lightning: the module around a network, and the data that it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from eslkit.errors import InputError
from eslkit_tsdn.data.source import NoisyBatch, Source
from eslkit_tsdn.losses import stage_l1
from eslkit_tsdn.optimizer import make_optimizer

__all__ = ["DenoisingModule", "PhotoDataModule"]


class DenoisingModule(LightningModule):
    """Trains a given network, in place, with an L1 loss on the image of every stage.

    Args:
        network: gives one image or the images of all stages in training.
        iterations: updates in the whole training; they shape the learning rate.
        lr: learning rate at the start; 1e-4 in the paper.
        weights: one factor per stage, the paper's (alpha, beta); None for all 1.

    Raises:
        InputError: iterations below 1, or a learning rate that is not positive.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        iterations: int,
        lr: float = 1e-4,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if iterations < 1:
            raise InputError(f"iterations={iterations}: a training needs at least one.")
        if not lr > 0:
            raise InputError(f"lr={lr}: the learning rate must be above 0.")
        self.network = network
        self.iterations, self.lr, self.weights = iterations, lr, weights

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the network makes of packed images, (batch, 4, height, width)."""
        return self.network(x)

    def training_step(self, batch: NoisyBatch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss = stage_l1(self.network(batch.noisy), batch.clean, weights=self.weights)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with the paper's steps of the learning rate, counted in iterations."""
        optimizer, scheduler = make_optimizer(self.network, lr=self.lr, iterations=self.iterations)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_fit_start(self) -> None:
        """Channels last: convolutions of this size take two thirds of the time, on CPUs too."""
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def on_fit_end(self) -> None:
        """Back to the layout that weights are saved in."""
        self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


class _Batches:
    """Batches from the iteration that the training stands at, one for every update left."""

    def __init__(self, source: Source, start: Callable[[], int], stop: int) -> None:
        self.source, self.start, self.stop = source, start, stop

    def __iter__(self) -> Iterator[NoisyBatch]:
        return self.source.batches(self.start(), self.stop)


class PhotoDataModule(LightningDataModule):
    """Training batches drawn from photographs, the same ones after an interruption.

    Batch k goes to update k, also in a training that Lightning resumed from a checkpoint.
    There is one pass, as long as the training.

    Args:
        source: draws the batches.
        iterations: how many updates the training has.
    """

    def __init__(self, source: Source, *, iterations: int) -> None:
        super().__init__()
        self.source, self.iterations = source, iterations

    def train_dataloader(self) -> _Batches:
        """An iterable over the batches that are left."""
        return _Batches(self.source, self._updates, self.iterations)

    def _updates(self) -> int:
        return self.trainer.global_step if self.trainer is not None else 0
