"""Training with Lightning: the module around a network, and the data that it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from eslkit.errors import InputError
from eslkit_tsdn.data.source import NoisyBatch, Source
from eslkit_tsdn.losses import Loss, all_stages_l1
from eslkit_tsdn.optimizer import make_optimizer

__all__ = ["DenoisingModule", "SourceDataModule"]


class DenoisingModule(LightningModule):
    """Trains a given network, in place.

    Args:
        network: gives one image or the images of all stages in training.
        iterations: updates in the whole training; they shape the learning rate.
        lr: learning rate at the start; 1e-4 in the paper.
        weights: one factor per stage, the paper's (alpha, beta); None for all 1.
        loss: of a network and a batch, instead of L1 on the image of every stage.
        channels_last: memory layout of the network and of its input while it trains.
        compiled: train through torch.compile.
        fused: let Adam update all parameters in one kernel.
        rate: updates made -> factor of the learning rate, instead of the paper's.

    Raises:
        InputError: iterations below 1, a learning rate that is not positive, or stage weights
            beside a loss that does not know them.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        iterations: int,
        lr: float = 1e-4,
        weights: Sequence[float] | None = None,
        loss: Loss | None = None,
        channels_last: bool = True,
        compiled: bool = False,
        fused: bool = False,
        rate: Callable[[int], float] | None = None,
    ) -> None:
        super().__init__()
        if iterations < 1:
            raise InputError(f"iterations={iterations}: a training needs at least one.")
        if not lr > 0:
            raise InputError(f"lr={lr}: the learning rate must be above 0.")
        if loss is not None and weights is not None:
            raise InputError(
                f"weights={tuple(weights)} are factors of the default loss, L1 on every stage: "
                "leave them out, and weigh the stages in your own loss."
            )
        self.network = network
        self.iterations, self.lr, self.fused, self.rate = iterations, lr, fused, rate
        self.channels_last = channels_last
        self.loss = loss or partial(all_stages_l1, weights=weights)
        # In a tuple, so that its parameters are not registered a second time.
        self.called = (cast(nn.Module, torch.compile(network)) if compiled else network,)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the network makes of packed images, (batch, 4, height, width)."""
        return self.network(x)

    def training_step(self, batch: NoisyBatch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        (network,) = self.called
        loss = self.loss(network, batch)
        # Logging costs a millisecond, a twentieth of a small network's update.
        number, every = self.trainer.global_step + 1, cast(Any, self.trainer).log_every_n_steps
        if number % max(1, every) == 0 or number == self.iterations:
            self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with the paper's steps of the learning rate, counted in iterations."""
        optimizer, scheduler = make_optimizer(
            self.network,
            lr=self.lr,
            iterations=self.iterations,
            rate=self.rate,
            fused=self.fused,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def setup(self, stage: str) -> None:
        """Channels last: convolutions of this size take two thirds of the time, on CPUs too.

        Here, before processes that train together agree on the layout of gradients.
        """
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def on_fit_end(self) -> None:
        """Back to the layout that weights are saved in."""
        self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


class _Batches:
    """Batches from the iteration that the training stands at, one for every update left."""

    def __init__(self, source: Source, numbers: Callable[[], range]) -> None:
        self.source, self.numbers = source, numbers

    def __iter__(self) -> Iterator[NoisyBatch]:
        numbers = self.numbers()
        if numbers.step == 1:
            return self.source.batches(numbers.start, numbers.stop)
        return map(self.source.batch, numbers)


class _Numbered(Dataset[NoisyBatch]):
    """A source as the processes that prepare batches ahead want it."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, index: int) -> NoisyBatch:
        return self.source.batch(index)


class SourceDataModule(LightningDataModule):
    """Training batches of a source, the same ones after an interruption.

    Batch k goes to update k, also in a training that Lightning resumed from a checkpoint. Of n
    processes that train together, process r gives batch k * n + r to update k. There is one
    pass, as long as the training.

    Args:
        source: draws the batches.
        iterations: how many updates the training has.
        workers: processes that prepare batches ahead.
    """

    def __init__(self, source: Source, *, iterations: int, workers: int = 0) -> None:
        super().__init__()
        self.source, self.iterations, self.workers = source, iterations, workers

    def train_dataloader(self) -> Iterable[NoisyBatch]:
        """An iterable over the batches that are left."""
        if not self.workers:
            return _Batches(self.source, self._numbers)
        return DataLoader(
            _Numbered(self.source),
            batch_size=None,
            sampler=self._numbers(),
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )

    def _numbers(self) -> range:
        """The numbers of this process's batches from here on."""
        start, rank, processes = 0, 0, 1
        if self.trainer is not None:
            start, rank = self.trainer.global_step, self.trainer.global_rank
            processes = self.trainer.world_size
        return range(start * processes + rank, self.iterations * processes, processes)
