"""Init policies: their laws on drawn networks, and each against the formula it is named after."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import eslkit
from eslkit.errors import InputError, ResizeError
from eslkit.graph.channels import ChannelGroup
from eslkit.surgery import policies
from eslkit.surgery.inherit import named_tensors
from eslkit.surgery.policies import GroupChange, Maps, Policy
from tests.eslkit.networks import Form, forms
from tests.eslkit.residual import Residual, residual, square
from tests.eslkit.test_laws import FREE, MANY, assert_same_bits, plain_groups, run, tensors_of
from tests.tolerances import REFERENCE


def every_policy(form: Form) -> dict[str, Policy]:
    """All policies that can narrow, those that look at data too."""
    batches = [form.inputs(batch=2)]
    named = {name: policies.policy_of(name) for name in policies.NAMES}
    for name in ("random", "preserve", "split"):
        del named[name]
    return {
        **named,
        "taylor": policies.taylor(batches, square),
        "least_squares": policies.least_squares(batches, iterations=3),
    }


def change_of(model: nn.Module, group: ChannelGroup, new: int) -> GroupChange:
    return GroupChange(group, group.width, new, named_tensors(model))


def kept(maps: Maps) -> list[int]:
    """The channels that a selection keeps."""
    assert torch.equal(maps.producer, maps.consumer)
    assert (maps.producer.sum(1) == 1).all()
    return maps.producer.argmax(1).tolist()


def permuted(model: nn.Module, group: ChannelGroup, order: Tensor) -> nn.Module:
    """The same function, the channels of one group in another order."""
    made = copy.deepcopy(model)
    tensors = named_tensors(made)
    for span in group.spans:
        size = group.width * span.inner
        part = tensors[span.parameter].detach().narrow(span.axis, span.start, size)
        cut = part.unflatten(span.axis, (group.width, span.inner)).index_select(span.axis, order)
        part.copy_(cut.flatten(span.axis, span.axis + 1))
    return made


SCORED = ("l1", "l2", "bn_scale", "taylor")


@MANY
@given(forms(inside=FREE), st.sampled_from(SCORED), st.randoms(use_true_random=False))
def test_scores_go_with_the_channels(form: Form, name: str, dice: Any) -> None:
    model, x = form.build(), form.inputs()
    graph = eslkit.trace(model, example_inputs=x)
    free = [graph.group(n) for n in sorted(plain_groups(graph)) if not graph.group(n).tied]
    if not free:
        return
    group = dice.choice(free)
    order = torch.tensor(dice.sample(range(group.width), group.width))
    other, policy = permuted(model, group, order), every_policy(form)[name]
    REFERENCE.check(run(other, x), run(model, x))
    new = dice.randint(1, group.width)
    maps = {}
    for key, network in (("model", model), ("other", other)):
        asked = policy.bind(network) if isinstance(policy, policies.NeedsModel) else policy
        maps[key] = kept(asked(change_of(network, group, new)))
    assert {int(order[i]) for i in maps["other"]} == set(maps["model"])
    widths = {group.name: new}
    narrow = [eslkit.resize(m, widths, init=policy, example_inputs=x) for m in (model, other)]
    REFERENCE.check(run(narrow[1], x), run(narrow[0], x))


@MANY
@given(forms(), st.sampled_from(sorted((*policies.NAMES, "taylor", "least_squares"))))
def test_keeping_all_channels_is_the_identity(form: Form, name: str) -> None:
    if name == "random":
        return
    model, x = form.build(), form.inputs()
    init = {**every_policy(form), "preserve": "preserve", "split": "split"}[name]
    kept_all = eslkit.shrink(model, width=1, init=init, example_inputs=x)
    assert_same_bits(tensors_of(kept_all), tensors_of(model))
    group = eslkit.trace(model, example_inputs=x).resizable[0]
    answer = policies.policy_of(init)
    if isinstance(answer, policies.NeedsModel):
        answer = answer.bind(model)
    maps = answer(change_of(model, group, group.width))
    assert torch.equal(maps.producer, torch.eye(group.width, dtype=torch.float64))
    assert torch.equal(maps.consumer, maps.producer)


def largest(scores: Tensor, count: int) -> list[int]:
    return sorted(scores.argsort(descending=True)[:count].tolist())


@pytest.mark.parametrize("new", range(1, 6))
def test_norms_are_those_of_all_filters_that_produce_the_channel(new: int) -> None:
    model, x = residual()
    group = eslkit.trace(model, example_inputs=x).group("enter")
    change = change_of(model, group, new)
    both = torch.cat([model.enter.weight.flatten(1), model.again.weight.flatten(1)], 1).detach()
    assert kept(policies.l1(change)) == largest(both.abs().sum(1), new)
    assert kept(policies.l2(change)) == largest(both.norm(dim=1), new)
    assert kept(policies.bn_scale(change)) == largest(model.norm.weight.abs(), new)
    REFERENCE.check(policies.norm_scores(change, 1), both.abs().sum(1))
    REFERENCE.check(policies.norm_scores(change, 2), both.norm(dim=1))


def test_without_a_batch_norm_its_scale_is_the_filters_norm() -> None:
    model, x = residual()
    group = eslkit.trace(model, example_inputs=x).group("side")
    change = change_of(model, group, 2)
    assert kept(policies.bn_scale(change)) == kept(policies.l1(change))


def test_of_equal_scores_the_earlier_channel_stays() -> None:
    model, x = residual()
    change = change_of(model, eslkit.trace(model, example_inputs=x).group("enter"), 3)
    scores = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    assert kept(policies.keep_largest(scores, change)) == [1, 2, 4]


def test_an_unknown_order_of_a_norm_is_refused() -> None:
    model, x = residual()
    change = change_of(model, eslkit.trace(model, example_inputs=x).group("enter"), 3)
    with pytest.raises(InputError, match="order=3 of a norm must be 1 or 2"):
        policies.norm_scores(change, 3)


def gate_derivatives(model: Residual, x: Tensor) -> Tensor:
    """Derivative of the loss by a factor on each of the six channels, wherever they are read."""
    gate = torch.ones(6, dtype=torch.float64, requires_grad=True)
    wide = gate.reshape(1, -1, 1, 1)

    def all_of_it(module: nn.Module, args: tuple[Tensor]) -> Tensor:
        return args[0] * wide

    def behind_the_side(module: nn.Module, args: tuple[Tensor]) -> Tensor:
        return torch.cat([args[0][:, :4], args[0][:, 4:] * wide], 1)

    gated = copy.deepcopy(model)
    gated.again.register_forward_pre_hook(all_of_it)
    gated.side.register_forward_pre_hook(all_of_it)
    gated.leave.register_forward_pre_hook(behind_the_side)
    (slope,) = torch.autograd.grad(square(gated, x), gate)
    return slope


@pytest.mark.parametrize("new", range(1, 6))
def test_taylor_is_the_derivative_by_a_gate(new: int) -> None:
    model, _ = residual()
    group = eslkit.trace(model, example_inputs=torch.randn(2, 2, 8, 8).double()).group("enter")
    batches = [torch.randn(2, 2, 8, 8, dtype=torch.float64) for _ in range(3)]
    by_hand = torch.stack([gate_derivatives(model, x).square() for x in batches]).mean(0)
    bound = policies.taylor(batches, square).bind(model)
    assert kept(bound(change_of(model, group, new))) == largest(by_hand, new)


def test_taylor_leaves_the_model_and_the_generator_alone() -> None:
    model, x = residual()
    model.train()
    before, rng = tensors_of(model), torch.get_rng_state()
    eslkit.shrink(model, init=policies.taylor([x], square), example_inputs=x)
    assert_same_bits(tensors_of(model), before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None for p in model.parameters())
    assert model.training


@pytest.mark.parametrize(
    "loss, said",
    [
        (lambda model, x: model(x), r"gave shape \(2, 2, 8, 8\); it must return a scalar tensor"),
        (lambda model, x: 1.0, "gave float; it must return a scalar tensor"),
        (lambda model, x: x.sum(), "does not depend on the model's parameters"),
        (lambda model, x: model(x).sum() * torch.inf, "it must be finite"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss: Callable[..., Any], said: str) -> None:
    model, x = residual()
    with pytest.raises(InputError, match=said):
        policies.taylor([x], loss).bind(model)


def test_taylor_says_what_it_misses() -> None:
    model, x = residual()
    group = eslkit.trace(model, example_inputs=x).group("enter")
    with pytest.raises(InputError, match="no batches to take gradients over"):
        policies.taylor([], square)
    with pytest.raises(InputError, match=r"about group enter without a network"):
        policies.taylor([x], square)(change_of(model, group, 3))


def test_a_policy_may_answer_for_a_single_span() -> None:
    model, x = residual()

    def own(change: GroupChange) -> Maps:
        (read,) = [s for s in change.spans("consumer") if s.layer == "side"]
        maps = policies.first(change)
        return Maps(maps.producer, maps.consumer, {read: 2 * maps.consumer})

    made = eslkit.resize(model, {"enter": 3}, init=own, example_inputs=x)
    assert torch.equal(made.side.weight, 2 * model.side.weight[:, :3])
    assert torch.equal(made.again.weight, model.again.weight[:3, :3])


def test_maps_of_a_wrong_form_are_refused() -> None:
    model, x = residual()

    def own(change: GroupChange) -> Maps:
        return Maps(torch.eye(change.new), torch.eye(change.new))

    with pytest.raises(ResizeError, match=r"shape \(3, 3\) for group enter; expected .*\(3, 6\)"):
        eslkit.resize(model, {"enter": 3}, init=own, example_inputs=x)


DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["last", "l1", "l2", "combined", "preserve"])
def test_any_dtype_is_selected_bit_for_bit(dtype: torch.dtype, name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6, dtype=dtype), nn.Linear(6, 2, dtype=dtype))
    x = torch.randn(1, 3, dtype=dtype)
    new = 12 if name == "preserve" else 3
    made = eslkit.resize(model, {"0": new}, init=name, example_inputs=x)
    assert {p.dtype for p in made.parameters()} == {dtype}
    if name == "combined":
        halves = (model[0].bias[:3] + model[0].bias[3:]) / 2
        torch.testing.assert_close(made[0].bias, halves)
    elif name == "preserve":
        assert torch.equal(made[1].weight, model[1].weight.repeat_interleave(2, 1) / 2)
    else:
        group = eslkit.trace(model, example_inputs=x).group("0")
        rows = kept(policies.policy_of(name)(change_of(model, group, 3)))
        assert torch.equal(made[0].weight, model[0].weight[rows])
        assert torch.equal(made[1].weight, model[1].weight[:, rows])


class Counted(nn.Module):
    """A buffer of whole numbers goes with the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(2, 4)
        self.register_buffer("sign", torch.tensor([1, -1, 2, 2**40 + 1]))
        self.leave = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.enter(x) * self.sign)


@pytest.mark.parametrize(
    "init, want", [("last", [2, 2**40 + 1]), ("combined", [1, -1]), ("first", [1, -1])]
)
def test_whole_numbers_are_selected_not_averaged(init: str, want: list[int]) -> None:
    made = eslkit.resize(Counted(), {"enter": 2}, init=init, example_inputs=torch.ones(1, 2))
    assert made.sign.tolist() == want


def test_names_and_stand_ins() -> None:
    assert policies.policy_of("l1") is policies.l1
    assert policies.planned("l1") is policies.l1
    for policy in (policies.taylor([1], square), policies.least_squares([1])):
        assert policies.planned(policy) is policies.first
        assert policy.__name__ in ("taylor", "least_squares")
    with pytest.raises(InputError, match=r"'best' is no policy; use one of first, .*bn_scale"):
        policies.policy_of("best")


class Bare(nn.Module):
    """Parameters in no layer: a table, a scale per channel, and one that is complex."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(3, 4)
        self.table = nn.Parameter(0.02 * torch.randn(16, 4))
        self.scale = nn.Parameter(torch.full((4,), 1e-6))
        self.turn = nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.count = nn.Parameter(torch.arange(4), requires_grad=False)
        self.leave = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x) + self.table
        return self.leave((y * self.scale * self.turn).real * self.count)


@pytest.fixture
def wide() -> Bare:
    torch.manual_seed(0)
    return eslkit.resize(Bare(), {"enter": 64}, init="random", example_inputs=torch.ones(16, 3))


def test_fresh_bare_parameters_look_like_those_before(wide: Bare) -> None:
    assert wide.table.shape == (16, 64)
    assert 0.015 < float(wide.table.detach().std()) < 0.025
    assert torch.equal(wide.scale, torch.full((64,), 1e-6))
    torch.manual_seed(0)
    before = Bare().turn.detach()
    for new, old in ((wide.turn.real, before.real), (wide.turn.imag, before.imag)):
        assert 0.6 < float(new.detach().std() / old.std()) < 1.6
    assert wide.count.tolist() == list(range(4)) * 16


class Shift(nn.Conv2d):
    """Subtracts the mean colour by a convolution that is not trained, as EDSR does."""

    def __init__(self, *, frozen: str) -> None:
        super().__init__(3, 3, 1)
        self.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.bias.data = torch.tensor([-0.4, -0.5, -0.6])
        if frozen == "parameters":
            for parameter in self.parameters():
                parameter.requires_grad = False
        elif frozen == "module":  # freezes nothing, but is meant so
            self.requires_grad = False


@pytest.mark.parametrize("frozen", ["parameters", "module", ""])
def test_what_is_not_trained_stays(frozen: str) -> None:
    blur = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False).requires_grad_(False)
    blur.weight.data[:] = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    model = nn.Sequential(Shift(frozen=frozen), nn.Conv2d(3, 8, 1), blur, nn.Conv2d(8, 1, 1))
    x = torch.rand(1, 3, 8, 8)
    if frozen:
        with pytest.warns(eslkit.ResizeWarning, match="1 of 2 .*: 0 .*is not trained"):
            big = eslkit.expand(model, example_inputs=x)
        with pytest.warns(eslkit.ResizeWarning, match="1 of 2 .*: 0 .*is not trained"):
            back = eslkit.shrink(big, example_inputs=x)
        assert torch.equal(big[0].weight, model[0].weight)
        assert torch.equal(back[0].bias, model[0].bias)
        assert eslkit.resize(model, {"0": 6}, init="first", example_inputs=x)(x).shape == (
            1,
            1,
            8,
            8,
        )
    else:
        big = eslkit.expand(model, example_inputs=x)
        assert big[0].weight.shape[0] == 6
    assert torch.equal(big[2].weight, model[2].weight.repeat(2, 1, 1, 1))
    assert not big[2].weight.requires_grad
    assert not torch.equal(big[1].weight[:8, :3], model[1].weight)


def test_random_makes_all_of_a_frozen_model_anew() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 1, 1)).requires_grad_(False)
    big = eslkit.expand(model, example_inputs=torch.rand(1, 3, 8, 8))
    assert not torch.equal(big[0].weight[:8], big[0].weight[8:])


class Resetting(nn.Module):
    """Initialises itself in one of several ways that know only the sizes it was written with."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.enter, self.leave = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 2, 1)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.register_buffer("mean", torch.zeros(4, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.how == "replaces":
            self.enter.weight = nn.Parameter(torch.ones(4, 3, 1, 1))
            self.scale = nn.Parameter(torch.full_like(self.scale, 0.25))
        elif self.how == "sets data":
            self.enter.weight.data = torch.ones(4, 3, 1, 1)
        elif self.how == "adds":
            self.register_buffer("seen", torch.zeros(4))
        elif self.how == "fails":
            self.scale.data.mul_(3)
            self.mean.copy_(torch.zeros(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.enter(x) * self.scale + self.mean)


@pytest.mark.parametrize("how", ["replaces", "sets data", "adds", "fails"])
def test_what_a_module_puts_in_its_tensors_places_is_not_kept(how: str) -> None:
    """A network that resets itself has the shapes that were asked for, and its own keys."""
    torch.manual_seed(0)
    model, x = Resetting(how), torch.rand(1, 3, 4, 4)
    if how == "adds":
        del model.seen
    with torch.random.fork_rng():
        big = eslkit.expand(model, example_inputs=x)
        back = eslkit.shrink(big, init="random", example_inputs=x)
    assert big.enter.weight.shape == (8, 3, 1, 1)
    assert big.enter.weight.requires_grad
    assert len(big.enter.weight.unique()) > 1
    assert big(x).shape == (1, 2, 4, 4)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in back.state_dict().items()} == shapes
    scale = {"replaces": 0.25, "fails": 3.0}.get(how, 1.0)  # half of a reset is none
    assert torch.equal(big.scale, torch.full((8, 1, 1), scale))
