"""The small schedule trained by several processes with gloo.

`torchrun --nproc-per-node 2 -m tests.eslkit.ranked_walk FOLDER PAUSE`

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
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eslkit.driver import walk
from eslkit.store import RunStore
from eslkit.trainer import StepContext
from tests.eslkit.small_walk import small_model, small_plan, surgery


class Distributed:
    """Data parallel, each rank on examples of its own; the BatchNorm statistics are rank 0's."""

    def __init__(self, pause: float) -> None:
        self.pause = pause

    def fit(self, model: nn.Module, step: StepContext) -> Mapping[str, float]:
        network = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        generator = torch.Generator().manual_seed(dist.get_rank())
        loss = torch.zeros(())
        for _ in range(step.iterations or 1):
            x = torch.randn(4, 3, generator=generator)
            loss = (network(x) - x[:, :2]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(self.pause)
        dist.all_reduce(loss.detach_())
        return {"loss": float(loss)}


def main(folder: str, pause: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    network, _ = walk(
        small_model(seed=dist.get_rank()),
        small_plan(),
        surgery=surgery,
        trainer=Distributed(float(pause)),
        store=RunStore(folder),
    )
    save_model(network, str(Path(folder) / f"rank{dist.get_rank()}.safetensors"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
