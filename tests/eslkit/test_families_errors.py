"""What a user reads when something cannot be: every message says what, where and how to mend it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eslkit
from eslkit.errors import EslError, InputError, ResizeError, TraceError
from tests.eslkit.families.all import family
from tests.eslkit.families.family import Written, conv

X = torch.zeros(1, 3, 8, 8)


def small() -> nn.Sequential:
    return nn.Sequential(conv(2, 3, 8), nn.ReLU(), conv(2, 8, 6), conv(2, 6, 2))


def gated() -> nn.Module:
    """A projection cut into q, k and v: several groups of one layer, numbered."""
    block = family("head-dim-held").block(8, 8, 2)
    return nn.Sequential(conv(2, 3, 8), block, conv(2, 8, 2))


def normed(groups: int) -> nn.Module:
    return nn.Sequential(conv(2, 3, 12), nn.GroupNorm(groups, 12), conv(2, 12, 2))


def failing(m: Any, x: Tensor) -> Tensor:
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    "inputs, error, match",
    [
        (torch.zeros(1, 4, 8, 8), TraceError, r"did not run on example inputs of shapes \[\(1, 4"),
        (torch.zeros(3), TraceError, r"did not run on example inputs of shapes \[\(3,\)\]"),
        ((X, X), TraceError, "did not run on example inputs"),
        ({"picture": X}, TraceError, "did not run on example inputs.*picture"),
        ("image", InputError, "example_inputs is a str; pass a tensor, a tuple"),
        (3, InputError, "example_inputs is a int; pass a tensor, a tuple"),
        (X.long(), TraceError, "did not run on example inputs"),
    ],
)
@pytest.mark.parametrize("call", [eslkit.trace, eslkit.shrink, eslkit.expand])
def test_example_inputs_that_do_not_fit(
    call: Any, inputs: Any, error: type[EslError], match: str
) -> None:
    with pytest.raises(error, match=match):
        call(small(), example_inputs=inputs)


@pytest.mark.parametrize("thing", ["unet", None, small, {}, X])
@pytest.mark.parametrize("call", [eslkit.trace, eslkit.shrink, eslkit.expand])
def test_what_is_no_model(call: Any, thing: Any) -> None:
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module"):
        call(thing, example_inputs=X)


def test_a_model_that_fails_by_itself_is_named_with_its_line() -> None:
    model = nn.Sequential(conv(2, 3, 8), Written(failing))
    with pytest.raises(TraceError, match=r"KeyError: 'no such thing'.*test_families_errors.py:\d+"):
        eslkit.trace(model, example_inputs=X)


def test_a_model_without_channels() -> None:
    graph = eslkit.trace(nn.Sequential(conv(2, 3, 2)), example_inputs=X)
    assert graph.resizable == ()
    assert "0 groups can be resized" in str(graph)
    with pytest.raises(ResizeError, match=r"0\.weight has 3 channels.*the model's input"):
        eslkit.resize(small(), {"0.weight": 4}, init="first", example_inputs=X)


@pytest.mark.parametrize(
    "protect, match",
    [
        (("decoder.*",), r"'decoder\.\*' matches no layer"),
        (("0", "nothing"), "'nothing' matches no layer"),
        ("0", r"is a string; pass a sequence: \('0',\)"),
        ((3,), "protect.*3.*string"),
    ],
)
def test_patterns_that_protect_nothing(protect: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        eslkit.trace(small(), example_inputs=X, protect=protect)


def test_a_group_is_protected_by_its_name_with_brackets() -> None:
    names = list(eslkit.trace(gated(), example_inputs=X).widths)
    (numbered, other) = [name for name in names if "[" in name]
    graph = eslkit.trace(gated(), example_inputs=X, protect=(numbered,))
    assert graph.group(numbered).protected == f"protect={numbered!r}"
    assert graph.group(other).protected == "cut into equal parts of which another has a fixed size"


@pytest.mark.parametrize(
    "call, keywords, match",
    [
        (eslkit.expand, {"width": 0}, "width=0 is below 1; use shrink"),
        (eslkit.expand, {"width": 0.5}, "use shrink"),
        (eslkit.expand, {"width": float("nan")}, "width=nan"),
        (eslkit.expand, {"width": float("inf")}, "width=inf"),
        (eslkit.expand, {"width": "2"}, "width='2'"),
        (eslkit.expand, {"depth": -1}, "depth=-1"),
        (eslkit.expand, {"depth": 0.5}, r"depth=0\.5"),
        (eslkit.shrink, {"width": 0}, r"must lie in \(0, 1\]"),
        (eslkit.shrink, {"width": -1}, r"must lie in \(0, 1\]"),
        (eslkit.shrink, {"width": 2}, "use expand"),
        (eslkit.shrink, {"width": float("nan")}, "width=nan"),
        (eslkit.shrink, {"depth": 1}, "use expand"),
        (eslkit.shrink, {"init": "frist"}, "'frist' is no policy; use one of"),
        (eslkit.shrink, {"init": None}, "None is no policy"),
    ],
)
def test_factors_and_policies_that_cannot_be(
    call: Any, keywords: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        call(small(), example_inputs=X, **keywords)


@pytest.mark.parametrize(
    "widths, error, match",
    [
        ({"0": 0}, InputError, "positive integer"),
        ({"0": 4.0}, InputError, "positive integer"),
        ({"0": True}, InputError, "positive integer"),
        ({"0": "4"}, InputError, "positive integer"),
        ({"3": 4}, ResizeError, "the model's output"),
        ({"9": 4}, InputError, "no channel group '9'"),
    ],
)
def test_widths_that_cannot_be(widths: Any, error: type[EslError], match: str) -> None:
    with pytest.raises(error, match=match):
        eslkit.resize(small(), widths, init="first", example_inputs=X)


@pytest.mark.parametrize("width, near", [(7, "6 and 8"), (13, "12 and 15"), (1, "3")])
def test_a_norm_names_the_nearest_widths(width: int, near: str) -> None:
    with pytest.raises(ResizeError, match=f"3 groups.*{near}"):
        eslkit.resize(normed(3), {"0": width}, init="first", example_inputs=X)


def test_a_tie_names_the_width_that_fits() -> None:
    model = nn.Sequential(conv(2, 3, 8), family("hierarchical").block(8, 8, 2), conv(2, 8, 2))
    graph = eslkit.trace(model, example_inputs=X)
    tied = next(group for group in graph.resizable if group.tied)
    with pytest.raises(ResizeError, match=r"must keep their ratio.*the nearest that can"):
        eslkit.resize(model, {tied.name: 3}, init="first", example_inputs=X)


def test_narrowing_cannot_preserve() -> None:
    with pytest.raises(ResizeError, match="cannot narrow group 0 from 8 to 4"):
        eslkit.shrink(small(), init="preserve", example_inputs=X)


def test_inherit_names_the_first_difference() -> None:
    odd = nn.Sequential(conv(2, 3, 8), nn.ReLU(), conv(2, 8, 6), conv(2, 6, 5))
    with pytest.raises(ResizeError, match=r"3\.weight has shape \(5, 6, 1, 1\)"):
        eslkit.inherit(odd, small(), example_inputs=X)
    with pytest.raises(ResizeError, match=r"0\.bias|4\.weight|3\.weight"):
        eslkit.inherit(nn.Sequential(conv(2, 3, 8, bias=False)), small(), example_inputs=X)


class WithUnused(nn.Module):
    """A layer that no forward pass reaches, as wide as the others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = conv(2, 3, width), conv(2, width, 5)
        self.unused = conv(2, width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


def test_inherit_leaves_what_is_not_used_as_the_target_has_it() -> None:
    target, source = WithUnused(4), WithUnused(8)
    made = eslkit.inherit(target, source, example_inputs=X)
    assert torch.equal(made.unused.weight, target.unused.weight)
    assert torch.equal(made.first.weight, source.first.weight[:4])
    assert torch.equal(made.last.weight, source.last.weight[:, :4])
    same = eslkit.inherit(WithUnused(8), source, example_inputs=X)
    assert torch.equal(same.unused.weight, source.unused.weight)


class Halves(nn.Module):
    """Halves of one layer that share all their axes, also with what reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.both, self.leave = conv(2, 3, 16), conv(2, 16, 16), conv(2, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.both(self.enter(x).relu()).chunk(2, 1)
        return self.leave(torch.cat([second.softmax(1), first], 1))


@pytest.mark.parametrize("wide", ["source", "target"])
def test_groups_that_share_an_axis_keep_it_where_only_another_one_changes(wide: str) -> None:
    model = Halves()
    other = eslkit.resize(model, {"enter": 32}, init="random", example_inputs=X)
    source, target = (other, model) if wide == "source" else (model, other)
    made = eslkit.inherit(target, source, example_inputs=X)
    assert {n: t.shape for n, t in made.state_dict().items()} == {
        n: t.shape for n, t in target.state_dict().items()
    }
    assert torch.equal(made.both.weight[:, :16], source.both.weight[:, :16])


class Bank(nn.Module):
    """Kernels of four experts in one matrix, mixed for each picture: four is in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 16
        self.enter, self.leave = conv(2, 3, 16, 3), conv(2, 16, 3)
        self.gate, self.bank = nn.Linear(16, 4), nn.Parameter(torch.randn(4, 16, 16, 3, 3) / 20)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x).relu()
        kernel = self.gate(y.mean((2, 3))).softmax(1) @ self.bank.view(4, -1)
        kernel = kernel.view(self.width, self.width, 3, 3)
        return self.leave(torch.nn.functional.conv2d(y, kernel, padding=1))


def test_who_meets_a_group_that_cannot_change_is_not_held_by_it() -> None:
    with pytest.warns(eslkit.ResizeWarning, match="1 of 3 .* keep their width: gate"):
        big = eslkit.expand(Bank(), example_inputs=X)
    assert big.bank.shape == (4, 32, 32, 3, 3)
    assert big(X).shape == X.shape
