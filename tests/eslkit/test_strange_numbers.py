"""Numbers that public networks keep, or make, and read where nobody looks for them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eslkit
from eslkit.errors import ResizeError
from eslkit.graph.trace import trace_fully
from eslkit.surgery.resize import prepare_resize


class TimedBlock(nn.Module):
    """A residual block that looks whether its width changes, as those of diffusion models do."""

    def __init__(self, inputs: int, outputs: int, times: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(times, outputs)
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        assert x.shape[1] == self.inputs
        y = torch.relu(self.conv(x)) + self.time(time)[:, :, None, None]
        return y + (self.shortcut(x) if x.shape[1] != self.outputs else x)


class Timed(nn.Module):
    """Blocks of them, whose widths are twice one another's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 2 * width, 4 * width, width]
        self.time, self.enter = nn.Linear(3, 4 * width), nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            TimedBlock(a, b, 4 * width) for a, b in itertools.pairwise(widths)
        )
        self.leave = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x, time = self.enter(x), torch.relu(self.time(time))
        for block in self.blocks:
            x = block(x, time)
        return self.leave(x)


@pytest.mark.parametrize("width", [4, 8])
def test_a_number_that_has_its_new_value_is_not_changed_again(width: int) -> None:
    """Twice a width is another one: a number set to its new value looks like an old one."""
    model, example = Timed(width), (torch.rand(1, 3, 7, 7), torch.rand(1, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error", eslkit.ResizeWarning)
        big = eslkit.expand(model, example_inputs=example)
    assert isinstance(big, Timed)
    for old, new in zip(model.blocks, big.blocks, strict=True):
        assert isinstance(old, TimedBlock)
        assert isinstance(new, TimedBlock)
        assert (new.inputs, new.outputs) == (2 * old.inputs, 2 * old.outputs)
    assert big(*example).shape == (1, 3, 7, 7)


class Repeating(nn.Module):
    """Its code calls an activation as often as there are eight channels."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()
        self.more, self.leave = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for _ in range(x.shape[1] // 8):
            x = self.act(x)
        return self.leave(self.act(self.more(x)))


def test_results_are_those_of_the_same_call_where_code_calls_more() -> None:
    model, x = Repeating(), torch.rand(1, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", eslkit.ResizeWarning)
        big = eslkit.expand(model, example_inputs=x)
    assert isinstance(big, Repeating)
    assert big.more.weight.shape == (24, 16, 3, 3)
    assert big(x).shape == model(x).shape


class PaddedConv(nn.Module):
    """A convolution that pads by numbers it keeps in buffers, as audio codecs do."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride)
        self.register_buffer("stride", torch.tensor(stride), persistent=False)
        self.register_buffer("total", torch.tensor(kernel - stride), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        frames = torch.ceil(x.shape[-1] / self.get_buffer("stride")).to(torch.int64)
        missing = frames * self.get_buffer("stride") - x.shape[-1] + self.get_buffer("total")
        return self.conv(F.pad(x, (0, int(missing))))


class Codec(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            PaddedConv(1, 8, 7, 1),
            nn.ELU(),
            PaddedConv(8, 16, 4, 2),
            nn.ELU(),
            nn.ConvTranspose1d(16, 8, 4, 2, 1),
            PaddedConv(8, 1, 7, 1),
        )


class Branching(nn.Module):
    """Scales what is not black, by a tensor and by a number."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.more = nn.Conv1d(1, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1)
        self.leave = nn.Conv1d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        if x.max() > 1e-6:
            x = self.more(x / x.max()) * x.shape[1] ** -0.5
        return self.leave(x / float(x.detach().sum(1).max()))


@pytest.mark.parametrize("make", [Codec, Branching])
def test_code_that_looks_at_values_is_run_on_values(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make().double(), torch.rand(1, 1, 64, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", eslkit.ResizeWarning)
        big = eslkit.expand(model, init="first", example_inputs=x)
        small = eslkit.shrink(model, example_inputs=x)
        back = eslkit.shrink(big, example_inputs=x)
        steps = eslkit.schedule(model, depth=0, example_inputs=x).steps
    assert len(steps) > 1
    assert count(small) < count(model) < count(big)
    assert big(x).shape == small(x).shape == model(x).shape
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in back.state_dict().items())


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_numbers_read_off_values_are_not_taken_for_numbers_of_the_width() -> None:
    torch.manual_seed(0)
    model, x = Branching().double(), torch.rand(1, 1, 64, dtype=torch.float64)
    traced = trace_fully(model, example_inputs=x)
    numbers = prepare_resize(model, traced, {"enter": 12, "more": 12}).numbers
    assert {note for notes in numbers.groups.values() for note in notes} == {
        "a number that depends on the width, mul in the model"
    }


class Chancy(nn.Module):
    """Its code does something else from the second run on."""

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv1d(1, 8, 3), nn.Conv1d(8, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        type(self).runs += 1
        x = self.enter(x)
        return self.leave(x if self.runs == 1 else x[:, :-1])


def test_where_the_code_takes_another_way_at_the_same_widths_the_message_says_so() -> None:
    with pytest.raises(ResizeError, match="takes another way through its code"):
        eslkit.expand(Chancy(), example_inputs=torch.rand(1, 1, 64))


class Styled(nn.Module):
    """A norm that is given its scale from outside, and keeps how many numbers that takes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.scale: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.scale is not None
        return F.instance_norm(x) * self.scale[:, :, None, None]


class Handing(nn.Module):
    """Hands slices of one vector to norms by the numbers that they keep, as AdaIN's users do."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.more = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.first, self.second = Styled(8), Styled(16)
        self.style, self.leave = nn.Linear(4, 24), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scales = self.style(style)
        for part in (self.first, self.second):
            part.scale = scales[:, : part.channels]
            scales = scales[:, part.channels :]
        x = torch.relu(self.first(self.enter(x)))
        return self.leave(torch.relu(self.second(self.more(x))))


def test_numbers_that_another_module_reads_go_along() -> None:
    model, example = Handing(), (torch.rand(2, 3, 8, 8), torch.rand(2, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error", eslkit.ResizeWarning)
        big = eslkit.expand(model, example_inputs=example)
        one = eslkit.resize(model, {"style[0]": 12}, init="first", example_inputs=example)
        made = eslkit.schedule(model, depth=0, example_inputs=example)
    for new, widths in ((big, (16, 32)), (one, (12, 16))):
        assert isinstance(new, Handing)
        assert (new.first.channels, new.second.channels) == widths
        assert new.style.out_features == sum(widths)
        assert new(*example).shape == (2, 3, 8, 8)
    assert len(made.steps) > 1
    back = made.run(lambda network, step: {"runs": 1.0}).model
    assert isinstance(back, Handing)
    assert (back.first.channels, back.second.channels) == (8, 16)


class Folded(nn.Module):
    """A convolution that keeps its weight folded, and both its numbers of channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.weight = nn.Parameter(torch.rand(outputs, inputs, 9))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.reshape(self.outputs, self.inputs, 3, 3)
        return F.conv2d(x, weight, padding=1)


class Joining(nn.Module):
    """The second convolution gets the image too: its numbers are equal, and do not stay so."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.more, self.leave = Folded(3, 13), Folded(16, 16), Folded(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.relu(self.more(torch.cat([x, self.enter(x)], 1))))


def test_equal_numbers_of_one_module_go_apart() -> None:
    model, x = Joining(), torch.rand(1, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", eslkit.ResizeWarning)
        big = eslkit.expand(model, init="first", example_inputs=x)
        back = eslkit.shrink(big, example_inputs=x)
    assert isinstance(big, Joining)
    assert (big.more.inputs, big.more.outputs) == (29, 32)
    assert big(x).shape == model(x).shape
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in back.state_dict().items())


class Normalising(nn.Module):
    """Asks whether a constant that it makes from Python numbers is zero, as torchvision does."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        mean, std = (
            torch.as_tensor([value] * 3, dtype=x.dtype, device=x.device) for value in (0.5, 0.2)
        )
        std[0] += 0.1
        if (std == 0).any():
            raise ValueError("the standard deviation is zero")
        if torch.equal(std, mean) or std[0].item() < 0.25:
            return x
        x = (x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        return self.leave(torch.relu(self.enter(x)))


def test_questions_asked_of_constants_need_no_real_weights() -> None:
    model, x = Normalising(), torch.rand(1, 3, 8, 8)
    assert trace_fully(model, example_inputs=x).exported.runner.kind == "fake"
    with warnings.catch_warnings():
        warnings.simplefilter("error", eslkit.ResizeWarning)
        big = eslkit.expand(model, init="preserve", example_inputs=x)
    torch.testing.assert_close(big(x), model(x))
    assert isinstance(big, Normalising)
    assert big.enter.out_channels == 16


class Shadowing(nn.Module):
    """Lists of its own under the names of methods, as ESPNet's `modules`."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.more = nn.Conv2d(3, 8, 2, stride=2), nn.Conv2d(8, 8, 3, padding=1)
        self.leave = nn.ConvTranspose2d(8, 3, 2, stride=2)
        vars(self).update(modules=[self.enter, self.more], buffers=8)

    def forward(self, x: Tensor) -> Tensor:
        for layer in vars(self)["modules"]:
            x = torch.relu(layer(x))
        return self.leave(x)


def test_attributes_may_have_the_names_of_methods() -> None:
    model, x = Shadowing(), torch.rand(1, 3, 8, 8)
    big = eslkit.expand(model, depth=1, example_inputs=x)
    assert isinstance(big, Shadowing)
    assert big.more.weight.shape == (16, 16, 3, 3)
    made = eslkit.schedule(model, example_inputs=x)
    back = made.run(lambda network, step: {"size": float(network(x).numel())}).model
    assert {k: v.shape for k, v in back.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    assert eslkit.cost(model, example_inputs=x).parameters == 8 * 13 + 8 * 73 + 99


class Residual(nn.Module):
    """All its channels are the input's, by sums with it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.interpolate(torch.relu(self.first(F.avg_pool2d(x, 2))), scale_factor=2.0)
        return x + torch.relu(self.second(x))


@pytest.mark.parametrize("at", [None, "first"])
def test_where_nothing_gets_wider_a_warning_says_why(at: str | None) -> None:
    """Also where a level is inserted, whose own channels get wider."""
    model, x = Residual(), torch.rand(1, 8, 8, 8)
    with pytest.warns(eslkit.ResizeWarning, match=r"wider by width=2: .* \(the model's"):
        big = eslkit.expand(model, depth=0 if at is None else 1, at=at, example_inputs=x)
    assert big(x).shape == x.shape


def test_a_plan_does_not_claim_a_width_that_only_its_level_has() -> None:
    model, x = Residual(), torch.rand(1, 8, 8, 8)
    with pytest.warns(eslkit.ResizeWarning, match="no channel group of Residual gets wider"):
        made = eslkit.schedule(model, depth=1, at="first", example_inputs=x)
    assert made.steps[0].width == 1
    assert "as wide" not in str(made)
    assert "1 level deeper" in str(made)
    back = made.run(lambda network, step: {"size": float(network(x).numel())}).model
    assert back.state_dict().keys() == model.state_dict().keys()


class Routed(nn.Module):
    """Takes the better of two layers in eval mode, both in train mode: a mixture of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 8, 3, padding=1)
        self.experts = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.gate = nn.Linear(8, 2)
        self.leave = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        weights = self.gate(x.mean((2, 3))).softmax(-1)
        if self.training:
            each = zip(weights.T, self.experts, strict=True)
            x = sum(w[:, None, None, None] * expert(x) for w, expert in each)
        else:
            x = self.experts[int(weights.sum(0).argmax())](x)
        return self.leave(x)


def test_code_that_looks_at_values_in_eval_mode_alone_is_planned() -> None:
    model = Routed()
    made = eslkit.schedule(model, depth=0, granularity=1, example_inputs=torch.rand(1, 1, 8, 8))
    assert len(made.steps) > 2
    assert made.steps[0].macs > made.steps[-1].macs == made.plan.base_macs
    back = made.run(lambda network, step: {"layers": float(len(list(network.children())))}).model
    assert {k: v.shape for k, v in back.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


class Alternating(nn.Module):
    """Attention whose q, k and v alternate along the channels, beside code that looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 1)
        self.qkv = nn.Conv2d(8, 24, 1)
        self.leave = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        if y.abs().max() > 1e-12:
            y = y + 1
        q, k, v = self.qkv(y).reshape(y.shape[0], -1, 3, y.shape[2] * y.shape[3]).unbind(2)
        seen = (q.mT @ k).softmax(-1)
        return self.leave((v @ seen.mT).reshape(y.shape[0], -1, *y.shape[2:]))


def test_values_of_channels_that_alternate_are_kept() -> None:
    model, x = Alternating(), torch.rand(1, 3, 4, 4)
    assert trace_fully(model, example_inputs=x).exported.runner.kind == "real"
    with warnings.catch_warnings():
        warnings.simplefilter("error", eslkit.ResizeWarning)
        big = eslkit.expand(model, init="first", example_inputs=x)
        back = eslkit.shrink(big, example_inputs=x)
    assert big.qkv.weight.shape == (48, 16, 1, 1)
    assert torch.equal(back.qkv.weight, model.qkv.weight)
