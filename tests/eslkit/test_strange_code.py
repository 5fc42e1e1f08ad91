"""Forms of code that public networks are written in, each in a network of its own."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eslkit
from tests.tolerances import MASKED


class Network(nn.Module):
    """Two convolutions, the middle that is tried, one convolution more."""

    def __init__(self, width: int = 16, inputs: int = 3) -> None:
        super().__init__()
        self.enter = nn.Conv2d(inputs, width, 3, padding=1)
        self.more = nn.Conv2d(width, width, 3, padding=1)
        self.leave = nn.Conv2d(self.last(width), 2, 1)

    def last(self, width: int) -> int:
        """Channels that the middle hands on."""
        return width

    def middle(self, x: Tensor, image: Tensor) -> Tensor:
        """What is tried; x is (batch, width, height, width)."""
        return x

    def forward(self, image: Tensor) -> Tensor:
        """(batch, inputs, 8, 8) -> (batch, 2, 8, 8)."""
        return self.leave(self.middle(torch.relu(self.enter(image)), image))


class SummedHalves(Network):
    """Channels summed in two halves that are stacked first, as LocalNet does."""

    def last(self, width: int) -> int:
        return width // 2

    def middle(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.more(x)
        return torch.stack(x.split(x.shape[1] // 2, dim=1), dim=-1).sum(dim=-1)


class Interleaved(Network):
    """Two maps whose channels alternate."""

    def last(self, width: int) -> int:
        return 2 * width

    def middle(self, x: Tensor, image: Tensor) -> Tensor:
        return torch.stack([x, self.more(x)], dim=2).flatten(1, 2)


class PaddedShortcut(Network):
    """A shortcut whose missing channels are zeros before and behind, as in early ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Conv2d(16, 32, 3, padding=1)
        self.leave = nn.Conv2d(32, 2, 1)

    def middle(self, x: Tensor, image: Tensor) -> Tensor:
        wide = self.more(x)
        missing = wide.shape[1] - x.shape[1]
        return wide + F.pad(x, (0, 0, 0, 0, missing // 2, missing - missing // 2))


class PaddedByNumbers(PaddedShortcut):
    """The same with the numbers of missing channels written down, as HighResNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.missing = (0, 0, 0, 0, 8, 8)

    def middle(self, x: Tensor, image: Tensor) -> Tensor:
        return self.more(x) + F.pad(x, self.missing)


class Remembered(Network):
    """A state that starts as zeros beside the input, as a convolutional LSTM's does."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Conv2d(32, 16, 3, padding=1)

    def middle(self, x: Tensor, image: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], self.more.out_channels, *x.shape[2:])
        for _ in range(2):
            state = torch.tanh(self.more(torch.cat([x, state], dim=1)))
        return state


class Weighed(Remembered):
    """The same, where each image weighs its state first, as MAU does."""

    def middle(self, x: Tensor, image: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], x.shape[1], *x.shape[2:], dtype=x.dtype)
        for _ in range(2):
            weight = (state * x).sum((1, 2, 3)).sigmoid()
            state = torch.tanh(self.more(torch.cat([x, state * weight[:, None, None, None]], 1)))
        return state


class Normalised(Network):
    """RMS norm by `F.normalize`, with a gain for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(1, 16, 1, 1))

    def middle(self, x: Tensor, image: Tensor) -> Tensor:
        return self.more(F.normalize(x, dim=1) * self.gain * math.sqrt(x.shape[1]))


class RepeatedInput(Network):
    """The grey input is repeated for every channel and added, as VNet does."""

    def __init__(self) -> None:
        super().__init__(inputs=1)

    def middle(self, x: Tensor, image: Tensor) -> Tensor:
        return self.more(x) + image.repeat(1, x.shape[1], 1, 1)


class Shuffled(Network):
    """torch's own channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.shuffle = nn.ChannelShuffle(4)

    def middle(self, x: Tensor, image: Tensor) -> Tensor:
        return self.more(self.shuffle(x))


class PooledOnce(Network):
    """A global pooling, which tells torch again how its result lies in memory."""

    def middle(self, x: Tensor, image: Tensor) -> Tensor:
        return x + F.interpolate(F.adaptive_avg_pool2d(self.more(x), 1), size=x.shape[2:])


class Remembering(Network):
    """Attention over positions and over learnt keys and values, as lucidrains' U-Nets have."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Conv2d(16, 48, 1, bias=False)
        self.memory = nn.Parameter(torch.randn(2, 2, 8, 3))  # keys and values, head, channel, token

    def last(self, width: int) -> int:
        return width

    def middle(self, x: Tensor, image: Tensor) -> Tensor:
        q, k, v = (t.unflatten(1, (2, -1)).flatten(3) for t in self.more(x).chunk(3, dim=1))
        k, v = (
            torch.cat([m.expand(x.shape[0], -1, -1, -1), t], -1)
            for m, t in zip(self.memory, (k, v), strict=True)
        )
        weights = torch.einsum("bhcn,bhcm->bhnm", q * 8**-0.5, k).softmax(-1)
        return torch.einsum("bhnm,bhcm->bhcn", weights, v).flatten(1, 2).unflatten(2, x.shape[2:])


class Recurrent(Network):
    """An LSTM in both directions over the positions, as Demucs has in its middle."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(16, 16, bidirectional=True, batch_first=True)
        self.more = nn.Conv2d(32, 16, 1)

    def middle(self, x: Tensor, image: Tensor) -> Tensor:
        found, _ = self.memory(x.flatten(2).transpose(1, 2))
        return self.more(found.transpose(1, 2).unflatten(2, x.shape[2:]))


class Blurred(Network):
    """One fixed filter, repeated for every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.rand(1, 1, 3, 3))

    def middle(self, x: Tensor, image: Tensor) -> Tensor:
        kernel = self.kernel.repeat(x.shape[1], 1, 1, 1)
        return self.more(F.conv2d(x, kernel, padding=1, groups=x.shape[1]))


class Pairwise(Network):
    """Each output sums a group of two inputs; transposed, too."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Conv2d(16, 16, 3, padding=1)
        self.pairs = nn.Conv2d(32, 16, 1, groups=16)
        self.back = nn.ConvTranspose2d(32, 16, 1, groups=16)

    def middle(self, x: Tensor, image: Tensor) -> Tensor:
        x = self.pairs(torch.stack([x, self.more(x)], dim=2).flatten(1, 2))
        return self.back(torch.stack([x, self.more(x)], dim=2).flatten(1, 2))


class Diagonal(Network):
    """A blur as a full convolution whose weight is zero between channels, as in diffusers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.rand(3, 3))

    def middle(self, x: Tensor, image: Tensor) -> Tensor:
        weight = x.new_zeros([x.shape[1], x.shape[1], 3, 3])
        channels = torch.arange(x.shape[1], device=x.device)
        weight[channels, channels] = self.kernel[None, :].expand(x.shape[1], -1, -1)
        return self.more(F.conv2d(x, weight, padding=1))


class DiagonalByOne(Diagonal):
    """The same with one kernel for all channels, as k-diffusion's samplings."""

    def middle(self, x: Tensor, image: Tensor) -> Tensor:
        weight = x.new_zeros([x.shape[1], x.shape[1], 3, 3])
        channels = torch.arange(x.shape[1], device=x.device)
        weight[channels, channels] = self.kernel
        return self.more(F.conv2d(x, weight, padding=1))


NETWORKS: list[Callable[[], Network]] = [
    SummedHalves,
    Interleaved,
    PaddedShortcut,
    PaddedByNumbers,
    Remembered,
    Weighed,
    Normalised,
    RepeatedInput,
    Shuffled,
    PooledOnce,
    Remembering,
    Recurrent,
    Diagonal,
    DiagonalByOne,
    Blurred,
    Pairwise,
]


def built(make: Callable[[], Network]) -> tuple[Network, Tensor]:
    """The network in float64, and an image for it."""
    torch.manual_seed(0)
    model = make().to(torch.float64).eval()
    return model, torch.rand(1, model.enter.in_channels, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("make", NETWORKS)
def test_it_is_halved_and_comes_back(make: Callable[[], Network]) -> None:
    model, image = built(make)
    with warnings.catch_warnings():
        warnings.simplefilter("error", eslkit.ResizeWarning)
        small = eslkit.shrink(model, example_inputs=image)
        wide = eslkit.expand(model, init="first", example_inputs=image)
        back = eslkit.shrink(wide, example_inputs=image)
    assert small.enter.out_channels == 8
    assert small.more.in_channels == model.more.in_channels // 2
    assert small.more.out_channels == model.more.out_channels // 2
    assert small(image).shape == model(image).shape
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in back.state_dict().items())


@pytest.mark.parametrize("granularity", ["fine", 1])
@pytest.mark.parametrize("make", NETWORKS)
def test_its_schedule_leads_back(make: Callable[[], Network], granularity: str | int) -> None:
    """Step by step, with the numbers that the model's own code keeps."""
    model, image = built(make)
    made = eslkit.schedule(model, depth=0, granularity=granularity, example_inputs=image)
    before = copy.deepcopy(model)
    seen: list[int] = []

    def fit(network: nn.Module, step: eslkit.StepContext) -> dict[str, float]:
        assert network(image).shape == model(image).shape
        seen.append(sum(p.numel() for p in network.parameters()))
        return {}

    back = made.run(fit).model
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == len(seen) > 1
    for old, new in zip(before.modules(), back.modules(), strict=True):
        numbers = (v for v in vars(old).items() if not v[0].startswith("_"))
        plain = {k: v for k, v in numbers if isinstance(v, (int, tuple, list))}
        assert plain == {key: vars(new)[key] for key in plain}
    assert {k: v.shape for k, v in back.state_dict().items()} == {
        k: v.shape for k, v in before.state_dict().items()
    }


@pytest.mark.parametrize("make", NETWORKS)
def test_narrowed_equals_masked_where_nothing_mixes(make: Callable[[], Network]) -> None:
    model, image = built(make)
    graph = eslkit.trace(model, example_inputs=image)
    mixed = any(group.mixed for group in graph.resizable)
    assert mixed == (make in (Weighed, Normalised, Remembering))
    if mixed:
        return
    widths = {name: width // 2 for name, width in graph.widths.items()}
    small = eslkit.resize(model, widths, init="first", example_inputs=image)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for group in graph.resizable:
            for span in group.spans:
                if span.role == "consumer":
                    gone = span.positions(group.width)[widths[group.name] :].ravel()
                    parameters[span.parameter].index_fill_(span.axis, torch.from_numpy(gone), 0)
        MASKED.check(small(image), model(image))


def test_numbers_that_count_the_channels_are_told() -> None:
    class Waves(Network):
        """Waves of one length for each channel, made for as many as there are."""

        def middle(self, x: Tensor, image: Tensor) -> Tensor:
            lengths = torch.arange(x.shape[1], dtype=x.dtype) + 1
            return x + torch.sin(lengths)[:, None, None]

    model, image = built(Waves)
    graph = eslkit.trace(model, example_inputs=image)
    assert any("counts them" in text for text in graph.group("enter").mixed)


class Averaging(nn.Module):
    """A batch norm of its own, which writes its running mean in one of several ways."""

    def __init__(self, channels: int, way: str) -> None:
        super().__init__()
        self.way = way
        self.weight = nn.Parameter(torch.rand(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.mean: Tensor

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((0, 2, 3)) if self.training else self.mean
        if self.training:
            with torch.no_grad():
                self.write(mean)
        return (x - mean[:, None, None]) * self.weight[:, None, None]

    def write(self, mean: Tensor) -> None:
        if self.way == "lerp":
            self.mean.lerp_(mean, 0.1)
        elif self.way == "in two":
            self.mean.mul_(0.9).add_(mean, alpha=0.1)
        elif self.way == "assigned":
            self.mean = 0.9 * self.mean + 0.1 * mean
        elif self.way == "data":
            self.mean.data.copy_(mean)
        else:
            self.mean[:] = mean


@pytest.mark.parametrize("way", ["lerp", "in two", "assigned", "data", "slice"])
@pytest.mark.parametrize("training", [True, False])
def test_statistics_that_are_only_written_go_along(way: str, training: bool) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), Averaging(8, way), nn.ReLU(), nn.Conv2d(8, 1, 3))
    model[1].get_buffer("mean").copy_(torch.arange(8.0))
    x = torch.rand(2, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", eslkit.ResizeWarning)
        big = eslkit.expand(model.train(training), init="first", example_inputs=x)
        back = eslkit.shrink(big, example_inputs=x)
    assert torch.equal(model[1].get_buffer("mean"), torch.arange(8.0)), "the model was touched"
    assert big[1].get_buffer("mean").shape == (16,)
    assert torch.equal(back[1].get_buffer("mean"), torch.arange(8.0))
    assert big.train()(x).shape == (2, 1, 4, 4)
    assert big.eval()(x).shape == (2, 1, 4, 4)


def test_what_is_repeated_to_the_channels_and_laid_out_goes_along() -> None:
    """As the scan of state-space models: one state for all channels of a group."""

    class Scanned(Network):
        def middle(self, x: Tensor, image: Tensor) -> Tensor:
            state = self.more(x)[:, None, None]
            repeats = x.shape[1] // state.shape[1]
            state = state.expand(-1, -1, repeats, -1, -1, -1).flatten(1, 2)
            return (x[:, :, None] * state).mean(2)

    model, image = built(Scanned)
    assert eslkit.trace(model, example_inputs=image).widths == {"enter": 16, "more": 16}
    with warnings.catch_warnings():
        warnings.simplefilter("error", eslkit.ResizeWarning)
        wide = eslkit.resize(model, {"enter": 24, "more": 12}, init="first", example_inputs=image)
    assert wide.more.weight.shape == (12, 24, 3, 3)
    assert wide(image).shape == model(image).shape


def test_a_cut_that_does_not_divide_says_where_it_is() -> None:
    """As EdgeNeXt: 16 channels in parts of 6, 6 and 4 would be 11, 11 and 10 of 32."""

    class Uneven(Network):
        def middle(self, x: Tensor, image: Tensor) -> Tensor:
            first, second, rest = self.more(x).chunk(3, dim=1)
            return torch.cat([first, first + second, rest], dim=1)

    model, image = built(Uneven)
    graph = eslkit.trace(model, example_inputs=image)
    assert graph.widths == {"enter": 16}
    for name in ("more[0]", "more[1]"):
        reason = graph.group(name).protected or ""
        assert (
            ".chunk(3, dim=1)` gives a tensor of shape (1, 11, 8, 8), not (1, 12, 8, 8)" in reason
        )
