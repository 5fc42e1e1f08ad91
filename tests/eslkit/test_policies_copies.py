"""Init policies that copy channels and undo it, and the literal reading of the paper's Eq. 9."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import eslkit
from eslkit.errors import InputError, ResizeError
from eslkit.surgery import policies
from tests.eslkit.networks import Form, forms
from tests.eslkit.residual import residual, square
from tests.eslkit.test_laws import FREE, MANY, plain_groups, run, tensors_of
from tests.tolerances import PRESERVED, REFERENCE


@MANY
@given(forms(inside=FREE), st.sampled_from((2, 1.5, 3)))
def test_split_leaves_the_output_unchanged(form: Form, width: float) -> None:
    model, x = form.build(), form.inputs()
    graph = eslkit.trace(model, example_inputs=x)
    widths = {name: round(width * graph.group(name).width) for name in plain_groups(graph)}
    wide = eslkit.resize(model, widths, init="split", example_inputs=x)
    PRESERVED.check(run(wide, x), run(model, x))


@MANY
@given(forms(inside=FREE), st.sampled_from(("preserve", "split")))
def test_merge_undoes_copies(form: Form, init: str) -> None:
    model, x = form.build(), form.inputs()
    wide = eslkit.expand(model, width=2, init=init, example_inputs=x)
    back = eslkit.shrink(wide, init="merge", example_inputs=x)
    for name, tensor in tensors_of(model).items():
        REFERENCE.check(tensors_of(back)[name], tensor)


class _Scaled(nn.Module):
    """Attention of one head of all channels, whose code scales by the width."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.enter = nn.Linear(3, 4)
        self.q, self.k, self.v = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 6)
        self.leave = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.fused:
            return self.leave(nn.functional.scaled_dot_product_attention(q, k, v))
        return self.leave((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("init", ["preserve", "split"])
@pytest.mark.parametrize("width", [2, 3, 1.5])
def test_merge_undoes_what_made_up_for_attention_s_scale(
    fused: bool,
    init: str,
    width: float,
) -> None:
    torch.manual_seed(3)
    model, x = _Scaled(fused).double(), torch.randn(2, 5, 3, dtype=torch.float64)
    wide = eslkit.expand(model, width=width, init=init, example_inputs=x)
    PRESERVED.check(run(wide, x), run(model, x))
    widths = {g.name: g.width for g in eslkit.trace(model, example_inputs=x).resizable}
    assert wide.k.out_features == round(width * 6)
    back = eslkit.resize(wide, widths, init="merge", example_inputs=x)
    for name, tensor in tensors_of(model).items():
        REFERENCE.check(tensors_of(back)[name], tensor)


def test_merge_sums_what_reads_and_averages_what_makes() -> None:
    model, x = residual()
    made = eslkit.resize(model, {"side": 2}, init="merge", example_inputs=x)
    pairs = model.side.weight.detach().unflatten(0, (2, 2))
    REFERENCE.check(made.side.weight.detach(), pairs.mean(1))
    reads = model.leave.weight.detach()[:, :4].unflatten(1, (2, 2))
    REFERENCE.check(made.leave.weight.detach()[:, :2], reads.sum(2))


@pytest.mark.parametrize("init, part", [("preserve", False), ("split", True)])
def test_copies_part_in_training_only_if_their_shares_differ(init: str, part: bool) -> None:
    model, x = residual()
    wide = eslkit.resize(model, {"side": 8}, init=init, example_inputs=x)
    optimizer = torch.optim.SGD(wide.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        square(wide, x).backward()
        optimizer.step()
    twins = wide.side.weight.reshape(4, 2, -1)
    assert (not torch.allclose(twins[:, 0], twins[:, 1], atol=1e-9)) == part


@pytest.mark.parametrize("init", ["preserve", "split"])
def test_copies_cannot_narrow(init: str) -> None:
    model, x = residual()
    with pytest.raises(ResizeError, match=f"init='{init}' cannot narrow group side from 4 to 2"):
        eslkit.resize(model, {"side": 2}, init=init, example_inputs=x)


@pytest.mark.parametrize("name, where", [("first", slice(0, 8)), ("last", slice(2, 10))])
def test_literal_cuts_the_input_of_a_concat_as_one(name: str, where: slice) -> None:
    """[side 4 | x 6] -> [side 2 | x 6]: positions 0 to 7 (or 2 to 9) of 10, by hand."""
    model, x = residual()
    made = eslkit.resize(model, {"side": 2}, init=policies.literal(name), example_inputs=x)
    assert torch.equal(made.leave.weight, model.leave.weight[:, where])
    rows = slice(0, 2) if name == "first" else slice(2, 4)
    assert torch.equal(made.side.weight, model.side.weight[rows])
    aligned = eslkit.resize(model, {"side": 2}, init=name, example_inputs=x)
    left = model.leave.weight[:, :4][:, rows]
    assert torch.equal(aligned.leave.weight, torch.cat([left, model.leave.weight[:, 4:]], 1))


def test_literal_halves_both_segments_of_a_concat_as_one() -> None:
    model, x = residual()
    made = eslkit.resize(model, {"side": 2, "enter": 3}, init="literal_first", example_inputs=x)
    assert torch.equal(made.leave.weight, model.leave.weight[:, :5])
    assert torch.equal(made.again.weight, model.again.weight[:3, :3])  # no concat, as first
    mean = eslkit.resize(model, {"side": 2, "enter": 3}, init="literal_combined", example_inputs=x)
    both = 0.5 * (model.leave.weight[:, :5] + model.leave.weight[:, 5:])
    REFERENCE.check(mean.leave.weight.detach(), both.detach())


def test_literal_of_a_score_is_refused() -> None:
    with pytest.raises(InputError, match="is there for 'first', 'last', 'combined'"):
        policies.literal("l1")


class _MeanOfTwo(nn.Module):
    """Norms a concat of two maps, beside a mask of the code's own or not."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.leave = nn.Conv2d(9 if masked else 8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.left(x), self.right(x), *([x[:, :1]] if self.masked else [])]
        z = torch.cat(y, 1)
        return self.leave(z / (z.pow(2).mean(1, keepdim=True) + 1).sqrt())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("names", [("left",), ("left", "right")])
def test_a_mean_over_copies_of_some_and_not_of_others_is_told(
    masked: bool, names: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    model, x = _MeanOfTwo(masked).double(), torch.randn(1, 3, 4, 4, dtype=torch.float64)
    widths = dict.fromkeys(names, 8)
    if masked or len(names) == 1:
        with pytest.warns(eslkit.ResizeWarning, match="mean.*, with other channels"):
            wide = eslkit.resize(model, widths, init="preserve", example_inputs=x)
        assert not torch.allclose(wide(x), model(x), rtol=1e-4)
    else:
        wide = eslkit.resize(model, widths, init="preserve", example_inputs=x)
        PRESERVED.check([wide(x)], [model(x)])
