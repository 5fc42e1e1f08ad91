"""What users of comparable libraries ask for and stumble over, each as a small network of ours.

The numbers are threads of Torch-Pruning (TP), NNI, NNCF, ModelOpt and mmrazor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eslkit
from eslkit.errors import ResizeError
from tests.eslkit.families.all import family
from tests.eslkit.families.family import CONV, UP, Alone, Family, Written, conv, inputs, settle
from tests.eslkit.families.laws import assert_same_model, masked, plain_groups, run, size_of
from tests.tolerances import MASKED, PRESERVED


def halved(model: nn.Module, x: Tensor, ratio: float = 0.3) -> nn.Module:
    """Half of it, narrowed as masked, preserved when widened, and back to the bit."""
    graph = eslkit.trace(model, example_inputs=x)
    small = eslkit.shrink(model, example_inputs=x)
    assert size_of(small) <= ratio * size_of(model)
    assert [t.shape for t in run(small, x)] == [t.shape for t in run(model, x)]
    plain = sorted(plain_groups(graph))
    halves = {name: max(1, graph.group(name).width // 2) for name in plain}
    narrow = eslkit.resize(model, halves, init="first", example_inputs=x)
    MASKED.check(run(narrow, x)[0], run(masked(model, graph, halves), x)[0])
    doubles = {name: 2 * graph.group(name).width for name in plain}
    wide = eslkit.resize(model, doubles, init="preserve", example_inputs=x)
    PRESERVED.check(run(wide, x)[0], run(model, x)[0])
    big = eslkit.expand(model, init="first", example_inputs=x)
    assert_same_model(eslkit.shrink(big, init="first", example_inputs=x), model)
    return small


class Residual(nn.Module):
    """MONAI's residual unit: two convolutions with norm and activation, a shortcut that may be."""

    def __init__(self, a: int, b: int, *, up: bool = False) -> None:
        super().__init__()
        layer = UP[2](a, b, 2, stride=2) if up else CONV[2](a, b, 3, stride=2, padding=1)
        self.first = nn.Sequential(layer, nn.InstanceNorm2d(b, affine=True), nn.PReLU())
        self.second = nn.Sequential(conv(2, b, b, 3), nn.InstanceNorm2d(b, affine=True), nn.PReLU())
        self.shortcut = UP[2](a, b, 2, stride=2) if up else CONV[2](a, b, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + self.shortcut(x)


class Skipping(nn.Module):
    """A U as nested skip connections, one inside the other."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inside(x)], 1)


def test_a_unet_of_nested_skips_with_one_parameter_prelu_before_the_concat() -> None:
    """TP 387, 304, 146, 147, 188; NNI 3548, 2335."""
    low = nn.Sequential(Residual(16, 32), Residual(32, 16, up=True))
    mid = nn.Sequential(Residual(8, 16), Skipping(low), Residual(32, 8, up=True))
    model = nn.Sequential(conv(2, 3, 8, 3), nn.PReLU(), Skipping(mid), conv(2, 16, 2, 3))
    halved(settle(model), inputs(3, 2, size=16), 0.35)


def test_instance_norm_and_in_place_leaky_relu_before_a_concat() -> None:
    """The stack of nnU-Net, which Torch-Pruning cannot take apart."""

    def stage(a: int, b: int) -> nn.Module:
        norm = nn.InstanceNorm3d(b, eps=1e-5, affine=True)
        return nn.Sequential(conv(3, a, b, 3), nn.Dropout3d(0.0), norm, nn.LeakyReLU(0.01, True))

    def use(m: Any, x: Tensor) -> Tensor:
        skip = m.enter(x)
        return m.head(m.leave(torch.cat([m.up(m.low(F.max_pool3d(skip, 2))), skip], 1)))

    model = Written(
        use, enter=stage(3, 8), low=stage(8, 16), up=UP[3](16, 8, 2, stride=2, bias=False),
        leave=stage(16, 8), head=conv(3, 8, 2),
    )  # fmt: skip
    halved(settle(model), inputs(3, 3), 0.35)


def test_pixel_shuffle_by_four_steps_and_to_the_image() -> None:
    """TP 98, 420: also where the shuffle gives the model's own output."""
    up = [layer for _ in range(2) for layer in (conv(2, 16, 64, 3), nn.PixelShuffle(2), nn.PReLU())]
    model = nn.Sequential(conv(2, 3, 16, 3), *up, conv(2, 16, 12, 3), nn.PixelShuffle(2))
    small = halved(settle(model), inputs(3, 2))
    assert small[-2].out_channels == 12


def test_one_output_is_no_depthwise_convolution_and_one_input_no_grouped_one() -> None:
    """TP 9, 328, 126, 179; NNCF 527: one output, one input, groups as many as outputs."""

    def use(m: Any, x: Tensor) -> Tensor:
        y = m.stem(x)
        gray = m.from_one(m.to_one(y))
        return m.head(m.deep(y) * gray + m.wide(y)[:, ::2])

    wide = conv(2, 16, 32, 3, groups=16)
    model = Written(
        use, stem=conv(2, 3, 16, 3), to_one=conv(2, 16, 1, 3), from_one=conv(2, 1, 16, 3),
        deep=conv(2, 16, 16, 3, groups=16), wide=wide, head=conv(2, 16, 2, 3),
    )  # fmt: skip
    graph = eslkit.trace(settle(model), example_inputs=inputs(3, 2))
    assert graph.widths == {"stem": 16}
    small = eslkit.shrink(model, example_inputs=inputs(3, 2))
    held = (small.to_one.groups, small.from_one.groups, small.deep.groups, small.wide.groups)
    assert held == (1, 1, 8, 8)
    PRESERVED.check(
        run(eslkit.expand(model, init="preserve", example_inputs=inputs(3, 2)), inputs(3, 2))[0],
        run(model, inputs(3, 2))[0],
    )


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_transposed_convolutions_with_output_padding_and_dilation(dims: int) -> None:
    """TP 125; NNI 2707, 5805; NNCF 163, 175."""
    down = CONV[dims](8, 16, 3, stride=2, padding=1)
    up = UP[dims](16, 8, 3, stride=2, padding=1, output_padding=1)
    far = UP[dims](8, 8, 3, padding=2, dilation=2, groups=2)
    model = nn.Sequential(conv(dims, 3, 8), down, nn.ELU(), up, far, conv(dims, 8, 2))
    halved(settle(model), inputs(3, dims), 0.35)


def test_a_reshape_of_channels_and_positions_before_a_linear_layer() -> None:
    """TP 57, 105, 219: flatten before a classifier, and back to a map after a bottleneck."""

    def use(m: Any, x: Tensor) -> Tensor:
        y = F.max_pool2d(m.stem(x), 2)
        code = m.enter(y.view(y.size(0), -1)).relu()
        y = m.leave(code).view(y.size(0), -1, 4, 4)
        return m.head(F.interpolate(y, scale_factor=2))

    model = Written(
        use, stem=conv(2, 3, 16, 3), enter=nn.Linear(256, 24), leave=nn.Linear(24, 256),
        head=conv(2, 16, 2),
    )  # fmt: skip
    small = halved(settle(model), inputs(3, 2))
    assert (small.enter.in_features, small.enter.out_features) == (128, 12)


BARE = ("layer-scale", "positional", "positional-interpolated", "memory", "listed", "matmul")


@pytest.mark.parametrize("name", BARE)
def test_parameters_that_are_in_no_layer(name: str) -> None:
    """TP 167, 184, 298, 356, 364: and nobody has to name them."""
    kind = family(name)
    model = settle(Alone(kind, 2))
    small = eslkit.shrink(model, example_inputs=inputs(3, 2))
    assert size_of(small) <= kind.ratio * size_of(model)


def test_a_changed_structure_is_saved_and_loaded_by_its_state_alone(tmp_path: Any) -> None:
    """TP 139, 148, 428: the widths read off the tensors rebuild the network."""
    torch.manual_seed(0)
    model, x = settle(Alone(family("partial"), 2)), inputs(3, 2)
    small = eslkit.shrink(model, width=0.25, example_inputs=x)
    torch.save(small.state_dict(), tmp_path / "small.pt")
    state = torch.load(tmp_path / "small.pt")
    graph = eslkit.trace(model, example_inputs=x)
    widths = {}
    for group in graph.resizable:
        span = next(s for s in group.spans if s.role == "producer")
        kept = state[span.parameter].shape[span.axis] / model.state_dict()[span.parameter].shape[0]
        widths[group.name] = round(group.width * kept)
    again = eslkit.resize(model, widths, init="first", example_inputs=x)
    again.load_state_dict(state)
    assert_same_model(again, small)


@pytest.mark.parametrize("width", [0.3, 0.6, 0.77])
def test_widths_are_rounded_and_counted(width: float) -> None:
    """TP 382, 149, 38; NNI 2225: what was asked is what is there."""
    model, x = settle(Alone(family("plain"), 2, width=20)), inputs(3, 2)
    small = eslkit.shrink(model, width=width, example_inputs=x)
    assert small.stem.out_channels == round(20 * width)
    assert run(small, x)[0].shape == run(model, x)[0].shape


def test_a_deep_network_is_traced_in_seconds() -> None:
    """TP 474, 527, 525, 43: a graph that takes hours, or recurses too far."""

    def use(m: Any, x: Tensor) -> Tensor:
        y = seen = m.stem(x)
        for block in m.blocks:
            seen = block(seen).relu() + y
        return m.head(seen)

    blocks = nn.ModuleList(conv(1, 4, 4) for _ in range(200))
    model = Written(use, stem=conv(1, 3, 4), blocks=blocks, head=conv(1, 4, 2))
    start = time.process_time()
    graph = eslkit.trace(model, example_inputs=torch.zeros(1, 3, 4))
    assert time.process_time() - start < 15
    assert graph.widths == {"stem": 4}
    assert len(graph.group("stem").producers) == 201


def test_nothing_is_skipped_in_silence() -> None:
    """TP 303, 505, 356: what keeps its width is told, with the reason."""

    def use(m: Any, x: Tensor) -> Tensor:
        return m.head(m.stem(x).reshape(x.shape[0], 8, 2, *x.shape[2:]).sum(2))

    model, x = Written(use, stem=conv(2, 3, 16), head=conv(2, 8, 2)), torch.zeros(1, 3, 8, 8)
    with pytest.warns(eslkit.ResizeWarning, match=r"1 of 1 .* keep their width: stem .*shape"):
        small = eslkit.shrink(model, example_inputs=x)
    assert small.stem.out_channels == 16
    with pytest.raises(ResizeError, match="A size is written into its code"):
        eslkit.resize(model, {"stem": 4}, init="first", example_inputs=x)


def looped(m: Any, x: Tensor) -> Tensor:
    for layer in m.layers[: max(1, x.shape[-1] // 4)]:
        x = layer(x) if x.dim() == 4 and len(m.layers) > 1 else x
    return m.head(x)


def unpacked(m: Any, x: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    y = m.layers[0](x)
    y = y.new_zeros(batch, y.size(1), height, width).copy_(y)
    return m.head(m.layers[1](y) if torch.is_grad_enabled() or True else y)


@pytest.mark.parametrize("use", [looped, unpacked])
def test_control_flow_that_symbolic_tracing_cannot_follow(use: Callable[..., Tensor]) -> None:
    """pytorch 54602, 70485; mmrazor 524, 585; ModelOpt 176, 506."""
    layers = nn.ModuleList([conv(2, 3, 16, 3), conv(2, 16, 16, 3)])
    halved(settle(Written(use, layers=layers, head=conv(2, 16, 2))), inputs(3, 2))


def test_a_residual_image_keeps_its_brightness() -> None:
    """TP 523: a restorer whose output is the input plus a correction keeps the input's part."""

    def use(m: Any, x: Tensor) -> Tensor:
        return x + m.body(x)

    body = nn.Sequential(
        conv(2, 3, 16, 3), nn.ReLU(), conv(2, 16, 16, 3), nn.ReLU(), conv(2, 16, 3)
    )
    model, x = settle(Written(use, body=body)), inputs(3, 2)
    small = halved(model, x, 0.35)
    with torch.no_grad():
        small.body[-1].weight.zero_()
        small.body[-1].bias.zero_()
    assert torch.equal(run(small, x)[0], x)


def groups_kept(m: nn.Module) -> tuple[int, int]:
    norm = next(layer for layer in m.modules() if isinstance(layer, nn.GroupNorm))
    return norm.num_groups, norm.num_channels


def test_what_a_group_norm_becomes() -> None:
    """TP 93; NNI PR 5069; mmrazor 78: groups stay while they divide, else they keep their size."""
    model, x = settle(Alone(family("group-norm"), 2)), inputs(3, 2)
    assert groups_kept(eslkit.shrink(model, example_inputs=x)) == (4, 8)
    lone = nn.Sequential(conv(2, 3, 12), nn.GroupNorm(6, 12), conv(2, 12, 2)).double()
    made = eslkit.resize(lone, {"0": 8}, init="first", example_inputs=x)
    assert groups_kept(made) == (4, 8)
    run(made, x)


def test_the_users_own_block_needs_no_registration() -> None:
    """Once-for-All 6, 13, 52; gan-compression 70: any module of one's own, in any place."""
    own = Family("own", lambda a, b, d: Written(lambda m, x: m.f(x).exp(), f=conv(d, a, b)))
    halved(settle(Alone(own, 2)), inputs(3, 2), 0.35)
