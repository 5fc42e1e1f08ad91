"""A real schedule trained by several processes: a plain DDP loop, or Lightning's strategy.

`torchrun --nproc-per-node 2 tests/eslkit/ranked_schedule.py (loop|lightning) FOLDER PAUSE`

Every rank ends with a file of its own that holds the network it ended with.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from eslkit.ranks import rank
from eslkit.schedule import schedule
from eslkit.trainer import StepContext, TrainerLike

SIDE = 8


class UNet(nn.Module):
    """One level, a transposed convolution and a concat skip."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 2, 3, padding=1)
        self.low = nn.Conv2d(2, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.leave = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.enter(x))
        low = torch.relu(self.low(nn.functional.max_pool2d(skip, 2)))
        return self.leave(torch.cat([self.up(low), skip], dim=1))


class Loop:
    """Data parallel, each rank on examples of its own."""

    def __init__(self, pause: float) -> None:
        self.pause = pause

    def fit(self, model: nn.Module, step: StepContext) -> Mapping[str, float]:
        network = DistributedDataParallel(model)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        loss = torch.zeros(())
        for _ in range(step.iterations or 1):
            x = torch.rand(2, 1, SIDE, SIDE)  # drawn by a generator that the rank's number seeds
            loss = (network(x) - x).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(self.pause)
        dist.all_reduce(loss.detach_())
        return {"loss": float(loss)}


def lightning_trainer(pause: float) -> TrainerLike:
    """Lightning with its DDP strategy; the sampler hands each rank its part of the data."""
    import lightning.pytorch as pl

    from eslkit.lightning import LightningTrainer

    class Module(pl.LightningModule):
        def __init__(self, network: nn.Module, step: StepContext) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            time.sleep(pause)
            loss = (self.network(batch[0]) - batch[0]).abs().mean()
            self.log("loss", loss, sync_dist=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    x = torch.rand(8, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(x), batch_size=2)
    return LightningTrainer(Module, loader, accelerator="cpu", devices=2, strategy="ddp")


def main(kind: str, folder: str, pause: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(rank())  # ranks that start from other weights end in the same ones
    if kind == "loop":
        dist.init_process_group("gloo")
    made = schedule(
        UNet(), depth=0, example_inputs=torch.zeros(1, 1, SIDE, SIDE), iterations=4, seed=3
    )
    trainer = Loop(float(pause)) if kind == "loop" else lightning_trainer(float(pause))
    result = made.run(trainer, out=folder)
    save_model(result.model, str(Path(folder) / f"rank{rank()}.safetensors"))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
