"""Steps that the user lists, widths by table, gentle narrowing, the way down from a large model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import eslkit
from eslkit.errors import InputError, PlanError, ResizeError
from eslkit.moves import portions, reached
from eslkit.plan import Plan, fingerprint
from eslkit.schedule import Schedule, schedule, schedule_from
from eslkit.steps import apply_step
from eslkit.surgery.depth import flatten_step
from eslkit.trainer import StepContext

X = torch.zeros(1, 1, 16, 16)


class UNet(nn.Module):
    """Three levels with concat skips; widths by level."""

    def __init__(self, widths: tuple[int, int, int] = (4, 8, 16)) -> None:
        super().__init__()
        a, b, c = widths
        self.enter = nn.Conv2d(1, a, 3, padding=1)
        self.down = nn.Conv2d(a, b, 3, padding=1)
        self.middle = nn.Sequential(
            nn.Conv2d(b, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1), nn.ReLU()
        )
        self.up2 = nn.ConvTranspose2d(c, b, 2, stride=2)
        self.back = nn.Conv2d(2 * b, b, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(b, a, 2, stride=2)
        self.leave = nn.Conv2d(2 * a, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        one = torch.relu(self.enter(x))
        two = torch.relu(self.down(F.max_pool2d(one, 2)))
        low = self.up2(self.middle(F.max_pool2d(two, 2)))
        two = torch.relu(self.back(torch.cat([low, two], 1)))
        return self.leave(torch.cat([self.up1(two), one], 1))


def plan_of(**choices: Any) -> Plan:
    return schedule(UNet(), **{"depth": 0, "example_inputs": X, **choices}).plan


def told(plan: Plan) -> list[tuple[str, dict[str, int]]]:
    return [(step.name, step.widths) for step in plan.steps[1:]]


def nothing(model: nn.Module, step: StepContext) -> None:
    del model, step


def test_the_user_s_own_steps_are_taken_in_order() -> None:
    plan = plan_of(granularity=["enter", ["level 2", "up1"], "channels"])
    assert plan.granularity == "own"
    assert told(plan) == [
        ("CSL1", {"enter": 4}),
        ("CSL2", {"middle.0": 16, "middle.2": 16, "up2": 8, "up1": 4}),
        ("CSL3", {"down": 8, "back": 8}),
    ]
    assert plan.steps[-1].parameters == plan.base_parameters
    assert Plan.from_yaml(plan.to_yaml()) == plan


def test_a_step_may_be_a_table_of_widths() -> None:
    plan = plan_of(granularity=[{"middle": 0.75, "middle.2": 20}, {"*": 0.8, "up1": 4}, "fine"])
    assert told(plan)[0] == ("CSL1", {"middle.0": 24, "middle.2": 20})
    assert told(plan)[1][1] == {
        "enter": 6,
        "down": 13,
        "middle.0": 19,
        "middle.2": 16,
        "up2": 13,
        "back": 13,
        "up1": 4,
    }
    assert plan.steps[-1].parameters == plan.base_parameters


def test_words_for_what_is_left_make_the_named_granularities() -> None:
    choices = {"depth": 1}
    for word, entries in {
        "fine": ["fine channels", "fine layers"],
        "one-shot": ["channels", "layers"],
        "direct": ["direct"],
    }.items():
        named, listed = (
            plan_of(granularity=word, **choices),
            plan_of(granularity=entries, **choices),
        )
        assert named.steps == listed.steps
    assert [step.name for step in plan_of(granularity="direct", **choices).steps] == ["EL", "SL1"]
    assert (
        plan_of(granularity=2, **choices).steps
        == plan_of(granularity=["2 channels", "2 layers"], **choices).steps
    )


def test_layers_may_go_before_all_channels_are_narrow() -> None:
    plan = plan_of(depth=1, granularity=["channels", "fine layers"])
    early = plan_of(depth=1, granularity=["layers", "channels"])
    assert [step.phase for step in early.steps] == ["expand", "layers", "channels"]
    assert early.steps[-1].parameters == plan.steps[-1].parameters == plan.base_parameters


@pytest.mark.parametrize(
    "granularity, error, match",
    [
        (["enter"], PlanError, r"do not lead back to UNet: groups down \(16, not 8\).*'channels'"),
        (["enter", "enter", "channels"], PlanError, r"step 'enter' changes nothing"),
        (["decoder"], InputError, r"UNet has no channel group, layer or level 'decoder'"),
        (["level 7"], InputError, r"level 'level 7' that can be resized"),
        ([{"enter": -1}], InputError, r"width -1 of 'enter': expected a positive number"),
        ([{"enter": 0.0}], InputError, r"width 0.0 of 'enter'"),
        ([], PlanError, r"lists no step"),
        ([3], InputError, r"granularity=\[3\] must be"),
        ("coarse", InputError, r"granularity='coarse' must be 'fine', 'one-shot', 'direct'"),
        (0, InputError, r"granularity=0 must be"),
        (True, InputError, r"granularity=True must be"),
    ],
)
def test_steps_that_cannot_be_are_refused(
    granularity: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        plan_of(granularity=granularity)


def test_inserted_levels_that_are_left_are_told() -> None:
    with pytest.raises(PlanError, match=r"inserted levels are left at the end. Add 'layers'"):
        plan_of(depth=1, granularity=["channels"])


@pytest.mark.parametrize("width", [1.5, 3, 1.3])
def test_any_multiplier_widens_and_comes_back(width: float) -> None:
    plan = plan_of(width=width)
    assert plan.steps[0].widths["middle.0"] == round(16 * width)
    assert plan.steps[-1].parameters == plan.base_parameters


def test_a_table_of_multipliers_widens_group_by_group() -> None:
    plan = plan_of(width={"*": 1.5, "level 2": 3, "up1": 1})
    widths = plan.steps[0].widths
    assert widths == {"enter": 6, "down": 12, "back": 12, "middle.0": 48, "middle.2": 48, "up2": 24}
    assert plan.steps[0].width is None
    assert plan.width == {"*": 1.5, "level 2": 3.0, "up1": 1.0}
    network = apply_step(UNet(), plan.steps[0], plan=plan, example_inputs=X)
    assert eslkit.trace(network, example_inputs=X).widths == {"up1": 4, **widths}
    with pytest.raises(InputError, match=r"width=0.5: an expansion has multipliers from 1"):
        plan_of(width={"enter": 0.5})
    with pytest.raises(PlanError, match="No channel group of Conv2d gets wider by width=2"):
        eslkit.schedule(nn.Conv2d(1, 1, 3), depth=0, example_inputs=torch.rand(1, 1, 8, 8))
    with pytest.raises(InputError, match="change nothing; expand in width"):
        plan_of(width={"enter": 1})


@pytest.mark.parametrize(
    "wrong, match",
    [
        ({"width": float("inf")}, "width=inf: an expansion has multipliers from 1"),
        ({"width": float("nan")}, "width=nan"),
        ({"width": "2"}, "width='2'"),
        ({"width": 0.75}, r"width=0.75: .* To narrow gently pass factor=0.75"),
        ({"width": {"enter": True}}, "width=True"),
        ({"depth": 0.5}, "depth=0.5: expected a whole number of levels from 0"),
        ({"depth": -1}, "depth=-1"),
    ],
)
def test_expansions_that_cannot_be_are_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        plan_of(**wrong)


@pytest.mark.parametrize("width, factor", [(2, 0.75), (4, 0.5), (2, 0.9)])
def test_a_factor_narrows_gently_in_several_rounds(width: float, factor: float) -> None:
    plan = plan_of(width=width, factor=factor)
    now = dict(plan.steps[0].widths)
    for step in plan.steps[1:]:
        for name, new in step.widths.items():
            assert now[name] * factor - 1 <= new < now[name]
            now[name] = new
    assert len(plan.steps) > 4
    assert plan.steps[-1].parameters == plan.base_parameters
    with pytest.raises(InputError, match="factor=1: expected a multiplier between 0 and 1"):
        plan_of(factor=1)


def test_inwards_narrows_full_resolution_first() -> None:
    outwards, inwards = told(plan_of()), told(plan_of(order="inwards"))
    assert [widths for _, widths in inwards] == [widths for _, widths in reversed(outwards)]
    assert len(inwards) == 3
    with pytest.raises(InputError, match="order='sideways': expected 'outwards'"):
        plan_of(order="sideways")


@given(
    st.lists(st.integers(2, 64), min_size=2, max_size=2),
    st.integers(2, 5),
    st.floats(0.1, 0.95),
)
def test_tied_groups_keep_their_ratio_on_the_way(
    pair: list[int], times: int, factor: float
) -> None:
    small = nn.Sequential(nn.Conv2d(1, pair[0], 1), nn.Conv2d(pair[0], 1, 1))
    graph = eslkit.trace(small, example_inputs=torch.zeros(1, 1, 4, 4))
    (group,) = graph.resizable
    groups = tuple(
        replace(group, name=name, width=width * times, tied=(other,))
        for name, other, width in (("a", "b", pair[0]), ("b", "a", pair[1]))
    )
    tied = replace(graph, groups=groups)
    targets = {"a": pair[0], "b": pair[1]}
    widths = reached(tied, ["a", "b"], targets, factor)
    assert widths["a"] * pair[1] == widths["b"] * pair[0]
    assert targets["a"] <= widths["a"] < pair[0] * times
    assert portions(tied, ["a", "b"]) == [["a", "b"]]


# The way down from a large model that exists


def loop(model: nn.Module, step: StepContext) -> Mapping[str, float]:
    """One update, so that the weights differ from step to step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    loss = model(torch.rand(2, 1, 16, 16)).square().mean()
    loss.backward()
    optimizer.step()
    return {"loss": float(loss.detach())}


def test_a_large_model_is_led_down_to_a_small_one() -> None:
    large, small = UNet((6, 9, 24)), UNet()
    made = schedule_from(large, target=small, recipe="paper", example_inputs=X, budget=100)
    assert made.plan.source is not None
    assert made.plan.source.parameters == sum(p.numel() for p in large.parameters())
    assert [step.name for step in made.steps] == ["CSL1", "CSL2", "CSL3"]
    first: list[Tensor] = []

    def look(model: nn.Module, step: StepContext) -> None:
        first.append(model.get_parameter("middle.0.weight").detach().clone())

    result = made.run(look)
    assert type(result.model) is UNet
    assert fingerprint(result.model) == fingerprint(small)
    assert torch.equal(first[0], large.get_parameter("middle.0.weight")[:16])
    assert torch.equal(
        result.model.get_parameter("enter.weight"), large.get_parameter("enter.weight")[:4]
    )


def test_it_resumes_and_belongs_to_its_large_model(tmp_path: Any) -> None:
    large, small = UNet((8, 16, 32)), UNet()
    made = schedule_from(large, target=small, example_inputs=X)
    whole = made.run(loop, out=tmp_path / "whole")

    def stop(model: nn.Module, step: StepContext) -> Mapping[str, float]:
        if step.name == "CSL2":
            raise KeyboardInterrupt
        return loop(model, step)

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        made.run(stop, out=tmp_path / "parts")
    plan = Plan.from_json(made.plan.to_json())
    again = Schedule(small, plan, X, source=large).run(loop, out=tmp_path / "parts")
    finished = Schedule(small, plan, X, source=large).run(loop, out=tmp_path / "parts")
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])
        assert torch.equal(value, finished.model.state_dict()[key])
    with pytest.raises(PlanError, match=r"begins from the large .*UNet, and none was passed"):
        Schedule(small, plan, X)
    with pytest.raises(PlanError, match=r"begins from the large .*and a UNet was passed"):
        Schedule(small, plan, X, source=small)
    with pytest.raises(PlanError, match=r"begins from the small model itself, and a UNet"):
        Schedule(small, plan_of(), X, source=large)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_large_model_with_inserted_levels_loses_them(steps: int) -> None:
    small = UNet()
    large = eslkit.expand(small, width=2, depth=1, example_inputs=X)
    if steps:
        large, _ = flatten_step(large)
    made = schedule_from(large, target=small, example_inputs=X)
    assert [s.name for s in made.steps][-2 + steps :] == ["LSL1", "LSL2"][: 2 - steps]
    assert fingerprint(made.run(nothing).model) == fingerprint(small)


class Deeper(UNet):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Conv2d(1, 1, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.extra(super().forward(x))


def test_two_models_of_other_forms_are_refused() -> None:
    with pytest.raises(PlanError, match=r"not of one form: .* become the target .*: extra"):
        schedule_from(Deeper(), target=UNet(), example_inputs=X)
    kernel = UNet()
    kernel.enter = nn.Conv2d(1, 4, 5, padding=2)
    with pytest.raises(
        PlanError, match=r"end with enter.weight of shape \(4, 1, 5, 5\), the small"
    ):
        schedule_from(kernel, target=UNet(), example_inputs=X)
    with pytest.raises(InputError, match=r"The model is a str, expected a torch.nn.Module"):
        schedule_from(UNet(), target="small")  # type: ignore[arg-type]


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1)
        self.two = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(torch.relu(self.one(x)))


class Blocks(nn.Module):
    """An encoder-decoder with so many residual blocks at its bottleneck."""

    def __init__(self, count: int, width: int = 4) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(count)))
        self.leave = nn.ConvTranspose2d(width, 1, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.relu(self.blocks(torch.relu(self.enter(x)))))


def test_a_large_model_with_more_layers_loses_them_step_by_step(tmp_path: Any) -> None:
    """The paper's INIT2: what stays keeps its weights."""
    large, small = Blocks(4, width=8), Blocks(2, width=4)
    made = schedule_from(large, target=small, example_inputs=X)
    assert [step.phase for step in made.steps] == ["layers", "layers", "channels"]
    assert [step.taken_out for step in made.steps] == [("blocks.3",), ("blocks.2",), ()]
    assert made.steps[0].removed == ("blocks.3.one", "blocks.3.two")
    result = made.run(nothing)
    assert fingerprint(result.model) == fingerprint(small)
    kept = large.get_parameter("blocks.1.one.weight")[:4, :4]
    assert torch.equal(result.model.get_parameter("blocks.1.one.weight"), kept)
    once = schedule_from(large, target=small, granularity="one-shot", example_inputs=X)
    assert [step.taken_out for step in once.steps] == [("blocks.3", "blocks.2"), ()]
    plan = Plan.from_json(made.plan.to_json())
    whole = made.run(loop, out=tmp_path)
    again = Schedule(small, plan, X, source=large).run(loop)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])
    with pytest.raises(PlanError, match=r"has layers that the small model has not, such as blocks"):
        schedule_from(large, target=small, granularity=["channels"], example_inputs=X)


def test_a_smaller_source_is_refused() -> None:
    with pytest.raises(PlanError, match=r"The source is the smaller of the two: .* larger model"):
        schedule_from(UNet((2, 4, 8)), target=UNet(), example_inputs=X)


def test_what_is_as_small_already_is_told() -> None:
    with pytest.raises(PlanError, match="nothing to do"):
        schedule_from(UNet(), target=UNet(), example_inputs=X)


def test_groups_that_are_protected_keep_the_way_closed() -> None:
    with pytest.raises((PlanError, ResizeError), match="middle"):
        schedule_from(UNet((4, 8, 32)), target=UNet(), example_inputs=X, protect=["middle"])


@pytest.mark.parametrize("make", [lambda: plan_of(width=1.5), lambda: plan_of(depth=1)])
def test_a_schedule_made_twice_is_the_same(make: Callable[[], Plan]) -> None:
    assert make() == make()


def test_a_run_needs_no_trace_that_planning_has_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made = schedule(UNet(), depth=0, example_inputs=X)
    from_disk = Schedule(made.model, made.plan, X).run(loop)
    monkeypatch.setattr("eslkit.steps.trace_fully", None)
    result = made.run(loop)
    for key, value in from_disk.model.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[key])


class Plain(nn.Module):
    """A level of the user's own: one convolution that keeps shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.conv(x))


def test_levels_go_where_and_are_built_as_the_user_says(tmp_path: Any) -> None:
    made = schedule(UNet(), at="back", example_inputs=X)
    assert made.plan.at == ("back",)
    grown = apply_step(made.model, made.steps[0], plan=made.plan, example_inputs=X)
    assert any(key.startswith("back.level.") for key in grown.state_dict())
    whole = made.run(loop)
    again = Schedule(made.model, Plan.from_json(made.plan.to_json()), X).run(loop)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])

    own = schedule(UNet(), level=lambda style, width: Plain(width), example_inputs=X)
    assert [step.phase for step in own.steps].count("layers") == 1
    result = own.run(loop, out=tmp_path)
    assert fingerprint(result.model) == fingerprint(UNet())
    with pytest.raises(PlanError, match=r"network of step EL has .* parameters, its plan says"):
        Schedule(own.model, own.plan.model_copy(update={"steps": own.steps[:1]}), X).run(loop)
