"""Curves as TensorBoard reads them, also of trainings that were interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eslkit_tsdn.budget import Budget, Machine
from eslkit_tsdn.data.crops import BatchSource
from eslkit_tsdn.fitting import fit
from eslkit_tsdn.journal import Journal
from eslkit_tsdn.models import UNet
from tests.eslkit_tsdn.fakes import drawn_photos

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


def train(tmp_path: Path, journal: Journal, *, stop_at: int = 0) -> list[float]:
    losses: list[float] = []

    def listener(done: int, loss: float) -> None:
        losses.append(loss)
        if done == stop_at:
            raise KeyboardInterrupt("now")

    torch.manual_seed(3)
    fit(
        UNet((2, 3)),
        BatchSource(drawn_photos(2), batch_size=2, crop=8, gain=4.0),
        budget=Budget(iterations=12, lr=1e-2),
        folder=tmp_path / "fit",
        listener=listener,
        machine=Machine(device="cpu"),
        callbacks=[journal],
        checkpoint_every=4,
    )
    return losses


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    read = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }


def test_loss_learning_rate_and_validation_are_written(tmp_path):
    told: list[tuple[int, dict[str, float]]] = []
    journal = Journal(
        tmp_path / "curves",
        validate=lambda network: {"psnr_x100": float(network.training)},
        validate_every=4,
        log_every=3,
        tell=lambda done, measures: told.append((done, dict(measures))),
    )
    losses = train(tmp_path, journal)
    journal.write({"psnr_x100": 2.0}, 12)
    read = curves(tmp_path / "curves")
    assert [step for step, _ in read["loss"]] == [3, 6, 9, 12]
    means = [sum(losses[i : i + 3]) / 3 for i in (0, 3, 6, 9)]
    assert [value for _, value in read["loss"]] == pytest.approx(means)
    assert [value for _, value in read["lr"]] == pytest.approx([1e-2, 5e-3, 5e-3, 1e-3])
    assert read["psnr/x100"] == [(4, 1.0), (8, 1.0), (12, 2.0)]
    assert told == [(4, {"psnr_x100": 1.0}), (8, {"psnr_x100": 1.0})]


def test_what_lies_beyond_the_checkpoint_is_overtaken(tmp_path):
    whole = train(tmp_path / "whole", Journal(tmp_path / "a", log_every=1))
    with pytest.raises(KeyboardInterrupt, match="now"):
        train(tmp_path, Journal(tmp_path / "b", log_every=1), stop_at=7)
    train(tmp_path, Journal(tmp_path / "b", log_every=1))
    assert curves(tmp_path / "b") == curves(tmp_path / "a")
    assert [value for _, value in curves(tmp_path / "b")["loss"]] == pytest.approx(whole)
