"""Levels inserted and taken out again: laws over drawn hourglasses, each held against hooks."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import eslkit
from eslkit.errors import DepthError
from eslkit.surgery.depth import (
    deepen,
    flatten_parts,
    flatten_step,
    inserted_at,
    inserted_levels,
)
from eslkit.surgery.level import Level
from tests.eslkit.networks import EncoderDecoder, Form, forms

EXAMPLES = int(os.environ.get("LAW_EXAMPLES", "6"))
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking whole networks takes minutes
MANY = settings(max_examples=EXAMPLES, phases=PHASES)
FEW = settings(max_examples=max(1, EXAMPLES // 2), phases=PHASES)
X = torch.randn(1, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


def sizes_seen(model: nn.Module, module: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
    """Shapes of what comes out of a module, told by a hook."""
    seen: list[tuple[int, ...]] = []
    handle = module.register_forward_hook(lambda m, args, y: seen.append(tuple(y.shape)))
    run(model, x)
    handle.remove()
    return seen


def gradients_beyond(model: nn.Module, x: Tensor, *, cut: str) -> set[str]:
    """Parameters that still get a gradient where the output of a level is cut off from it."""
    level = inserted_at(model, cut).level
    handle = level.register_forward_hook(lambda m, args, y: y.detach())
    model.zero_grad()
    model(x).square().sum().backward()
    handle.remove()
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


@MANY
@given(forms(), st.integers(1, 2))
def test_there_and_back(form: Form, levels: int) -> None:
    """Each step takes layers out and runs; the end is the beginning, key for key, bit for bit."""
    model, x = form.build(), form.inputs()
    want, state = run(model, x), model.state_dict()
    if form.size >> (len(form.widths) - 1) == 2 and levels == 2:
        with pytest.raises(DepthError, match="single position"):
            deepen(model, levels=2, example_inputs=x)
        return
    big = deepen(model, levels=levels, example_inputs=x)
    assert type(big) is EncoderDecoder
    assert flatten_parts(big) == 2 * levels
    for left in reversed(range(2 * levels)):
        layers = sum(1 for p in big.parameters() if p.dim() > 1)
        assert run(big, x).shape == want.shape
        big, gone = flatten_step(big)
        assert flatten_parts(big) == left
        assert gone
        assert layers - sum(1 for p in big.parameters() if p.dim() > 1) == len(gone)
    assert list(big.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in big.state_dict().items())
    assert repr(big) == repr(model)
    assert torch.equal(run(big, x), want)


@MANY
@given(forms())
def test_everything_that_passes_the_bottleneck_passes_the_level(form: Form) -> None:
    """With the level cut off, what enters the bottleneck has no influence, skips still have."""
    model, x = form.build(), form.inputs()
    big = deepen(model, example_inputs=x)
    (name,) = inserted_levels(big)
    assert name.startswith(("enter.", "inside.", "leave.")) or name in ("inside", "leave", "up.0")
    reached = gradients_beyond(big, x, cut=name)
    assert not any(p.startswith("enter.") and ".level." not in p for p in reached - {name})
    assert any(p.startswith("encoder.") for p in reached) == (form.skip != "none")
    assert any(p.startswith("head.") for p in reached)


@MANY
@given(forms())
def test_the_level_is_made_after_the_innermost_one(form: Form) -> None:
    model, x = form.build(), form.inputs()
    big = deepen(model, example_inputs=x)
    wrapper = inserted_at(big, inserted_levels(big)[0])
    level: Any = wrapper.level
    assert isinstance(level, Level)
    inner = form.widths[-1]
    assert level.entry.conv.in_channels == level.exit.conv.out_channels == inner
    assert level.middle1.conv.out_channels == level.middle2.conv.out_channels == 2 * inner
    assert level.merge == ("add" if form.skip == "add" else "concat")
    side = form.size >> (len(form.widths) - 1)
    assert sizes_seen(big, level, x) == [(1, inner, *(side,) * form.dims)]
    assert sizes_seen(big, level.middle2, x) == [(1, 2 * inner, *(side // 2,) * form.dims)]
    kinds = {"max": "MaxPool", "average": "AvgPool", "conv": "Conv"}
    assert type(level.down).__name__ == f"{kinds[form.down]}{form.dims}d"
    names = {type(module).__name__ for module in level.modules()}
    norms = {
        "none": set[str](),
        "batch": {f"BatchNorm{form.dims}d"},
        "instance": {f"InstanceNorm{form.dims}d"} if side > 2 else {"GroupNorm"},
        "group": {"GroupNorm"},
        "layer": {"LayerNorm"},
    }
    assert {name for name in names if "Norm" in name and name != "ChannelNorm"} == norms[form.norm]
    acts = {"relu": "ReLU", "leaky": "LeakyReLU", "gelu": "GELU"}
    assert acts.get(form.activation, "PReLU") in names
    ups = {
        "transposed": f"ConvTranspose{form.dims}d",
        "resize": "Upsample",
        "shuffle": "PixelShuffle",
    }
    assert ups[form.up] in names


@MANY
@given(forms(), st.integers(1, 2), st.booleans())
def test_an_identity_leaves_the_output_unchanged(form: Form, levels: int, training: bool) -> None:
    """In eval mode, and in train mode too: no norm of the level's stands in the way."""
    model, x = form.build(), form.inputs(batch=2)
    if form.size >> (len(form.widths) - 1) == 2:
        levels = 1
    big = deepen(model, levels=levels, init="identity", example_inputs=x)
    with torch.no_grad():
        want, have = model.train(training)(x), big.train(training)(x)
    torch.testing.assert_close(have, want, atol=1e-8, rtol=1e-8)


def at_the_place(model: nn.Module, name: str, x: Tensor, *, before: bool) -> tuple[Tensor, Tensor]:
    """What goes into a module, or comes out of it, and the slope of the loss by that."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        seen.append(args[0] if before else result)
        seen[-1].retain_grad()

    handle = model.get_submodule(name).register_forward_hook(note)
    model(x).square().sum().backward()
    handle.remove()
    (tensor,) = seen
    assert tensor.grad is not None
    return tensor.detach(), tensor.grad


@FEW
@given(forms(inside=("conv", "attention")), st.sampled_from(("preserve", "identity")))
def test_an_identity_can_be_trained_and_taken_out(form: Form, init: str) -> None:
    model, x = form.build(), form.inputs(batch=2)
    big = deepen(model, init=init, example_inputs=x)
    (name,) = inserted_levels(big)
    level: Any = inserted_at(big, name).level
    values, slopes = at_the_place(model, name, x, before=inserted_at(big, name).before)
    assume(values.any() and slopes.any())  # else the small model itself is dead there
    model.zero_grad()
    big(x).square().sum().backward()
    assert level.exit.conv.weight.grad.any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in level.parameters())
    big, _ = flatten_step(big)
    torch.testing.assert_close(run(big, x), run(model, x), atol=1e-8, rtol=1e-8)
    big, _ = flatten_step(big)
    assert torch.equal(run(big, x), run(model, x))


class Plain(nn.Module):
    """One reduction, of the kind that is given; everything in float64."""

    def __init__(self, act: nn.Module | None = None, width: int = 4, norm: Any = nn.Identity):
        super().__init__()
        self.enter = nn.Conv2d(2, width, 3, padding=1)
        self.low1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm = norm()
        self.low2 = nn.Conv2d(width, width, 3, padding=1)
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.leave = nn.Conv2d(2 * width, 2, 3, padding=1)
        self.act = act or nn.ReLU()
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        skip = self.act(self.enter(x))
        low = self.act(self.norm(self.low1(F.max_pool2d(skip, 2))))
        low = self.act(self.low2(low))
        return self.leave(torch.cat([self.up(low), skip], 1))


@pytest.mark.parametrize(
    "act",
    [
        nn.ReLU(),
        nn.ReLU6(),
        nn.Hardtanh(),
        nn.LeakyReLU(0.2),
        nn.LeakyReLU(0.01),
        nn.PReLU(),
        nn.GELU(),
        nn.GELU(approximate="tanh"),
        nn.SiLU(),
        nn.Hardswish(),
        nn.Softplus(),
    ],
    ids=str,
)
def test_activations_that_allow_an_identity(act: nn.Module) -> None:
    model = Plain(act)
    big = deepen(model, init="identity", example_inputs=X)
    torch.testing.assert_close(run(big, X), run(model, X), atol=1e-8, rtol=1e-8)
    both = eslkit.expand(model, width=2, depth=1, init="preserve", example_inputs=X)
    torch.testing.assert_close(run(both, X), run(model, X), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("act", [nn.ELU(), nn.Mish()], ids=str)
def test_activations_that_allow_none(act: nn.Module) -> None:
    with pytest.raises(DepthError, match=rf"activation {type(act).__name__}.*use init='random'"):
        deepen(Plain(act), init="identity", example_inputs=X)


def test_the_user_s_model_and_the_generator_are_not_touched() -> None:
    model = Plain()
    state, rng = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    text = repr(model)
    deepen(model, example_inputs=X)
    deepen(model, at="low2", example_inputs=X)
    assert torch.equal(rng, torch.get_rng_state())
    assert repr(model) == text
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
