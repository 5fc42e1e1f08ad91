from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from eslkit.errors import InputError, TrainingError
from eslkit.trainer import StepContext, Trainer, as_trainer, checked_metrics
from tests.eslkit.small_walk import Loop, small_model, small_plan


def context(folder: Path | None = None) -> StepContext:
    plan = small_plan()
    return StepContext(plan.steps[1], 3, folder, 7, plan)


def test_objects_and_functions_become_trainers() -> None:
    loop = Loop()
    assert as_trainer(loop) is loop
    seen: list[object] = []

    def train(model: nn.Module, step: StepContext) -> dict[str, float]:
        seen.extend((model, step))
        return {"loss": 1.0}

    model, step = small_model(), context()
    trainer = as_trainer(train)
    assert isinstance(trainer, Trainer)
    assert trainer.fit(model, step) == {"loss": 1.0}
    assert seen == [model, step]


def test_the_context_forwards_the_step() -> None:
    step = context()
    assert (step.index, step.name, step.phase, step.iterations) == (2, "CSL1", "channels", 4)


@pytest.mark.parametrize(
    "trainer, match",
    [
        (Loop, r"is the class Loop, not an instance of it; pass Loop\(\.\.\.\)"),
        (nn.Linear(1, 1), r"is a torch.nn.*Linear; expected an object with fit"),
        (3, "is a builtins.int; expected"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_trainer_is_refused(trainer: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        as_trainer(trainer)


def test_lightnings_own_trainer_is_shown_the_adapter() -> None:
    pytorch = pytest.importorskip("lightning.pytorch")
    trainer = pytorch.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(InputError, match=r"eslkit\.lightning\.LightningTrainer"):
        as_trainer(trainer)


def test_metrics_become_plain_floats() -> None:
    metrics = {"a": 1, "b": torch.tensor([2.5]), "c": np.float32(0.5), "d": np.array([3])}
    checked = checked_metrics(metrics, where="Step EL")
    assert checked == {"a": 1.0, "b": 2.5, "c": 0.5, "d": 3.0}
    assert all(type(value) is float for value in checked.values())
    assert checked_metrics(None, where="Step EL") == {}


@pytest.mark.parametrize(
    "metrics, match",
    [
        (3.0, "Step EL: the trainer returned a float, expected a mapping"),
        ({"a": "good"}, "metric 'a' is a str, expected a text name and one number"),
        ({"a": torch.zeros(2)}, "metric 'a' is a Tensor"),
        ({1: 2.0}, "metric 1 is a float"),
        ({"a": float("nan")}, "metric 'a' is nan; training diverged"),
        ({"a": torch.tensor(float("inf"))}, "metric 'a' is inf"),
    ],
)
def test_metrics_that_cannot_be_kept_are_refused(metrics: Any, match: str) -> None:
    with pytest.raises(TrainingError, match=match):
        checked_metrics(metrics, where="Step EL")
