"""Lightning trains what a plain loop trains, and goes on with the same bits when interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from eslkit.errors import InputError
from eslkit_tsdn.data.crops import BatchSource
from eslkit_tsdn.losses import stage_l1
from eslkit_tsdn.models import TSDN
from eslkit_tsdn.optimizer import make_optimizer
from eslkit_tsdn.training import DenoisingModule, SourceDataModule
from tests.eslkit_tsdn.fakes import drawn_photos

# Lightning 2.6 asks torch 2.13 in a way that torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

ITERATIONS = 8
WEIGHTS = (0.5, 1.0)


def source() -> BatchSource:
    return BatchSource(drawn_photos(2), batch_size=2, crop=8, gain=4.0, seed="test")


def network() -> nn.Module:
    torch.manual_seed(3)
    return TSDN((2, 3, 4))


class Stop(Callback):
    """Saves a checkpoint after some updates, and leaves."""

    def __init__(self, path: Path, after: int) -> None:
        self.path, self.after = path, after

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step == self.after:
            trainer.save_checkpoint(self.path)
            raise RuntimeError("pulled the plug")


def fit(model: nn.Module, *callbacks: Callback, resume: Path | None = None) -> None:
    loop = Trainer(
        max_steps=ITERATIONS,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    module = DenoisingModule(model, iterations=ITERATIONS, lr=1e-2, weights=WEIGHTS)
    data = SourceDataModule(source(), iterations=ITERATIONS)
    loop.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    assert loop.global_step == ITERATIONS


def plain_loop(model: nn.Module) -> None:
    model.train().to(memory_format=torch.channels_last)
    optimizer, scheduler = make_optimizer(model, lr=1e-2, iterations=ITERATIONS)
    for batch in source().batches(0, ITERATIONS):
        optimizer.zero_grad()
        stage_l1(model(batch.noisy), batch.clean, weights=WEIGHTS).backward()
        optimizer.step()
        scheduler.step()


def assert_same_bits(one: nn.Module, other: nn.Module) -> None:
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_lightning_trains_what_a_plain_loop_trains():
    trained, expected = network(), network()
    fit(trained)
    plain_loop(expected)
    assert_same_bits(trained, expected)
    assert all(p.is_contiguous() for p in trained.parameters())


@pytest.mark.parametrize("after", [1, 5, 7])
def test_resumed_equals_uninterrupted(tmp_path, after):
    whole, parts = network(), network()
    fit(whole)
    path = tmp_path / "last.ckpt"
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(parts, Stop(path, after))
    resumed = TSDN((2, 3, 4))
    fit(resumed, resume=path)
    assert_same_bits(resumed, whole)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(InputError, match="iterations=0"):
        DenoisingModule(network(), iterations=0)
    with pytest.raises(InputError, match="lr=0"):
        DenoisingModule(network(), iterations=1, lr=0)
