"""ExpandNets: the contracted network is the expanded one, whatever the convolution is like."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from eslkit.cost import cost
from eslkit.errors import InputError, UnsupportedError
from eslkit_tsdn.models import TSDN, UNet
from eslkit_tsdn.rivals.expanded import ExpandedConv, ExpandedTranspose, compose
from eslkit_tsdn.rivals.expansion import contract, expand_convolutions, expandable
from tests.tolerances import REFERENCE

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Module:
    """A convolution of any kind, in float64."""
    dims, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(dims))
    if max(kernel) == 1:
        kernel = (3, *kernel[1:])
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    same = draw(st.booleans())
    return CONVS[dims - 1](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride=1 if same else draw(st.integers(1, 3)),
        padding="same" if same else draw(st.integers(0, 2)),
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
        dtype=torch.float64,
    )


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> nn.Module:
    """A transposed convolution of any kind, in float64."""
    dims, groups, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    return TRANSPOSED[dims - 1](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        draw(st.integers(2, 4)),
        stride=stride,
        padding=draw(st.integers(0, 1)),
        output_padding=draw(st.integers(0, stride - 1)),
        dilation=draw(st.integers(stride, 3)),
        groups=groups,
        bias=draw(st.booleans()),
        dtype=torch.float64,
    )


def an_input(layer: nn.Module, side: int = 9) -> torch.Tensor:
    dims = layer.weight.ndim - 2
    return torch.randn(2, layer.in_channels, *[side] * dims, dtype=torch.float64)


def with_drawn_weights(network: nn.Module) -> nn.Module:
    """Every weight and bias large: nothing that matters may hide behind a zero."""
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # the original's
@settings(max_examples=60)
@given(layer=convolutions(), rate=st.integers(1, 3), slim=st.booleans())
def test_what_cl_trains_is_one_convolution_borders_included(
    layer: nn.Module, rate: int, slim: bool
) -> None:
    names = [""] if slim else []
    expanded = with_drawn_weights(expand_convolutions(layer, rate=rate, slim=names))
    contracted = contract(expanded)
    assert isinstance(expanded, ExpandedConv) and type(contracted) is type(layer)
    assert repr(contracted) == repr(layer)
    x = an_input(layer)
    expected = expanded(x)
    REFERENCE.check(contracted(x), expected)
    assert expected.abs().max() > 0


@settings(max_examples=40)
@given(layer=transposed_convolutions(), rate=st.integers(1, 3))
def test_a_transposed_convolution_contracts_too(layer: nn.Module, rate: int) -> None:
    expanded = with_drawn_weights(expand_convolutions(layer, rate=rate, transposed=True))
    contracted = contract(expanded)
    assert isinstance(expanded, ExpandedTranspose) and repr(contracted) == repr(layer)
    x = an_input(layer, side=4)
    REFERENCE.check(contracted(x), expanded(x))


@settings(max_examples=20)
@given(
    kernel=st.sampled_from([5, 7, 9]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 4),
    dilation=st.integers(1, 2),
    groups=st.integers(1, 2),
    dims=st.integers(1, 2),
)
def test_what_ck_trains_is_one_convolution(
    kernel: int, stride: int, padding: int, dilation: int, groups: int, dims: int
) -> None:
    layer = CONVS[dims - 1](
        2 * groups, groups, kernel, stride, padding, dilation, groups, dtype=torch.float64
    )
    expanded = with_drawn_weights(expand_convolutions(layer, rate=2, expansion="CK"))
    assert [part.kernel_size[0] for part in expanded.parts()] == [3] * ((kernel - 1) // 2)
    x = an_input(layer, side=19)
    REFERENCE.check(contract(expanded)(x), expanded(x))


def naive(first: nn.Conv2d, then: nn.Conv2d) -> torch.Tensor:
    """The kernel of two convolutions in a row, element by element as facts, section 5."""
    (o, _, a, b), (_, i, c, d) = then.weight.shape, first.weight.shape
    weight = torch.zeros(o, i, a + c - 1, b + d - 1, dtype=torch.float64)
    for v in range(a):
        for w in range(b):
            for t in range(c):
                for u in range(d):
                    weight[:, :, v + t, w + u] += then.weight[:, :, v, w] @ first.weight[:, :, t, u]
    return weight


def test_composition_is_the_sum_over_kernel_elements() -> None:
    first = nn.Conv2d(2, 3, (2, 3), dtype=torch.float64)
    then = nn.Conv2d(3, 4, (3, 1), dtype=torch.float64)
    weight, bias = compose((first.weight, first.bias), (then.weight, then.bias))
    REFERENCE.check(weight, naive(first, then))
    expected = then.bias + torch.einsum("opvw,p->o", then.weight, first.bias)
    REFERENCE.check(bias, expected)


def test_padding_between_the_layers_would_break_the_borders() -> None:
    """Why all of it is done first (facts, section 5): the sum is the same, the border is not."""
    layer = nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64)
    expanded = with_drawn_weights(expand_convolutions(layer, rate=2))
    first, inner, last = expanded.parts()
    x = an_input(layer)
    between = last(F.conv2d(first(x), inner.weight, inner.bias, padding=1))
    whole = contract(expanded)(x)
    REFERENCE.check(between[..., 1:-1, 1:-1], whole[..., 1:-1, 1:-1])
    assert (between - whole).abs().max() > 0.1


@pytest.mark.parametrize(
    "rate, parameters, gflops", [(2, 4_033_272, 162.6), (4, 14_992_136, 608.6)]
)
def test_tsdn_with_cl_on_all_3x3_costs_what_the_facts_say(
    rate: int, parameters: int, gflops: float
) -> None:
    with torch.device("meta"):
        expanded = expand_convolutions(TSDN(), rate=rate)
    assert sum(parameter.numel() for parameter in expanded.parameters()) == parameters
    flops = cost(expanded, example_inputs=torch.zeros(1, 4, 512, 512)).flops
    assert flops / 1e9 == pytest.approx(gflops, abs=0.05)


@pytest.mark.parametrize("transposed", [False, True])
def test_same_starts_from_the_given_network(transposed: bool) -> None:
    model = UNet((3, 4, 5)).double()
    expanded = expand_convolutions(
        model, rate=3, init="same", transposed=transposed, slim=["encoder.0.conv1"]
    )
    assert sum(isinstance(m, ExpandedConv) for m in expanded.modules()) == 10
    assert sum(isinstance(m, ExpandedTranspose) for m in expanded.modules()) == 2 * transposed
    x = torch.rand(2, 4, 12, 16, dtype=torch.float64)
    REFERENCE.check(expanded(x), model(x))
    back = contract(expanded)
    assert type(back) is UNet and list(back.state_dict()) == list(model.state_dict())
    for name, weight in model.state_dict().items():
        REFERENCE.check(back.state_dict()[name], weight)


def test_the_model_and_the_generators_are_left_alone() -> None:
    model = UNet((3, 4)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    first = expand_convolutions(model, rate=2, seed=1)
    again = expand_convolutions(model, rate=2, seed=1)
    contracted = contract(first)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(isinstance(layer, ExpandedConv) for layer in model.modules())
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not contracted.training and not first.training


class Odd(nn.Module):
    """A shared layer, a frozen one, tied weights, a subclass, a 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(2, 2, 3, padding=1)
        self.again = self.shared
        self.frozen = nn.Conv2d(2, 2, 3, padding=1).requires_grad_(False)
        self.tied = nn.Conv2d(2, 2, 3, padding=1)
        self.tied_too = nn.Conv2d(2, 2, 3, padding=1)
        self.tied_too.weight = self.tied.weight
        self.own = type("Own", (nn.Conv2d,), {})(2, 2, 3, padding=1)
        self.point = nn.Conv2d(2, 2, 1)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.again(self.shared(self.frozen(x)))
        return self.normed(self.point(self.own(self.tied_too(self.tied(x)))))


def test_only_plain_convolutions_of_their_own_are_taken() -> None:
    model = Odd().double()
    assert expandable(model) == ("shared",)
    expanded = with_drawn_weights(expand_convolutions(model, rate=2, init="same"))
    assert expanded.shared is expanded.again
    back = contract(expanded)
    assert back.shared is back.again
    x = torch.rand(1, 2, 5, 5, dtype=torch.float64)
    REFERENCE.check(back(x), expanded(x))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"rate": 0}, InputError, "rate=0"),
        ({"slim": ["out"]}, InputError, r"slim='out' is no convolution of the UNet.*encoder.0.con"),
        ({"layers": ["nowhere"]}, InputError, "layers='nowhere'"),
        ({"expansion": "CK"}, UnsupportedError, "no convolution to expand by CK.*above 3"),
        ({"expansion": "CK", "init": "same"}, InputError, "for CK pass"),
    ],
)
def test_what_cannot_be_expanded_is_refused(options, error, message) -> None:
    with pytest.raises(error, match=message):
        expand_convolutions(UNet((3, 4)), **options)
