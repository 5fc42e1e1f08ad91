"""Channel groups of small networks, each with one thing that comparable libraries stumble over."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import eslkit
from eslkit.errors import InputError, ResizeError, TraceError
from eslkit.graph.channels import ChannelGraph
from tests.eslkit.networks import Form

X = torch.zeros(1, 3, 8, 8)


class Between(nn.Module):
    """Something between two convolutions that is written as a function."""

    def __init__(self, width: int, then: Callable[..., Tensor], back: int, **layers: nn.Module):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.then = then
        self.last = nn.Conv2d(back, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.then(self, self.first(x)))


def widths_of(model: nn.Module) -> dict[str, int]:
    return eslkit.trace(model, example_inputs=X).widths


def halved(model: nn.Module) -> nn.Module:
    """Halving runs, without a warning, and gives what was foretold."""
    small = eslkit.shrink(model, example_inputs=X)
    small(X).mean().backward()
    assert widths_of(small) == {name: width // 2 for name, width in widths_of(model).items()}
    return small


def test_a_pixel_shuffle_moves_four_channels_as_one() -> None:
    model = Between(16, lambda m, x: F.pixel_shuffle(x, 2), 4)
    graph = eslkit.trace(model, example_inputs=X)
    (span,) = [s for s in graph.group("first").spans if s.parameter == "first.weight"]
    assert graph.widths == {"first": 4}
    assert span.inner == 4
    assert halved(model).first.out_channels == 8


def test_a_channel_shuffle_keeps_the_same_channels_in_both_halves() -> None:
    def shuffle(m: nn.Module, x: Tensor) -> Tensor:
        return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)

    model = Between(8, shuffle, 8)
    small = eslkit.shrink(model, example_inputs=X)
    assert small.first.out_channels == small.last.in_channels == 4


@pytest.mark.parametrize(
    "gate",
    [
        lambda m, x: x.chunk(2, dim=1)[0] * x.chunk(2, dim=1)[1].sigmoid(),
        lambda m, x: F.glu(x, dim=1),
        lambda m, x: torch.mul(*x.split(x.shape[1] // 2, dim=1)),
    ],
    ids=["chunk", "glu", "split"],
)
def test_a_gated_unit_halves_both_halves(gate: Callable[..., Tensor]) -> None:
    small = halved(Between(8, gate, 4))
    assert small.first.out_channels == 4
    assert small.last.in_channels == 2


def test_a_split_at_a_number_in_the_code_is_kept_and_told() -> None:
    model = Between(8, lambda m, x: torch.mul(*x.split([4, 4], dim=1)), 4)
    with pytest.warns(eslkit.ResizeWarning, match=r"keep their width: first .*split"):
        small = eslkit.shrink(model, example_inputs=X)
    assert small.first.out_channels == 8


def test_depthwise_convolutions_follow_and_their_multiplier_stays() -> None:
    deep = nn.Conv2d(4, 8, 3, padding=1, groups=4)
    small = halved(Between(4, lambda m, x: m.deep(x), 8, deep=deep))
    assert (small.deep.in_channels, small.deep.out_channels, small.deep.groups) == (2, 4, 2)


@pytest.mark.parametrize("make", [nn.Conv2d, nn.ConvTranspose2d])
def test_grouped_convolutions_keep_the_number_of_groups(make: type[nn.Module]) -> None:
    layer = make(8, 12, 3, padding=1, groups=2)
    small = eslkit.shrink(Between(8, lambda m, x: m.mid(x), 12, mid=layer), example_inputs=X)
    assert (small.mid.in_channels, small.mid.out_channels, small.mid.groups) == (4, 6, 2)
    small(X)


def test_one_output_that_broadcasts_is_no_depthwise_convolution() -> None:
    mask = nn.Conv2d(8, 1, 3, padding=1)
    small = halved(Between(8, lambda m, x: x * m.mask(x).sigmoid(), 8, mask=mask))
    assert (small.mask.in_channels, small.mask.out_channels, small.mask.groups) == (4, 1, 1)


def test_attention_heads_become_narrower() -> None:
    def attend(m: nn.Module, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return m.mix(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)

    mix = nn.MultiheadAttention(8, 2, batch_first=True)
    model = Between(8, attend, 8, mix=mix)
    small = eslkit.shrink(model, example_inputs=X)
    assert (small.mix.embed_dim, small.mix.num_heads, small.mix.head_dim) == (4, 2, 2)
    assert eslkit.trace(model, example_inputs=X).group("first").width == 8


class Scaled(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_bare_parameters_are_resized() -> None:
    small = halved(Between(8, lambda m, x: m.bare(x), 8, bare=Scaled(8)))
    assert small.bare.scale.shape == (1, 4, 1, 1)


@pytest.mark.parametrize("parametrize", [weight_norm, spectral_norm])
def test_parametrized_weights_are_resized(parametrize: Callable[..., nn.Module]) -> None:
    mid = parametrize(nn.Conv2d(8, 8, 3, padding=1))
    model = Between(8, lambda m, x: m.mid(x), 8, mid=mid)
    small = eslkit.shrink(model, example_inputs=X)
    assert small.mid.weight.shape == (4, 4, 3, 3)
    assert set(small.state_dict()) == set(model.state_dict())


def test_a_module_used_twice_ties_its_input_to_its_output() -> None:
    tied = nn.Conv2d(8, 8, 3, padding=1)
    model = Between(8, lambda m, x: m.tied(m.tied(x)), 8, tied=tied)
    assert widths_of(model) == {"first": 8}
    assert halved(model).tied.weight.shape == (4, 4, 3, 3)


def test_tied_weights_stay_tied() -> None:
    model = Between(8, lambda m, x: m.b(m.a(x)), 8, a=nn.Conv2d(8, 8, 1), b=nn.Conv2d(8, 8, 1))
    model.b.weight = model.a.weight
    small = halved(model)
    assert small.a.weight is small.b.weight


def test_parameters_that_nothing_uses_are_protected_or_follow() -> None:
    dead = nn.Conv2d(8, 5, 1)
    model = Between(8, lambda m, x: x.relu(), 8, dead=dead)
    graph = eslkit.trace(model, example_inputs=X)
    assert graph.widths["first"] == 8
    small = eslkit.shrink(model, example_inputs=X)
    assert small.first.out_channels == 4
    small(X)


class ManyOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.heads = nn.ModuleList(nn.Conv2d(8, 2, 1) for _ in range(2))

    def forward(self, image: Tensor, *, scale: Tensor | None = None) -> dict[str, object]:
        x = self.stem(image)
        x = x if scale is None else x * scale
        return {"first": self.heads[0](x), "others": (self.heads[1](x), x.mean())}


def test_outputs_of_any_shape_and_inputs_by_keyword() -> None:
    model = ManyOutputs()
    inputs = {"image": X, "scale": torch.ones(1)}
    graph = eslkit.trace(model, example_inputs=inputs)
    assert graph.widths == {"stem": 8}
    assert graph.group("heads.0").protected == "the model's output"
    small = eslkit.shrink(model, example_inputs=inputs)
    assert small.stem.out_channels == 4


class Views(nn.Module):
    """Code that knows its own width."""

    def __init__(self, width: int, *, stored: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Conv2d(width, 3, 1)
        if stored:
            self.width = width

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        width = getattr(self, "width", 8)
        return self.head(x.reshape(x.shape[0], width, -1).reshape(x.shape[0], width, *x.shape[2:]))


def test_a_stored_width_is_adjusted() -> None:
    small = eslkit.shrink(Views(8, stored=True), example_inputs=X)
    assert small.width == small.stem.out_channels == 4
    small(X)


def test_a_width_written_into_the_code_is_kept_and_told() -> None:
    model = Views(8, stored=False)
    with pytest.warns(eslkit.ResizeWarning, match=r"1 of 1 channel groups keep.*stem"):
        small = eslkit.shrink(model, example_inputs=X)
    assert small.stem.out_channels == 8
    with pytest.raises(ResizeError, match="A size is written into its code"):
        eslkit.resize(model, {"stem": 4}, init="first", example_inputs=X)


def test_an_operation_without_a_rule_protects_what_it_touches_and_says_so() -> None:
    def determinant(m: nn.Module, x: Tensor) -> Tensor:
        return x * torch.linalg.det(x.flatten(2)[:, :, :8]).reshape(-1, 1, 1, 1)

    graph = eslkit.trace(Between(8, determinant, 8), example_inputs=X)
    assert graph.resizable == ()
    reason = graph.group("first").protected
    assert reason is not None
    assert "no rule for" in reason
    assert "test_graph.py" in reason
    assert "_linalg_det in the model" in reason


def residual() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 2, 1))


@pytest.mark.parametrize(
    "pattern, left", [("0", {"2": 6}), ("2", {"0": 8}), ("*", {}), ("2.weight", {"0": 8})]
)
def test_protect_keeps_what_a_layer_makes(pattern: str, left: dict[str, int]) -> None:
    graph = eslkit.trace(residual(), example_inputs=X, protect=(pattern,))
    assert graph.widths == left


def test_protect_says_what_it_did_not_find() -> None:
    with pytest.raises(InputError, match=r"'decoder\.\*' matches no layer"):
        eslkit.trace(residual(), example_inputs=X, protect=("decoder.*",))
    with pytest.raises(InputError, match="is a string; pass a sequence"):
        eslkit.trace(residual(), example_inputs=X, protect="0")


def test_explain_tells_what_is_coupled() -> None:
    graph: ChannelGraph = eslkit.trace(residual(), example_inputs=X)
    text = graph.explain("0")
    assert "8 channels at level 0" in text
    assert "produced by 0.weight, axis 0, positions 0 to 7" in text
    assert "carried by 0.bias" in text
    assert "consumed by 2.weight, axis 1" in text
    assert "protected: the model's output" in graph.explain("3")
    with pytest.raises(InputError, match="no channel group or layer 'nine'"):
        graph.explain("nine")


def test_the_graph_as_a_networkx_graph_and_as_text() -> None:
    graph = eslkit.trace(residual(), example_inputs=X)
    edges = {(a, b): (d["group"], d["width"]) for a, b, d in graph.to_networkx().edges(data=True)}
    assert edges == {("0", "2"): ("0", 8), ("2", "3"): ("2", 6)}
    text = str(graph)
    assert "2 groups can be resized" in text
    assert "the model's output" in text


def test_inputs_are_inferred_or_asked_for() -> None:
    assert eslkit.trace(residual()).widths == {"0": 8, "2": 6}
    with pytest.raises(TraceError, match=r"could not infer example inputs .*pass example_inputs"):
        eslkit.trace(nn.ReLU())
    with pytest.raises(InputError, match="example_inputs is a str"):
        eslkit.trace(residual(), example_inputs="image")
    with pytest.raises(TraceError, match=r"did not run on example inputs of shapes \[\(1, 4, 8, 8"):
        eslkit.trace(residual(), example_inputs=torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize(
    "widths, error, match",
    [
        ({"9": 2}, InputError, "no channel group '9'"),
        ({"0": 0}, InputError, "must be a positive integer"),
        ({"3": 4}, ResizeError, "cannot get 4: the model's output"),
    ],
)
def test_widths_that_cannot_be(widths: dict[str, int], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        eslkit.resize(residual(), widths, init="first", example_inputs=X)


def test_factors_that_cannot_be() -> None:
    with pytest.raises(InputError, match="use shrink to make a model smaller"):
        eslkit.expand(residual(), width=0.5, example_inputs=X)
    with pytest.raises(InputError, match="use expand to enlarge"):
        eslkit.shrink(residual(), width=2, example_inputs=X)
    with pytest.raises(InputError, match="use expand to insert levels"):
        eslkit.shrink(residual(), depth=1, example_inputs=X)
    with pytest.raises(InputError, match="'middle' is no policy; use one of first"):
        eslkit.shrink(residual(), init="middle", example_inputs=X)


def test_a_norm_says_which_totals_it_can_divide() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.Conv2d(8, 3, 1))
    with pytest.raises(
        ResizeError, match=r"cannot divide 7 channels \(0=7\) into 4 groups; .* are 6 and 8"
    ):
        eslkit.resize(model, {"0": 7}, init="first", example_inputs=X)


def test_channels_that_stand_last_for_a_while_are_no_positions() -> None:
    """A bottleneck of linear layers has the positions of the maps around it."""
    form = Form(
        dims=2,
        widths=(6, 3),
        skip="concat",
        norm="none",
        activation="relu",
        down="max",
        up="transposed",
        block="plain",
        bottleneck="linear",
        in_channels=3,
        out_channels=3,
        bias=True,
        seed=0,
    )
    deeper = eslkit.expand(
        form.build(), width=1, depth=1, init="first", example_inputs=form.inputs()
    )
    assert any("level" in name for name in deeper.state_dict())


class _PaddedToWindows(nn.Module):
    """Tokens padded by some of their own to a multiple of the window: by none, where they fit."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        missing = -y.shape[1] % 4
        return self.leave(torch.cat([y, y[:, y.shape[1] - missing :].flip(1)], dim=1))


@pytest.mark.parametrize("tokens", [8, 6])
def test_an_empty_tensor_in_a_concat_fixes_nothing(tokens: int) -> None:
    graph = eslkit.trace(_PaddedToWindows(), example_inputs=torch.zeros(1, tokens, 3))
    assert graph.widths == {"enter": 8}


class Hourglass(nn.Module):
    """One level down and up, with something at each of the two resolutions."""

    def __init__(self, fine: nn.Module, coarse: nn.Module) -> None:
        super().__init__()
        self.first, self.fine = nn.Conv2d(3, 8, 3, padding=1), fine
        self.down, self.coarse = nn.Conv2d(8, 16, 2, 2), coarse
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.fine(self.first(x))
        return self.last(torch.cat([self.up(self.coarse(self.down(skip))), skip], 1))


class TalkingHeads(nn.Module):
    """Attention whose heads exchange what they see, by one layer before and one behind softmax."""

    def __init__(self, width: int, exchange: Callable[[], nn.Module], *, last: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)
        self.before, self.behind = exchange(), exchange()
        self.last = last

    def exchanged(self, layer: nn.Module, seen: Tensor) -> Tensor:
        return layer(seen.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.last else layer(seen)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], 3, 2, -1, x.shape[2] * x.shape[3]).unbind(1)
        seen = self.exchanged(self.before, q.transpose(2, 3) @ k).softmax(-1)
        out = v @ self.exchanged(self.behind, seen).transpose(2, 3)
        return x + self.out(out.reshape(x.shape))


class AlongChannels(nn.Module):
    """Weighs channels by a kernel that slides along them, alone or beside one axis of positions."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.along = nn.Conv1d(1, 1, 3, padding=1) if dims == 1 else nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.along, nn.Conv1d):
            return x * self.along(x.mean((2, 3)).unsqueeze(1)).sigmoid().reshape(*x.shape[:2], 1, 1)
        return x * self.along(x.mean(3).unsqueeze(1)).sigmoid().reshape(*x.shape[:3], 1)


@pytest.mark.parametrize(
    "inside",
    [
        lambda width: TalkingHeads(width, lambda: nn.Linear(2, 2), last=True),
        lambda width: TalkingHeads(width, lambda: nn.Conv2d(2, 2, 1), last=False),
        lambda width: AlongChannels(1),
        lambda width: AlongChannels(2),
    ],
    ids=["heads-by-linear", "heads-by-convolution", "channels", "channels-and-rows"],
)
def test_levels_are_those_of_pictures(inside: Callable[[int], nn.Module]) -> None:
    """Neither all pairs of positions nor the channels count as positions."""
    graph = eslkit.trace(Hourglass(inside(8), inside(16)), example_inputs=X)
    levels = {name: graph.group(name).level for name in ("first", "down", "up", "last")}
    assert levels == {"first": 0, "down": 1, "up": 1, "last": 0}
    assert len(graph.levels) == 2
