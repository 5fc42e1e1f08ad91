"""Linear expansion: layers that learn as products, and are single weights again afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import eslkit
from eslkit.budget import spread
from eslkit.errors import InputError, TrainingError
from eslkit.plan import Plan
from eslkit.surgery.depth import clone
from eslkit.surgery.linear import collapse, expand_linearly, expandable_layers, product_macs
from eslkit.trainer import StepContext
from eslkit.words import describe
from eslkit_tsdn.models import UNet
from tests.eslkit.small_walk import Loop, final_bytes, run, small_plan
from tests.tolerances import FLOAT32_FORWARD, PRESERVED, REFERENCE


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A layer of double precision of any kind that there is, and an input for it."""
    dims = draw(st.integers(0, 3))
    bias = draw(st.booleans())
    torch.manual_seed(draw(st.integers(0, 1000)))
    if dims == 0:
        entries, made = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        return nn.Linear(entries, made, bias=bias).double(), torch.randn(2, entries).double()
    groups = draw(st.integers(1, 3))
    entries, made = (groups * draw(st.integers(1, 3)) for _ in range(2))
    name = f"Conv{draw(st.sampled_from(['', 'Transpose']))}{dims}d"
    kernel, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    layer = getattr(nn, name)(entries, made, kernel, stride=stride, groups=groups, bias=bias)
    return layer.double(), torch.randn(2, entries, *[4] * dims).double()


def shaken(model: nn.Module) -> None:
    """As some training might leave it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


@given(layers(), st.integers(1, 5), st.integers(0, 100))
def test_nothing_changes_by_expanding_and_nothing_by_collapsing(
    made: tuple[nn.Module, Tensor], times: int, seed: int
) -> None:
    layer, x = made
    kind, before, form = type(layer), layer(x), {k: v.shape for k, v in layer.state_dict().items()}
    assert expand_linearly(layer, times, seed=seed) == ("",)
    PRESERVED.check(layer(x), before)
    assert isinstance(layer, kind)
    shaken(layer)
    trained = layer(x)
    assert not torch.equal(trained, before)
    assert collapse(layer) == ("",)
    PRESERVED.check(layer(x), trained)
    assert type(layer) is kind
    assert list(form.items()) == [(k, v.shape) for k, v in layer.state_dict().items()]
    assert [name for name, _ in layer.named_parameters()] == list(form)
    assert all(p.requires_grad and p.is_leaf for p in layer.parameters())


def factors_of(layer: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    kept = cast(Any, layer).parametrizations.weight
    return kept.original0, kept.original1, kept.original2


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
def test_a_product_is_two_layers_with_nothing_between(
    entries: int, made: int, kernel: int, times: int
) -> None:
    layer = nn.Conv2d(entries, made, kernel, padding=kernel // 2).double()
    x = torch.randn(2, entries, 5, 5).double()
    expand_linearly(layer, times)
    shaken(layer)
    own, left, right = factors_of(layer)
    inner = times * max(entries, made)
    assert left.shape == (1, made, inner)
    within = F.conv2d(x, right.view(inner, entries, kernel, kernel), padding=kernel // 2)
    product = F.conv2d(within, left.view(made, inner, 1, 1))
    REFERENCE.check(layer(x), F.conv2d(x, own, layer.bias, padding=kernel // 2) + product)
    assert product_macs(nn.Conv2d(entries, made, kernel), times) == made * right.numel()


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_groups_do_not_learn_of_each_other(groups: int, entries: int, made: int) -> None:
    layer = nn.ConvTranspose2d(groups * entries, groups * made, 2, groups=groups).double()
    x = torch.randn(1, groups * entries, 3, 3).double()
    expand_linearly(layer, 2)
    shaken(layer)
    own, left, right = factors_of(layer)
    for index, part in enumerate(x.chunk(groups, dim=1)):
        rows = (left[index] @ right[index]).view(made, entries, 2, 2).transpose(0, 1)
        weight = own[index * entries : (index + 1) * entries] + rows
        bias = cast(Tensor, layer.bias).chunk(groups)[index]
        REFERENCE.check(
            layer(x).chunk(groups, dim=1)[index], F.conv_transpose2d(part, weight, bias)
        )


def test_all_factors_learn_from_the_first_update() -> None:
    layer = nn.Conv2d(3, 4, 3)
    expand_linearly(layer)
    layer(torch.rand(2, 3, 8, 8)).square().mean().backward()
    for factor in factors_of(layer):
        assert factor.grad is not None and factor.grad.abs().max() > 0


def test_the_seed_says_what_factors_begin_with_and_nothing_else_is_drawn() -> None:
    state = torch.get_rng_state()
    one, same, other = (UNet((4, 8)) for _ in range(3))
    torch.set_rng_state(state)
    for model, seed in ((one, 1), (same, 1), (other, 2)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)
                parameter.view(-1)[0] = 1.0
        expand_linearly(model, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    here, there, elsewhere = (model.state_dict() for model in (one, same, other))
    assert all(torch.equal(here[key], there[key]) for key in here)
    assert any(not torch.equal(here[key], elsewhere[key]) for key in here)


def test_copies_of_an_expanded_model_are_expanded() -> None:
    model, x = UNet((4, 8)), torch.rand(1, 4, 16, 16)
    expand_linearly(model)
    for copied in (clone(model), deepcopy(model)):
        assert torch.equal(copied(x), model(x))
        assert set(collapse(copied)) == set(expandable_layers(UNet((4, 8))))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.frozen = nn.Linear(3, 3)
        self.frozen.weight.requires_grad_(False)
        self.lazy = nn.LazyLinear(3)
        self.normed = parametrizations.weight_norm(nn.Linear(3, 3))
        self.free = nn.Linear(3, 3)
        self.again = nn.ModuleList([self.free])


class Grouped(nn.Linear):
    """A linear layer of another's, with groups that are not a convolution's."""

    groups = "all"


class Odd(nn.Conv2d):
    """A convolution whose weight is a scale."""

    def __init__(self) -> None:
        super().__init__(2, 2, 1)
        self.weight = nn.Parameter(torch.ones(2))


def test_layers_derived_from_torchs_are_taken_as_far_as_they_are_like_them() -> None:
    layer, x = Grouped(3, 4), torch.rand(2, 3)
    before = layer(x)
    assert expand_linearly(layer) == ("",)
    FLOAT32_FORWARD.check(layer(x), before)
    assert not expand_linearly(nn.Sequential(Odd(), nn.ReLU()))


class WrittenAnew(nn.Module):
    """A convolution as some networks have it, with a gain on its kernel."""

    groups = "a name of its own"

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.weight = nn.Parameter(0.3 * torch.randn(shape))
        self.bias = nn.Parameter(torch.zeros(shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.to(x) * self.gain, self.bias, padding="same")


class Scale(nn.Module):
    """A norm's, for pictures."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class Table(nn.Embedding):
    """What is looked up is no layer, whoever derives it."""


def test_layers_that_a_network_writes_anew_are_layers() -> None:
    model = nn.Sequential(
        WrittenAnew(6, 3, 3, 3),
        Scale(1, 6, 1, 1),
        nn.ReLU(),
        Scale(6, 1, 1),
        WrittenAnew(3, 6, 1, 1),
    ).double()
    x, keys = torch.rand(2, 3, 5, 5).double(), list(model.state_dict())
    before = model(x)
    assert expand_linearly(model) == ("0", "4")
    PRESERVED.check(model(x), before)
    model(x).square().mean().backward()
    grads = [factor.grad for factor in factors_of(model[0])]
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads)
    shaken(model)
    trained = model(x)
    assert collapse(model) == ("0", "4")
    PRESERVED.check(model(x), trained)
    assert list(model.state_dict()) == keys
    assert not expandable_layers(nn.Sequential(Table(4, 4), nn.Bilinear(2, 2, 2), Scale(4, 1)))


class Masked(nn.Conv2d):
    """A convolution that is blind for what stands at its own place, as of PixelCNN."""

    def __init__(self, entries: int, made: int) -> None:
        super().__init__(entries, made, 3, padding=1)
        self.mask: Tensor
        self.register_buffer("mask", torch.ones_like(self.weight.data))
        self.mask[:, :, 1, 1] = 0

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if x.isnan().any():
            raise ValueError("not a picture")
        self.weight.data *= self.mask
        return super().forward(x)


class MaskedWithoutGradients(Masked):
    """The same, written as torch asks for it."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if x.isnan().any():
            raise ValueError("not a picture")
        with torch.no_grad():
            self.weight.mul_(self.mask)
        return nn.Conv2d.forward(self, x)


def seen(layer: nn.Module) -> Tensor:
    """How an output hangs on the input at its own place."""
    x = torch.rand(1, 3, 5, 5, requires_grad=True)
    layer(x)[0, :, 2, 2].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    return x.grad[0, :, 2, 2].abs().max()


@pytest.mark.parametrize("kind", [Masked, MaskedWithoutGradients])
def test_layers_that_write_into_their_weight_run_with_what_they_wrote(kind: type[Masked]) -> None:
    layer, x = kind(3, 8), torch.rand(2, 3, 5, 5)
    before = layer(x)
    expand_linearly(layer)
    FLOAT32_FORWARD.check(layer(x), before)
    shaken(layer)
    for each in (layer, clone(layer), deepcopy(layer)):
        assert seen(each) == 0
        with pytest.raises(ValueError, match="not a picture"):
            each(x * torch.nan)
        trained, right = each(x), factors_of(each)[2]
        shaken(each)
        assert not torch.equal(each(x), trained), "a weight is held no longer than its layer runs"
        right.grad = None
        each(x).square().sum().backward()
        assert right.grad is not None
        assert right.grad.abs().max() > 0
        trained = each(x)
        assert collapse(each) == ("",)
        FLOAT32_FORWARD.check(each(x), trained)
        assert not any(value for name, value in vars(each).items() if "forward" in name)


def test_a_network_of_layers_written_anew_has_the_recipe() -> None:
    model = nn.Sequential(WrittenAnew(6, 3, 3, 3), nn.ReLU(), WrittenAnew(3, 6, 3, 3))
    x = torch.rand(2, 3, 5, 5)
    made = eslkit.schedule(model, budget=6, example_inputs=x)
    assert made.plan.linear == 4
    looked: list[int] = []

    def train(network: nn.Module, _: StepContext) -> None:
        looked.append(len(list(network.parameters())))

    back = made.run(train).model
    assert looked == [10]
    assert list(back.state_dict()) == list(model.state_dict())


def test_weights_that_are_not_a_layers_own_stay_as_they_are() -> None:
    model = Tied()
    assert expand_linearly(model) == ("free",)
    assert collapse(model) == ("free",)
    assert model.two.weight is model.one.weight
    assert "normed.parametrizations.weight.original0" in model.state_dict()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_precision_stays(kind: torch.dtype) -> None:
    layer = nn.Conv2d(2, 2, 1).to(kind)
    expand_linearly(layer)
    assert {p.dtype for p in layer.parameters()} == {kind}
    collapse(layer)
    assert layer.weight.dtype == kind


def test_weights_are_whole_under_autocast() -> None:
    layer = nn.Linear(4, 4)
    expand_linearly(layer)
    shaken(layer)
    plain = layer.weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.weight, plain)


def test_a_run_hands_expanded_layers_out_and_keeps_weights(tmp_path: Path) -> None:
    plan = spread(small_plan(), linear=3)
    assert Plan.from_yaml(plan.to_yaml()) == plan
    seen: list[set[str]] = []

    class Looking(Loop):
        def fit(self, model: nn.Module, step: StepContext) -> Mapping[str, float]:
            seen.append(set(model.state_dict()))
            return super().fit(model, step)

    network, _ = run(tmp_path / "run", Looking(), plan=plan)
    assert all("first.parametrizations.weight.original2" in keys for keys in seen)
    assert list(network.state_dict()) == list(run(None)[0].state_dict())
    plain, _ = run(None)
    assert not torch.equal(network.first.weight, plain.first.weight)  # type: ignore[union-attr]


def test_an_interrupted_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    plan = small_plan().model_copy(update={"linear": 2})
    run(tmp_path / "whole", plan=plan)

    class Halting(Loop):
        def fit(self, model: nn.Module, step: StepContext) -> Mapping[str, float]:
            if step.name == "CSL1":
                super().fit(
                    model,
                    StepContext(
                        step.step.model_copy(update={"iterations": 2}),
                        step.num_steps,
                        step.folder,
                        step.seed,
                        step.plan,
                    ),
                )
                raise RuntimeError("power cut")
            return super().fit(model, step)

    with pytest.raises(TrainingError, match="power cut"):
        run(tmp_path / "halted", Halting(), plan=plan)
    run(tmp_path / "halted", plan=plan)
    assert final_bytes(tmp_path / "halted") == final_bytes(tmp_path / "whole")


def fit(model: nn.Module, step: StepContext) -> dict[str, float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    loss = cast(Tensor, model(torch.rand(1, 4, 16, 16))).square().mean()
    loss.backward()
    optimizer.step()
    return {"loss": float(loss.detach())}


@pytest.mark.parametrize("expand_init", ["random", "split"])
def test_layers_alone_can_be_expanded(expand_init: str) -> None:
    model, x = UNet((4, 8)), torch.rand(1, 4, 16, 16)
    made = eslkit.schedule(
        model, width=1, depth=0, linear=4, expand_init=expand_init, example_inputs=x, budget=10
    )
    assert [step.name for step in made.steps] == ["EL"]
    assert made.steps[0].iterations == 10
    told = " ".join(str(made).split())
    assert "4 times their channels inside" in told
    assert "its layers larger inside" in describe(made.steps[0], made.plan)

    def still(model: nn.Module, step: StepContext) -> dict[str, float]:
        if expand_init == "split":
            FLOAT32_FORWARD.check(model(x), before)
        return {}

    before = model(x)
    result = made.run(still).model
    assert type(result) is UNet
    assert list(result.state_dict()) == list(model.state_dict())


def test_a_whole_walk_with_expanded_layers() -> None:
    model, x = UNet((4, 8)), torch.rand(1, 4, 16, 16)
    made = eslkit.schedule(model, linear=2, example_inputs=x)
    result = made.run(fit)
    assert len(result.records) == len(made.steps) > 2
    assert {k: v.shape for k, v in result.model.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    large = eslkit.expand(model, width=2, example_inputs=x)
    back = eslkit.schedule_from(large, target=model, linear=2, example_inputs=x)
    assert back.plan.linear == 2
    assert type(back.run(fit).model) is UNet


def test_an_optimizer_has_nothing_to_inherit() -> None:
    model, x = UNet((4, 8)), torch.rand(1, 4, 16, 16)
    kept: list[tuple[nn.Module, torch.optim.Optimizer]] = []

    def carrying(network: nn.Module, step: StepContext) -> None:
        optimizer = torch.optim.Adam(network.parameters())
        for source_model, source in kept:
            assert "encoder.0.conv1.parametrizations.weight.original1" in source_model.state_dict()
            eslkit.inherit_optimizer(
                optimizer, source, model=network, source_model=source_model, example_inputs=x
            )
        kept.append((network, optimizer))

    with pytest.raises(InputError, match="factors of every layer begin anew"):
        eslkit.schedule(model, linear=2, recipe="thrifty", example_inputs=x).run(carrying)


@pytest.mark.parametrize("times", [-1, 1.5, True, "much"])
def test_what_cannot_be_is_refused(times: Any) -> None:
    with pytest.raises(InputError, match="expected a whole number from 0"):
        eslkit.schedule(UNet((4, 8)), linear=times, example_inputs=torch.rand(1, 4, 16, 16))
    with pytest.raises(InputError, match="expected a whole number from 0"):
        spread(small_plan(), linear=times)


def test_models_without_such_layers_are_refused() -> None:
    model = UNet((4, 8)).requires_grad_(False)
    with pytest.raises(InputError, match="no convolution or linear layer whose weight is trained"):
        eslkit.schedule(model, linear=4, example_inputs=torch.rand(1, 4, 16, 16))
    with pytest.raises(InputError, match="expected a whole number from 1"):
        expand_linearly(model, 0)
