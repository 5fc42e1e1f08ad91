"""Every network learns: trained for a short while on photographs, it denoises others better."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from eslkit.errors import InputError
from eslkit_tsdn.budget import Budget, Machine
from eslkit_tsdn.data.crops import BatchSource
from eslkit_tsdn.data.photos import packaged_photos, split
from eslkit_tsdn.data.source import NoisyBatch
from eslkit_tsdn.evaluation import TestPair, evaluate, evaluate_input, test_pairs
from eslkit_tsdn.fitting import fit
from eslkit_tsdn.losses import cbdnet_loss, last_stage_l1
from eslkit_tsdn.models import TSDN, CBDNet, DeamNet, DrawnNBNet, NBNet, UNet
from eslkit_tsdn.stages import fit_stage_by_stage

CPU = Machine(device="cpu")
SHORT = Budget(iterations=100, lr=5e-3)
GAIN = 6.0  # ISO 6400: noise that a few updates already make less of
Train = Callable[..., Any]

# Small widths, and how each network is trained.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Train]] = {
    "TSDN": (lambda: TSDN((8, 16)), fit),
    "TSDN2": (lambda: TSDN((8, 16)), partial(fit, loss=last_stage_l1)),
    "TSDN3": (lambda: TSDN((8, 16)), fit_stage_by_stage),
    "ThSDN": (lambda: TSDN((4, 8), stages=3), fit),
    "U-Net": (lambda: UNet((8, 16, 32)), fit),
    "CBDNet": (lambda: CBDNet((8, 8, 16), estimator_width=8), partial(fit, loss=last_stage_l1)),
    "CBDNet, own loss": (
        lambda: CBDNet((8, 8, 16), estimator_width=8),
        partial(fit, loss=cbdnet_loss),
    ),
    "NBNet": (lambda: NBNet((8, 16), skip_width=8, basis=4), fit),
    "NBNet as drawn": (lambda: DrawnNBNet((8, 16), basis=4), fit),
    "DeamNet": (lambda: DeamNet(8, gate_width=4, levels=2, iterations=2), fit),
}


@pytest.fixture(scope="module")
def photos() -> tuple[BatchSource, tuple[TestPair, ...]]:
    """Batches of small crops, and fixed crops of test pictures at x100."""
    training, testing = split(packaged_photos())
    source = BatchSource(training, batch_size=4, crop=24, seed="rivals", gain=GAIN)
    return source, test_pairs(testing, ratios=(300,), largest=64, gain=GAIN)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_short_training_improves_what_the_network_makes_of_other_pictures(name, photos):
    source, pairs = photos
    build, train = NETWORKS[name]
    network = build()
    before, given = evaluate(network, pairs), evaluate_input(pairs)
    train(network, source, budget=SHORT, machine=CPU)
    after = evaluate(network, pairs)
    assert after["psnr_x300"] > before["psnr_x300"] + 0.3
    assert after["psnr_x300"] > given["psnr_x300"] + 1


def test_stage_by_stage_is_each_stage_behind_the_finished_ones(photos):
    """The first stage ends in the bits that it has alone; the second does not touch it."""
    source, _ = photos
    few = Budget(iterations=3, lr=1e-3)
    network = TSDN((4, 8))
    alone, second = (copy.deepcopy(stage) for stage in network.stages)
    fit(alone, source, budget=few, machine=CPU)
    metrics = fit_stage_by_stage(network, source, budget=few, machine=CPU)
    assert set(metrics) == {"loss_stage1", "loss_stage2"}
    for name, tensor in alone.state_dict().items():
        assert torch.equal(network.stages[0].state_dict()[name], tensor)

    def behind_the_first(stage: nn.Module, batch: NoisyBatch) -> torch.Tensor:
        with torch.no_grad():
            image = alone(batch.noisy)
        return (stage(image) - batch.clean).abs().mean()

    fit(second, source, budget=few, loss=behind_the_first, machine=CPU)
    for name, tensor in second.state_dict().items():
        torch.testing.assert_close(network.stages[1].state_dict()[name], tensor)


def test_stage_by_stage_goes_on_in_its_folder(photos, tmp_path):
    source, _ = photos
    few = Budget(iterations=2, lr=1e-3)
    torch.manual_seed(1)
    network = TSDN((4, 8))
    other = copy.deepcopy(network)
    fit_stage_by_stage(network, source, budget=few, machine=CPU, folder=tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["stage1", "stage2"]
    again = fit_stage_by_stage(other, source, budget=few, machine=CPU, folder=tmp_path / "run")
    assert set(again) == {"loss_stage1", "loss_stage2"}
    for name, tensor in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


def test_stages_trained_one_by_one_have_no_weights(photos):
    weighed = Budget(iterations=1, weights=(0, 1))
    with pytest.raises(InputError, match=r"weights=\(0\.0, 1\.0\).*leave them out"):
        fit_stage_by_stage(TSDN((4, 8)), photos[0], budget=weighed)
