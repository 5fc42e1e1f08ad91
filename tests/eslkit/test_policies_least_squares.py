"""Least squares: against a direct solution, and never worse than the plain selection."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import eslkit
from eslkit.errors import InputError
from eslkit.surgery import policies
from eslkit.surgery.policies.calibration import uses_of, weights_in_order
from tests.eslkit.networks import Form, forms
from tests.eslkit.test_laws import FREE, MANY, assert_same_bits, drawn_widths, run, tensors_of
from tests.tolerances import PRESERVED, SOLVED


def chain(**how: Any) -> tuple[nn.Sequential, list[Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, **how))
    model = model.to(torch.float64)
    return model, [torch.randn(2, 2, 9, 9, dtype=torch.float64) for _ in range(2)]


HOW = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "dilation": 2, "padding": 2},
    {"kernel_size": 3, "padding": 1, "bias": False},
]


@pytest.mark.parametrize("how", HOW, ids=str)
def test_the_consumer_is_the_direct_solution(how: dict[str, Any]) -> None:
    """He et al. 2017, equation 4, with a bias: by unfolding and a dense solver."""
    model, batches = chain(**how)
    init = policies.least_squares(batches, selection=policies.first, iterations=500, damping=0)
    made = eslkit.resize(model, {"0": 5}, init=init, example_inputs=batches[0])
    with torch.no_grad():
        want = torch.cat([model(x).flatten(2).movedim(1, -1).flatten(0, 1) for x in batches])
        inner = [torch.relu(model[0](x))[:, :5] for x in batches]
        window = {key: value for key, value in how.items() if key != "bias"}
        columns = [F.unfold(x, **window).movedim(1, -1).flatten(0, 1) for x in inner]
        rows = torch.cat(columns)
        if how.get("bias", True):
            rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1)
        solution = torch.linalg.lstsq(rows, want).solution
        have = torch.cat([made(x).flatten(2).movedim(1, -1).flatten(0, 1) for x in batches])
    SOLVED.check(have, rows @ solution)
    count = made[2].weight[0].numel()
    SOLVED.check(made[2].weight.detach().flatten(1), solution[:count].T)
    if made[2].bias is not None:
        SOLVED.check(made[2].bias.detach(), solution[count])
    assert torch.equal(made[0].weight, model[0].weight[:5])


CONSUMERS = {
    "transposed": lambda: nn.ConvTranspose2d(8, 3, 2, stride=2),
    "shuffled": lambda: nn.Sequential(nn.Conv2d(8, 12, 1), nn.PixelShuffle(2)),
    "strided": lambda: nn.Conv2d(8, 3, 2, stride=2, bias=False),
    "linear": lambda: Last(nn.Linear(8, 3)),
    "no-bias": lambda: Last(nn.Linear(8, 3, bias=False)),
    "bare": lambda: Last(Product()),
    "attention": lambda: Last(Attention()),
    "twice": lambda: Twice(),
}


class Last(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(2).transpose(1, 2))


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.attention(x, x, x, need_weights=False)[0]


class Twice(nn.Module):
    """One layer used two times: its weights are solved for both."""

    def __init__(self) -> None:
        super().__init__()
        self.leave = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.leave(x), self.leave(F.avg_pool2d(x, 3, 1, 1))], 1)


@pytest.mark.parametrize("kind", CONSUMERS)
def test_channels_that_others_make_up_for_are_not_missed(kind: str) -> None:
    """The dropped channels are sums of the kept ones: the output stays, whatever reads them."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), CONSUMERS[kind]()).double().eval()
    with torch.no_grad():
        mix = torch.randn(4, 4, dtype=torch.float64)
        for tensor in (model[0].weight, model[0].bias):
            tensor[4:] = torch.tensordot(mix, tensor[:4], dims=1)
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    init = policies.least_squares([x], selection=policies.first, iterations=300, damping=0)
    made = eslkit.resize(model, {"0": 4}, init=init, example_inputs=x)
    other = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    SOLVED.check(run(made, x), run(model, x))
    if kind in ("linear", "no-bias", "bare", "shuffled", "strided", "transposed"):
        SOLVED.check(run(made, other), run(model, other))  # what was solved holds elsewhere


def missing(narrow: nn.Module, model: nn.Module, x: Tensor, name: str, count: int) -> float:
    """How far a layer's output lies from that before, squared, on a batch."""
    far = 0.0
    pair = [uses_of(m, x, name, count=count) for m in (narrow, model)]
    for here, there in zip(*pair, strict=True):
        outputs = []
        for network, use in ((narrow, here), (model, there)):
            own = dict(network.named_parameters())
            bias = None if use.bias is None else own[use.bias].detach()
            outputs.append(use.run(own[use.weight].detach(), bias))
        far += float((outputs[0] - outputs[1]).square().sum())
    return far


@MANY
@given(forms(inside=FREE), st.randoms(use_true_random=False), st.sampled_from(("first", "l1")))
def test_no_consumer_is_farther_off_than_with_the_selection(
    form: Form, dice: Any, name: str
) -> None:
    model, x = form.build(), form.inputs(batch=2)
    graph = eslkit.trace(model, example_inputs=x)
    solvable = weights_in_order(model, x)  # grouped convolutions that consume are left as selected
    names = [
        g.name
        for g in graph.resizable
        if g.width > 1 and not g.tied and not g.mixed
        if any(s.role == "consumer" and s.parameter in solvable for s in g.spans)
    ]
    if not names or any(set(c.counts) & set(names) for c in graph.constraints):
        return
    group = graph.group(dice.choice(names))
    widths = {group.name: dice.randint(1, group.width - 1)}
    selection = policies.policy_of(name)
    plain = eslkit.resize(model, widths, init=selection, example_inputs=x)
    init = policies.least_squares([x], selection=selection, iterations=20)
    solved = eslkit.resize(model, widths, init=init, example_inputs=x)
    consumers = {s.parameter for s in group.spans if s.role == "consumer"}
    seen = {n: c for n, c in solvable.items() if n in consumers}
    first, count = next(iter(seen.items()))  # behind it, inputs differ
    if not any(s.parameter == first and s.role == "producer" for s in group.spans):
        most = missing(plain, model, x, first, count)
        assert missing(solved, model, x, first, count) <= (1 + 1e-9) * most
    same = set(tensors_of(model)) - consumers
    for key in same:
        if not key.endswith("bias"):
            assert torch.equal(tensors_of(solved)[key], tensors_of(plain)[key]), key


@MANY
@given(forms(inside=FREE), st.integers(0, 2**16))
def test_it_runs_on_drawn_networks_and_leaves_them_alone(form: Form, seed: int) -> None:
    model, x = form.build().train(), form.inputs()
    widths = drawn_widths(eslkit.trace(model, example_inputs=x), seed)
    before, rng, modes = (
        tensors_of(model),
        torch.get_rng_state(),
        [m.training for m in model.modules()],
    )
    init = policies.least_squares([x], iterations=3)
    made = eslkit.resize(model, widths, init=init, example_inputs=x)
    assert_same_bits(tensors_of(model), before)
    assert torch.equal(rng, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()] == [m.training for m in made.modules()]
    assert all(value.isfinite().all() for value in tensors_of(made).values())
    again = eslkit.resize(model, widths, init=init, example_inputs=x)
    assert_same_bits(tensors_of(again), tensors_of(made))


def test_widening_does_what_the_selection_does() -> None:
    model, batches = chain(kernel_size=1)
    init = policies.least_squares(batches, selection=policies.preserve)
    made = eslkit.resize(model, {"0": 16}, init=init, example_inputs=batches[0])
    PRESERVED.check(run(made, batches[0]), run(model, batches[0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_low_precision_is_solved_too(dtype: torch.dtype) -> None:
    model, batches = chain(kernel_size=1)
    model, batches = model.to(dtype), [x.to(dtype) for x in batches]
    made = {
        key: eslkit.resize(model, {"0": 4}, init=init, example_inputs=batches[0])
        for key, init in (("l1", "l1"), ("solved", policies.least_squares(batches)))
    }
    assert {p.dtype for p in made["solved"].parameters()} == {dtype}
    far = {
        key: sum(float((run(m, x) - run(model, x)).float().square().sum()) for x in batches)
        for key, m in made.items()
    }
    assert far["solved"] < 0.7 * far["l1"]


def test_taylor_may_select_and_batches_may_hold_more_than_inputs() -> None:
    model, batches = chain(kernel_size=1)
    pairs = [(x, x.sum()) for x in batches]
    select = policies.taylor(pairs, lambda m, pair: (m(pair[0]) - pair[1]).square().mean())
    init = policies.least_squares(pairs, selection=select, inputs=lambda pair: pair[0])
    made = eslkit.resize(model, {"0": 4}, init=init, example_inputs=batches[0])
    plain = eslkit.resize(model, {"0": 4}, init=select, example_inputs=batches[0])
    assert torch.equal(made[0].weight, plain[0].weight)
    assert not torch.equal(made[2].weight, plain[2].weight)


class Computed(nn.Module):
    """What reads the channels is computed: there is no parameter to solve for."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(2, 6)
        self.leave = nn.utils.parametrizations.weight_norm(nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.enter(x))


def test_computed_weights_keep_what_the_selection_gave() -> None:
    torch.manual_seed(0)
    model, x = Computed(), torch.randn(9, 2)
    init = policies.least_squares([x], selection=policies.first)
    made = eslkit.resize(model, {"enter": 3}, init=init, example_inputs=x)
    plain = eslkit.resize(model, {"enter": 3}, init="first", example_inputs=x)
    assert_same_bits(tensors_of(made), tensors_of(plain))


def test_a_schedule_walks_with_it() -> None:
    model, batches = chain(kernel_size=1)
    model = copy.deepcopy(model).float()
    init = policies.least_squares([x.float() for x in batches])
    plan = eslkit.schedule(model, depth=0, init=init, example_inputs=batches[0].float())
    assert [step.init for step in plan.steps] == ["random", "least_squares"]
    result = plan.run(lambda network, step: {"loss": 0.0})
    assert [tuple(p.shape) for p in result.model.parameters()] == [
        tuple(p.shape) for p in model.parameters()
    ]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="no batches to solve on"):
        policies.least_squares([])
    with pytest.raises(InputError, match="iterations=0 must be at least 1"):
        policies.least_squares([1], iterations=0)
    with pytest.raises(InputError, match="damping=-1 not negative"):
        policies.least_squares([1], damping=-1)
