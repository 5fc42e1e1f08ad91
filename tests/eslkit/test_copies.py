"""Copies of models, and what is remembered of operations on tensors without memory."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eslkit
from eslkit.graph.forms import RememberForms
from eslkit.graph.skeleton import skeleton
from eslkit.plan import Plan
from eslkit.schedule import Schedule
from eslkit.trainer import StepContext
from tests.eslkit.test_schedule import UNet


class _Odd(nn.Module):
    """Says itself what is copied of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.cache: Any = "full"

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "cache": "left out"}


class _Twin(nn.Module):
    """Copies itself in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> _Twin:
        made = _Twin()
        made.copies = self.copies + 1
        return made


class _Holder(nn.Module):
    """Everything that attributes of modules may be."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3))
        self.again = self.first
        self.tied = nn.Conv1d(2, 3, 1)
        self.tied.weight = self.first[0].weight
        self.odd, self.twin, self.lstm = _Odd(), _Twin(), nn.LSTM(2, 3)
        self.shared: list[int] = []
        self.same = self.shared
        self.table = {"a": [1, 2], 3: self.first}
        self.order = OrderedDict(b=1, a=(1, [2]))
        self.named = {"first": self.first}
        self.me = [self]
        self.register_parameter("none", None)
        self.last = torch.ones(2).requires_grad_() * 2  # no leaf: copy.deepcopy refuses it


def test_a_skeleton_is_what_deepcopy_makes() -> None:
    model = _Holder()
    made = skeleton(model, lambda tensor: tensor.detach().clone())
    del model.last
    other = copy.deepcopy(model)
    assert isinstance(made, _Holder)
    assert vars(made).keys() - {"last"} == vars(other).keys()
    assert made.again is made.first
    assert made.tied.weight is made.first[0].weight
    assert made.first is not model.first
    assert made.table[3] is made.first
    assert made.named["first"] is made.first
    assert made.me[0] is made
    assert made.same is made.shared
    assert made.shared is not model.shared
    assert made.order == other.order
    assert type(made.order) is OrderedDict
    assert made.order["a"][1] is not model.order["a"][1]  # type: ignore[index]
    assert (made.odd.cache, model.odd.cache) == (other.odd.cache, "full") == ("left out", "full")
    assert made.twin.copies == other.twin.copies == 1
    assert made.none is None
    for (name, tensor), (again, wanted) in zip(
        made.state_dict().items(), other.state_dict().items(), strict=True
    ):
        assert name == again
        assert torch.equal(tensor, wanted)
    x = torch.randn(4, 1, 2)
    assert torch.equal(made.lstm(x)[0], model.lstm(x)[0])


def test_hooks_of_a_copy_are_its_own() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    made = skeleton(model, lambda tensor: tensor.detach().clone())
    made[0].register_forward_hook(lambda *_: torch.zeros(1))
    assert not model[0]._forward_hooks
    assert torch.equal(made(torch.ones(2)), torch.zeros(1))


@pytest.mark.parametrize(
    "use",
    [
        lambda x: torch.cat([nn.functional.leaky_relu(x), x.mT], -1),
        lambda x: x.to(memory_format=torch.channels_last) if x.dim() == 4 else x.double() + 1,
        lambda x: torch.native_dropout(x, 0.0, train=True)[0].add_(1),
        lambda x: x.softmax(-1).max(-1)[0] / 2,
        lambda x: nn.functional.conv2d(x.expand(1, 3, 6, 6), torch.ones(2, 3, 3, 3).to(x)),
        lambda x: (x > 0, torch.where(x > 0, x, 1.5), x.sum(), x.long() / 2, x * 2 + x * 2.0),
        lambda x: x[..., :2].reshape(-1).sigmoid_().view(2, -1),
    ],
)
def test_what_is_remembered_is_what_torch_gives(use: Any) -> None:
    def forms() -> list[tuple[object, ...]]:
        given = torch.ones(6, 6, device="meta"), torch.ones(1, 2, 6, 6, device="meta")[:, :1]
        made = [item for x in given for item in _tensors(use(x))]
        return [(t.shape, t.stride(), t.dtype, t.untyped_storage().nbytes()) for t in made]

    wanted = forms()
    with RememberForms():
        assert forms() == wanted
        assert forms() == wanted


def test_what_is_remembered_minds_the_default_dtype() -> None:
    x = torch.ones(2, dtype=torch.int64, device="meta")
    before = torch.get_default_dtype()
    try:
        with RememberForms():
            assert (x / 2).dtype is torch.float32
            torch.set_default_dtype(torch.float64)
            assert (x / 2).dtype is torch.float64
    finally:
        torch.set_default_dtype(before)


def _tensors(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def _shift(model: nn.Module, step: StepContext) -> dict[str, float]:
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor))
    return {}


@pytest.mark.parametrize("depth", [1, 2])
def test_a_run_that_uses_what_planning_found_ends_in_the_bits_of_one_that_does_not(
    depth: int,
) -> None:
    x = torch.zeros(1, 1, 32, 32)
    schedule = eslkit.schedule(UNet(), depth=depth, example_inputs=x, granularity="one-shot")
    assert schedule.deepened is not None
    plan = Plan.from_json(schedule.plan.to_json())
    ours = schedule.run(_shift).model.state_dict()
    again = Schedule(schedule.model, plan, x).run(_shift).model.state_dict()
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[key], again[key]) for key in ours)
    other = UNet()  # other weights: those of what is run count, not those of the plan
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.fill_(0.5)
    moved = Schedule(other, plan, x, deepened=schedule.deepened).run(_nothing)
    fresh = Schedule(other, plan, x).run(_nothing)
    ends = moved.model.state_dict(), fresh.model.state_dict()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def _nothing(model: nn.Module, step: StepContext) -> dict[str, float]:
    return {}


def test_a_norm_without_parameters_learns_of_its_new_width() -> None:
    """Torch warns of the other width at every call, and warnings are errors here."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.Conv2d(4, 1, 3, padding=1)
    )
    x = torch.rand(1, 1, 8, 8)
    wide = eslkit.expand(model, example_inputs=x)
    assert wide[1].num_features == 8
    wide(x)
    back = eslkit.shrink(wide, example_inputs=x)
    assert back[1].num_features == 4
    back(x)
