"""The paper's walk, reached by planning: every size of its tables (facts, section 1)."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import eslkit
from eslkit.plan import Plan
from eslkit.steps import apply_step
from eslkit_tsdn.models.tsdn import TSDN
from eslkit_tsdn.models.unet import SUNet, UNet

FULL = (1, 4, 512, 512)

TSDN_WALK = (
    ("EL", 15_520_968, 193.542),
    ("CSL1", 9_424_840, 177.436),
    ("CSL2", 5_245_768, 143.210),
    ("CSL3", 4_200_712, 108.985),
    ("CSL4", 3_939_304, 74.759),
    ("CSL5", 3_882_600, 48.721),
    ("LSL1", 1_554_792, 42.144),
    ("LSL2", 964_456, 37.313),
)
UNET_WALK = (
    ("EL", 31_032_516, 385.742),
    ("CSL1", 18_841_540, 353.529),
    ("CSL2", 10_484_548, 285.078),
    ("CSL3", 8_395_012, 216.627),
    ("CSL4", 7_872_484, 148.176),
    ("CSL5", 7_760_484, 96.771),
)
SUNET_WALK = (
    ("EL", 7_760_484, 96.771),
    ("CSL1", 4_712_420, 88.718),
    ("CSL2", 2_622_884, 71.605),
    ("CSL3", 2_100_356, 54.492),
    ("CSL4", 1_969_652, 37.380),
    ("CSL5", 1_941_300, 24.361),
)


def walk_of(plan: Plan) -> tuple[tuple[str, int, float], ...]:
    return tuple((s.name, s.parameters, round(2 * s.macs / 1e9, 3)) for s in plan.steps)


@pytest.fixture(scope="module")
def tsdn_plan() -> Plan:
    return eslkit.schedule(TSDN(), depth=1, example_inputs=torch.zeros(FULL)).plan


@pytest.fixture(scope="module")
def small_tsdn() -> eslkit.Schedule:
    """The same form at an eighth of the widths, to be walked for real."""
    model = TSDN(widths=(2, 4, 8, 16))
    return eslkit.schedule(model, depth=1, example_inputs=torch.zeros(1, 4, 32, 32))


def test_tsdn_walks_through_the_paper_s_eight_networks(tsdn_plan: Plan) -> None:
    assert walk_of(tsdn_plan) == TSDN_WALK
    assert [step.phase for step in tsdn_plan.steps] == [
        "expand",
        *["channels"] * 5,
        *["layers"] * 2,
    ]
    assert [step.layers for step in tsdn_plan.steps[-2:]] == [6, 4]


def test_tsdn_costs_22_trainings_from_scratch(tsdn_plan: Plan) -> None:
    assert round(sum(map(tsdn_plan.cost, tsdn_plan.steps)), 2) == 22.14
    assert tsdn_plan.base_parameters == 964_456


@pytest.mark.parametrize(
    "make, walk, total", [(UNet, UNET_WALK, 15.36), (SUNet, SUNET_WALK, 15.33)]
)
def test_unets_walk_through_the_paper_s_six_networks(
    make: type[nn.Module], walk: tuple[tuple[str, int, float], ...], total: float
) -> None:
    plan = eslkit.schedule(make(), depth=0, example_inputs=torch.zeros(FULL)).plan
    assert walk_of(plan) == walk
    assert round(sum(map(plan.cost, plan.steps)), 2) == total


@pytest.mark.parametrize("make, gflops", [(TSDN, 37.31), (UNet, 96.77)])
def test_the_cost_is_that_of_the_paper_and_of_torch(make: type[nn.Module], gflops: float) -> None:
    price = eslkit.cost(make(), example_inputs=torch.zeros(FULL, device="meta"))
    assert round(price.flops / 1e9, 2) == gflops
    model = make().to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(FULL, device="meta"))
    assert price.flops == counter.get_total_flops()


def test_first_equals_slicing_by_hand() -> None:
    """Law 6, on a U-Net: the aligned slice (the first of what came up, all or the first of the
    skip), where the middle alone is halved and where every width is."""
    x = torch.zeros(1, 4, 16, 16)
    big = UNet(widths=(4, 8, 16))
    names = eslkit.trace(big, example_inputs=x).widths
    assert {n: w for n, w in names.items() if n.startswith(("middle", "decoder.1.up"))} == {
        "middle.conv1": 16,
        "middle.conv2": 16,
        "decoder.1.up": 8,
    }
    halved = {"middle.conv1": 8, "middle.conv2": 8, "decoder.1.up": 4}
    narrow = eslkit.resize(big, halved, init="first", example_inputs=x).state_dict()
    old = big.state_dict()
    assert torch.equal(narrow["middle.conv1.weight"], old["middle.conv1.weight"][:8])
    assert torch.equal(narrow["middle.conv2.weight"], old["middle.conv2.weight"][:8, :8])
    assert torch.equal(narrow["decoder.1.up.weight"], old["decoder.1.up.weight"][:8, :4])
    assert torch.equal(narrow["decoder.1.up.bias"], old["decoder.1.up.bias"][:4])
    joined = torch.cat(
        [old["decoder.1.conv1.weight"][:, :4], old["decoder.1.conv1.weight"][:, 8:]], 1
    )
    assert torch.equal(narrow["decoder.1.conv1.weight"], joined)
    small = eslkit.inherit(UNet(widths=(2, 4, 8)), big, example_inputs=x).state_dict()
    assert torch.equal(small["encoder.0.conv1.weight"], old["encoder.0.conv1.weight"][:2])
    assert torch.equal(small["encoder.1.conv1.weight"], old["encoder.1.conv1.weight"][:4, :2])
    assert torch.equal(small["out.weight"], old["out.weight"][:, :2])
    assert torch.equal(small["out.bias"], old["out.bias"])
    first = old["decoder.0.conv1.weight"]
    assert torch.equal(
        small["decoder.0.conv1.weight"], torch.cat([first[:2, :2], first[:2, 4:6]], 1)
    )


def test_the_walk_ends_in_the_model_s_own_keys_and_shapes(small_tsdn: eslkit.Schedule) -> None:
    """And LSL1 keeps the half of the exit's input that was the skip connection."""
    network = small_tsdn.model
    for step in small_tsdn.steps:
        before = network.state_dict()
        network = apply_step(network, step, plan=small_tsdn.plan)
        assert sum(p.numel() for p in network.parameters()) == step.parameters
        if step.name == "LSL1":
            after = network.state_dict()
            exits = [key for key in after if key.endswith("level.exit.conv.weight")]
            assert len(exits) == 2
            for key in exits:
                half = before[key].shape[1] // 2
                assert torch.equal(after[key], before[key][:, half:])
                untouched = key.replace("exit", "entry")
                assert torch.equal(after[untouched], before[untouched])
    assert type(network) is TSDN
    shapes = {key: value.shape for key, value in small_tsdn.model.state_dict().items()}
    assert {key: value.shape for key, value in network.state_dict().items()} == shapes
    assert list(network.state_dict()) == list(shapes)


@pytest.mark.parametrize(
    "row, trainings, cost, parameters",
    [
        ("CSL1", 2, 6.49, 3_882_600),
        ("CSL2", 6, 20.01, 3_882_600),
        ("CSL3", 1, 1.31, 3_882_600),
        ("ESL1", 3, 7.49, 964_456),
        ("ESL2", 7, 21.01, 964_456),
        ("ESL3", 8, 22.14, 964_456),
        ("ESL4", 1, 1.00, 964_456),
        ("ESL5", 2, 6.19, 964_456),
    ],
)
def test_the_rows_of_tables_iii_and_iv(
    row: str, trainings: int, cost: float, parameters: int
) -> None:
    plan = eslkit.paper(TSDN(), row, example_inputs=torch.zeros(FULL)).plan
    assert plan.granularity == row
    assert len(plan.steps) == trainings
    assert round(sum(map(plan.cost, plan.steps)), 2) == cost
    assert plan.steps[-1].parameters == parameters


@pytest.mark.parametrize("row", ["ESL4", "ESL5"])
def test_a_row_with_layers_that_are_larger_inside_ends_as_it_would_without(row: str) -> None:
    """Expanded only while it is trained: nobody trains, so nothing differs but rounding."""
    small, x = TSDN(widths=(2, 4)), torch.zeros(1, 4, 16, 16)
    plain, inside = (eslkit.paper(small, row, linear=linear, example_inputs=x) for linear in (0, 4))
    assert [step.macs for step in inside.steps] == [step.macs for step in plain.steps]
    parameters: list[int] = []

    def train(model: nn.Module, step: eslkit.StepContext) -> None:
        parameters.append(sum(p.numel() for p in model.parameters()))

    ends = [made.run(train).model.state_dict() for made in (plain, inside)]
    before, larger = parameters[: len(plain.steps)], parameters[len(plain.steps) :]
    assert all(more > 2 * few for few, more in zip(before, larger, strict=True))
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value)
    with pytest.raises(eslkit.EslError, match="linear=-1: expected a whole number from 0"):
        eslkit.paper(small, row, linear=-1)


@pytest.mark.parametrize("init", ["first", "last", "combined"])
def test_a_row_that_keeps_its_levels_is_run_to_its_end(init: str) -> None:
    """Table III: CSL2 with First, Last and Combined, on an eighth of the widths."""
    made = eslkit.paper(
        TSDN(widths=(2, 4)), "CSL1", init=init, example_inputs=torch.zeros(1, 4, 16, 16)
    )
    assert [step.init for step in made.steps] == ["random", init]
    result = made.run(lambda model, step: None)
    keys = list(result.model.state_dict())
    assert any(".level." in key for key in keys)
    with pytest.raises(eslkit.EslError, match=r"row='ESL9' is none of the paper's rows: CSL1"):
        eslkit.paper(TSDN(), "ESL9")
