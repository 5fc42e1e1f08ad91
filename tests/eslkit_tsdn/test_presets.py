"""Networks and lengths by name, against the paper's figures (facts, sections 1 and 6)."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from eslkit.errors import InputError
from eslkit_tsdn.presets import NETWORKS, PRESETS, Preset, build_network

PAPER = {
    "tsdn": 964_456,
    "unet": 7_760_484,
    "sunet": 1_941_300,
    "thsdn": 23_281_452,
    "tsdn1": 7_760_484,
    "tsdn2": 15_520_968,
    "tsdn3": 15_520_968,
    "tsdn4": 15_520_968,
    "cbdnet": 4_367_176,
    "nbnet": 13_309_860,
    "deamnet": 2_229_284,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_in_the_paper_s_widths_networks_have_the_paper_s_sizes(name):
    with torch.device("meta"):
        network = NETWORKS[name].build(PRESETS["paper"].widths)
    assert sum(parameter.numel() for parameter in network.parameters()) == PAPER[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_restores_in_the_smallest_preset(name):
    network = build_network(name, widths=PRESETS["smoke"].widths).eval()
    assert network(torch.zeros(1, 4, 32, 32)).shape == (1, 4, 32, 32)
    factors = NETWORKS[name].weights
    outputs = network.train()(torch.zeros(1, 4, 32, 32))
    assert factors is None or len(factors) == len(outputs)


def test_the_seed_decides_and_the_caller_s_random_numbers_stay():
    before = torch.get_rng_state()
    one, other = (build_network("tsdn", widths=(2, 3), seed=seed) for seed in (1, 2))
    again = build_network("tsdn", widths=(2, 3), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.stages[0].out.weight, again.stages[0].out.weight)
    assert not torch.equal(one.stages[0].out.weight, other.stages[0].out.weight)


def test_epochs_are_counted_out_on_the_data():
    paper, fast = PRESETS["paper"], PRESETS["paper-fast"]
    budget = paper.budget(num_crops=2240)
    assert (budget.iterations, budget.lr, budget.precision) == (672_000, 1e-4, "32")
    quick = fast.budget(num_crops=2240)
    assert quick.iterations * fast.batch_size == budget.iterations * paper.batch_size
    assert (quick.precision, quick.compiled, quick.fused) == ("bf16", True, True)
    assert fast.budget(num_crops=2240, num_processes=4).iterations == quick.iterations // 4
    assert paper.budget(num_crops=1, num_processes=8).iterations == 300
    assert PRESETS["mini"].budget(num_crops=5).iterations == 1000


def test_what_cannot_be_is_refused():
    with pytest.raises(ValidationError, match="epochs=None and iterations=None: expected one"):
        Preset(name="none")
    with pytest.raises(InputError, match="'resnet' is no network; known are tsdn, unet"):
        build_network("resnet", widths=(2, 3))
