"""Stages trained one after the other, each behind those that are finished."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from eslkit.errors import InputError
from eslkit_tsdn.budget import Budget, Machine
from eslkit_tsdn.data.crops import BatchSource
from eslkit_tsdn.fitting import fit
from eslkit_tsdn.models import TSDN, UNet
from eslkit_tsdn.stages import fit_stage_by_stage
from tests.eslkit_tsdn.fakes import drawn_photos

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

BUDGET = Budget(iterations=3, lr=1e-2)
CPU = Machine(device="cpu")


def source() -> BatchSource:
    return BatchSource(drawn_photos(2), batch_size=2, crop=8, gain=4.0, seed=0)


def network() -> TSDN:
    torch.manual_seed(3)
    return TSDN((2, 3))


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in one.state_dict().items())


def test_stages_are_each_trained_behind_finished_ones(tmp_path):
    model, told = network(), list[int]()
    alone = UNet((2, 3))
    alone.load_state_dict(model.stages[0].state_dict())
    fit(alone, source(), budget=BUDGET, machine=CPU)
    second = network()
    second.stages[0].load_state_dict(alone.state_dict())
    last = fit(
        second,
        source(),
        budget=BUDGET.model_copy(update={"weights": (0.0, 1.0)}),
        trainable=lambda name: name.startswith("stages.1."),
        machine=CPU,
    )
    go = partial(fit_stage_by_stage, source=source(), budget=BUDGET, machine=CPU, folder=tmp_path)
    losses = go(model, listener=lambda done, loss: told.append(done))
    assert same_bits(model.stages[0], alone)
    assert same_bits(model, second)
    assert losses["loss_stage2"] == last["loss"]
    assert told == [1, 2, 3, 4, 5, 6]
    read = network()
    assert go(read, listener=lambda done, loss: told.append(done)) == losses
    assert same_bits(read, model) and len(told) == 6
    with pytest.raises(InputError, match="A UNet has no stages"):
        fit_stage_by_stage(alone, source(), budget=BUDGET)
