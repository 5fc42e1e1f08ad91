"""Run as a script, by test_fitting_together: trains in two processes that Lightning starts.

Each process writes down the numbers of the batches that it saw, and its weights.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

from eslkit.ranks import rank
from eslkit_tsdn.budget import Budget, Machine
from eslkit_tsdn.data.crops import BatchSource
from eslkit_tsdn.fitting import fit
from eslkit_tsdn.models import TSDN
from tests.eslkit_tsdn.fakes import drawn_photos

BUDGET = Budget(iterations=4, lr=1e-2)


class Noted(BatchSource):
    """Notes the numbers of its batches."""

    def __init__(self) -> None:
        super().__init__(drawn_photos(2), batch_size=2, crop=8, gain=4.0, seed="test")
        self.numbers: list[int] = []

    def batch(self, index: int):
        self.numbers.append(index)
        return super().batch(index)


def network() -> TSDN:
    torch.manual_seed(3)
    return TSDN((2, 3, 4))


def main(folder: Path) -> None:
    warnings.filterwarnings("error")
    warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
    torch.set_num_threads(1)
    model, source = network(), Noted()
    if rank() > 0:
        torch.nn.init.zeros_(model.stages[0].out.bias)  # rank 0's weights count
    machine = Machine(device="cpu", devices=2, strategy="ddp")
    fit(model, source, budget=BUDGET, folder=folder / "fit", machine=machine, checkpoint_every=2)
    save_file(model.state_dict(), folder / f"rank{rank()}.safetensors")
    (folder / f"rank{rank()}.txt").write_text(" ".join(map(str, source.numbers)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
