"""What a method costs, against torch's own count of what its training really runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eslkit.errors import InputError
from eslkit_tsdn.budget import Budget
from eslkit_tsdn.data.source import NoisyBatch
from eslkit_tsdn.losses import all_stages_l1
from eslkit_tsdn.models import TSDN, UNet
from eslkit_tsdn.rivals.collaborative import collaborative_cost, distil_collaboratively
from eslkit_tsdn.rivals.costs import (
    TrainedPart,
    TrainingCost,
    iterations_for,
    macs_until,
    scratch_cost,
)
from eslkit_tsdn.rivals.distillation import distil, distil_cost
from eslkit_tsdn.rivals.expandnets import expandnet_cost, train_expandnet
from eslkit_tsdn.rivals.pruning import prune_and_finetune, pruning_cost
from eslkit_tsdn.rivals.scratch import train_scratch


class Grey:
    """Batches of one grey."""

    batch_size, crop = 3, 16

    def batch(self, index: int) -> NoisyBatch:
        image = torch.full((3, 4, 16, 16), 0.5)
        return NoisyBatch(image, image, torch.full((3,), 100.0))


SOURCE = Grey()
SMALL, LARGE = UNet((3, 4, 6)), UNet((5, 8, 9))


def counted(method: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch) -> int:
    """FLOPs of one update of each part, forward and backward, as torch counts what runs.

    The input asks for its gradient: the convention counts it for the first layer, where torch
    would save it.
    """
    total = 0

    def fit(
        network: nn.Module, source: Grey, *, budget: Budget, loss: object, **rest: object
    ) -> None:
        nonlocal total
        noisy, clean, ratio = source.batch(0)
        names = rest["trainable"]
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(names is None or name in names)
        whole = names is None or any("encoder" in name for name in names)
        batch = NoisyBatch(noisy.clone().requires_grad_(whole), clean, ratio)
        with FlopCounterMode(display=False) as counter:
            (loss or all_stages_l1)(network.train(), batch).backward()
        total += counter.get_total_flops()
        network.requires_grad_(True)

    monkeypatch.setattr("eslkit_tsdn.rivals.running.fit", fit)
    method(budget=Budget(iterations=2))
    return total


METHODS = {
    "scratch": (partial(train_scratch, SMALL, SOURCE), partial(scratch_cost, SMALL, SOURCE)),
    "stages": (partial(train_scratch, t := TSDN((3, 4)), SOURCE), partial(scratch_cost, t, SOURCE)),
    "distil": (
        partial(distil, SMALL, LARGE, SOURCE),
        partial(distil_cost, SMALL, LARGE, SOURCE),
    ),
    "distil, features": (
        partial(distil, SMALL, LARGE, SOURCE, feature=1.0),
        partial(distil_cost, SMALL, LARGE, SOURCE, feature=1.0),
    ),
    "collaborative": (
        partial(distil_collaboratively, SMALL, LARGE, SOURCE),
        partial(collaborative_cost, SMALL, LARGE, SOURCE),
    ),
    "collaborative, faithful": (
        partial(distil_collaboratively, SMALL, LARGE, SOURCE, form="faithful"),
        partial(collaborative_cost, SMALL, LARGE, SOURCE, form="faithful"),
    ),
    "collaborative, no perceptual loss": (
        partial(
            distil_collaboratively, SMALL, LARGE, SOURCE, form="faithful", perceptual=(0.0, 0.0)
        ),
        partial(collaborative_cost, SMALL, LARGE, SOURCE, form="faithful", perceptual=(0.0, 0.0)),
    ),
    "expandnet": (
        partial(train_expandnet, SMALL, SOURCE, rate=2, transposed=True),
        partial(expandnet_cost, SMALL, SOURCE, rate=2, transposed=True),
    ),
    "pruned": (
        partial(prune_and_finetune, SMALL, LARGE, SOURCE, steps=2, engine="eslkit"),
        partial(pruning_cost, SMALL, LARGE, SOURCE, steps=2),
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_costs_what_it_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the FLOP."""
    method, cost_of = METHODS[name]
    costs = cost_of(iterations=2)
    per_update = sum(part.flops // part.iterations for part in costs.parts)
    assert costs.iterations == 2
    # The first layer behind the frozen bottleneck needs no gradient of its input (6 to 4 channels,
    # 2x2, at 4x4 positions of 3 crops); the convention counts it as it does any first layer.
    saved = 2 * 6 * 4 * 4 * 16 * 3 if "form" in method.keywords else 0
    assert counted(method, monkeypatch) == per_update - saved


def test_tsdn_from_scratch_costs_what_the_facts_say() -> None:
    """Facts, section 1: 300 epochs of 2,240 updates of 1x4x512x512 are 75 PFLOP."""
    source = Grey()
    with torch.device("meta"):
        image = torch.empty(1, 4, 512, 512)
    source.batch = lambda index: NoisyBatch(image, image, image)  # type: ignore[method-assign]
    flops = scratch_cost(TSDN(), source, iterations=300 * 2240).flops
    assert round(flops / 1e15) == 75


def test_a_network_is_counted_as_far_as_it_runs() -> None:
    model, x = UNet((3, 4, 6)), torch.zeros(2, 4, 8, 8)
    positions = [2 * 64, 2 * 16, 2 * 4]
    by_hand = 9 * (
        positions[0] * (4 * 3 + 3 * 3)
        + positions[1] * (3 * 4 + 4 * 4)
        + positions[2] * (4 * 6 + 36)
    )
    assert macs_until(model, x, taps=["encoder.0", "middle"]) == by_hand


@pytest.mark.parametrize("parts", [1, 3])
def test_the_most_iterations_within_a_budget_are_found(parts: int) -> None:
    def cost_of(iterations: int) -> TrainingCost:
        if iterations < parts:
            raise InputError("too few")
        return TrainingCost((TrainedPart("x", iterations, trained=7, passed=2, asked=1),))

    each = 2 * (3 * 7 + 2 * 2 + 1)
    for wanted in (3, 64, 65, 1000, 123_457):
        assert iterations_for(wanted * each, cost_of) == wanted
        assert iterations_for(wanted * each + each - 1, cost_of) == wanted
    with pytest.raises(InputError, match="less than the first iterations"):
        iterations_for(each * parts - 1, cost_of)


def test_costs_add_up() -> None:
    teacher = scratch_cost(LARGE, SOURCE, iterations=5)
    student = distil_cost(SMALL, LARGE, SOURCE, iterations=7)
    both = teacher + student
    assert both.flops == teacher.flops + student.flops and both.iterations == 12
