from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from eslkit.errors import PlanError
from eslkit.plan import LayerInfo, Plan, Step, fingerprint
from tests.eslkit.small_walk import Small, small_model, small_plan

names = st.text("abcXYZ.äö:#-' \"", min_size=1, max_size=12)
layers = st.builds(
    LayerInfo,
    name=names,
    kind=st.sampled_from(["conv", "up", "down", "other"]),
    level=st.integers(0, 9),
    width=st.integers(1, 4096),
    stage=names,
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    num_steps = draw(st.integers(1, 4))
    steps = tuple(
        Step(
            index=index,
            name=f"CSL{index}",
            phase=draw(st.sampled_from(["expand", "channels", "layers"])),
            width=draw(st.none() | st.floats(0.1, 8)),
            depth=draw(st.integers(0, 2)),
            widths=draw(st.dictionaries(names, st.integers(1, 999), max_size=3)),
            removed=tuple(draw(st.lists(names, max_size=3))),
            layers=draw(st.integers(0, 20)),
            init=draw(names),
            parameters=draw(st.integers(0, 2**60)),
            macs=draw(st.integers(0, 2**60)),
            iterations=draw(st.none() | st.integers(1, 10**9)),
            seed=draw(st.integers(0, 2**63 - 1)),
            picture=tuple(draw(st.lists(layers, max_size=3))),
        )
        for index in range(1, num_steps + 1)
    )
    plan = small_plan().model_dump() | {
        "steps": steps,
        "width": draw(st.floats(0.1, 8)),
        "granularity": draw(st.sampled_from(["fine", "one-shot", 2])),
        "protect": tuple(draw(st.lists(names, max_size=2))),
    }
    return Plan.model_validate(plan)


@given(plans())
def test_a_plan_survives_json_and_yaml(plan: Plan) -> None:
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_yaml(plan.to_yaml()) == plan


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        small_plan().width = 3  # type: ignore[misc]


def changed(**changes: Any) -> str:
    return json.dumps(json.loads(small_plan().to_json()) | changes)


def test_another_version_is_refused() -> None:
    with pytest.raises(PlanError, match=r"version 99, this eslkit reads version 1.*again"):
        Plan.from_json(changed(version=99))
    with pytest.raises(PlanError, match="version None"):
        Plan.from_json("{}")


def test_unknown_and_wrong_fields_are_named() -> None:
    with pytest.raises(PlanError, match="widht: Extra inputs"):
        Plan.from_json(changed(widht=2))
    with pytest.raises(PlanError, match=r"width: .*must be greater than 0"):
        Plan.from_yaml(yaml.safe_dump(json.loads(changed(width=-1))))


def test_steps_must_be_in_order_and_unique() -> None:
    steps = json.loads(small_plan().to_json())["steps"]
    with pytest.raises(PlanError, match=r"numbered 1 to 3 in order, got \[3, 2, 1\]"):
        Plan.from_json(changed(steps=steps[::-1]))
    with pytest.raises(PlanError, match="names must differ"):
        Plan.from_json(changed(steps=[steps[0], steps[1] | {"name": "EL"}]))
    with pytest.raises(PlanError, match="at least one step"):
        Plan.from_json(changed(steps=[]))


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "\x00"])
def test_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="plan"):
        Plan.from_json(text)
    with pytest.raises(PlanError, match="plan"):
        Plan.from_yaml(text)


def test_an_empty_file_is_called_empty() -> None:
    with pytest.raises(PlanError, match="but the text is empty"):
        Plan.from_yaml("# nothing\n")


def test_the_cost_counts_iterations_where_there_are_any() -> None:
    plan = small_plan(iterations=None)
    assert [plan.cost(step) for step in plan.steps] == [2.0, 1.5, 1.0]
    steps = tuple(s.model_copy(update={"iterations": 10 * s.index}) for s in plan.steps)
    plan = plan.model_copy(update={"steps": steps})
    assert [plan.cost(step) for step in plan.steps] == pytest.approx([2 / 3, 1.0, 1.0])
    assert plan.steps[0].flops == 2 * plan.steps[0].macs


def test_the_fingerprint_tells_forms_apart_and_not_values() -> None:
    model = small_model(0)
    assert fingerprint(model) == fingerprint(small_model(1))
    assert fingerprint(model) != fingerprint(Small(7))
    assert fingerprint(model) != fingerprint(small_model().double())
    assert fingerprint(nn.Linear(2, 3)) != fingerprint(nn.Linear(3, 2))
    assert len(fingerprint(nn.Identity())) == 64


def test_the_fingerprint_does_not_hang_on_the_order_of_the_keys() -> None:
    one, two = nn.Module(), nn.Module()
    for module, order in ((one, "ab"), (two, "ba")):
        for name in order:
            module.register_buffer(name, torch.zeros(2))
    assert fingerprint(one) == fingerprint(two)
