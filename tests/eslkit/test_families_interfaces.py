"""Networks that take and give more than one tensor, and whose code decides while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eslkit
from eslkit.graph.channels import ChannelGraph
from tests.eslkit.families.family import conv, inputs, settle
from tests.eslkit.families.laws import (
    assert_partition,
    assert_same_model,
    masked,
    plain_groups,
    run,
    size_of,
)
from tests.tolerances import MASKED, PRESERVED

X = inputs(3, 2)


class Net(nn.Module):
    """Layers by name, and a forward of any form."""

    def __init__(self, use: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.use = use
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args: Any, **keywords: Any) -> Any:
        return self.use(self, *args, **keywords)


@dataclass
class Result:
    image: Tensor
    features: list[Tensor]
    loss: float = 0.0


class Pair(NamedTuple):
    image: Tensor
    mask: Tensor | None


class Plain:
    """An object of a user's own."""

    def __init__(self, image: Tensor) -> None:
        self.image = image


def layers(**more: nn.Module) -> dict[str, nn.Module]:
    made = {"stem": conv(2, 3, 16, 3), "mid": conv(2, 16, 32, 3), "head": conv(2, 32, 2)}
    return made | more


def body(m: Any, x: Tensor) -> Tensor:
    return m.head(m.mid(m.stem(x).relu()).relu())


def several_inputs(m: Any, image: Tensor, hint: Tensor, scale: float = 1.0) -> Tensor:
    return m.head(m.mid(m.stem(image) + scale * m.other(hint)))


def by_name(m: Any, *, batch: dict[str, Tensor], mode: str = "a", last: None = None) -> Tensor:
    return body(m, batch["image"] if mode == "a" else batch["other"])


def as_tuple(m: Any, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    y = m.stem(x)
    return body(m, x), (m.aux(y).mean((2, 3)), m.other(x))


def as_dict(m: Any, x: Tensor) -> dict[str, Any]:
    return {"out": body(m, x), "aux": {"low": m.other(x)}, "name": "mine", "none": None}


def as_dataclass(m: Any, x: Tensor) -> Result:
    return Result(body(m, x), [m.other(x), m.other(2 * x)])


def deep_supervision(m: Any, x: Tensor) -> list[Tensor]:
    y = m.stem(x)
    z = m.mid(y)
    return [m.head(z), F.interpolate(m.aux(y), scale_factor=2)]


def only_in_training(m: Any, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    y = m.stem(x)
    out = m.head(m.mid(y))
    return (out, m.aux(y)) if m.training else out


def by_shape(m: Any, x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    padded = F.pad(x, [0, -width % 16, 0, -height % 16], mode="constant")
    y = m.stem(padded)
    while y.shape[-1] > 4:
        y = F.avg_pool2d(m.again(y), 2)
    y = F.interpolate(y, size=padded.shape[-2:])
    return m.head(m.mid(y))[..., :height, :width]


def by_value(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x)
    if y.abs().mean() > 1e9:
        y = y * 0.5
    return m.head(m.mid(y / float(x.abs().max())))


def caught(m: Any, x: Tensor) -> Tensor:
    assert not torch.isnan(x).any()
    return body(m, x)


def counted(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    m.last = m.stem(x)
    m.seen.add_(1)
    return body(m, x)


def under_autocast(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        y = m.stem(x)
    return m.head(m.mid(y))


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


def own_function(m: Any, x: Tensor) -> Tensor:
    return m.head(m.mid(Double.apply(m.stem(x))))


def checked_width(m: Any, x: Tensor) -> Tensor:
    y = m.stem(x)
    if y.shape[1] != m.width:
        raise ValueError(f"expected {m.width} channels")
    return m.head(m.mid(y))


def input_repeated(m: Any, x: Tensor) -> Tensor:
    """The input is repeated along the channels and added (a long skip of some super-resolvers)."""
    y = m.stem(x)
    return m.head(m.mid(y)) + x[:, :2] + x.mean(1, keepdim=True)


def input_joined(m: Any, x: Tensor) -> Tensor:
    """The image itself beside features, at two places."""
    y = torch.cat([x, m.stem(x)], 1)
    return m.head(m.mid(torch.cat([m.joined(y), x], 1)))


CASES: dict[str, tuple[Callable[..., Any], dict[str, Any], Any]] = {
    "several inputs": (several_inputs, {"other": conv(2, 1, 16)}, (X, X[:, :1], 0.5)),
    "inputs by name": (by_name, {}, {"batch": {"image": X, "other": X}, "mode": "a"}),
    "tuple": (as_tuple, {"other": conv(2, 3, 4), "aux": conv(2, 16, 2)}, X),
    "dict": (as_dict, {"other": conv(2, 3, 4)}, X),
    "dataclass": (as_dataclass, {"other": conv(2, 3, 4)}, X),
    "named tuple": (lambda m, x: Pair(body(m, x), None), {}, X),
    "object": (lambda m, x: Plain(body(m, x)), {}, X),
    "deep supervision": (deep_supervision, {"aux": conv(2, 16, 2)}, X),
    "only in training": (only_in_training, {"aux": conv(2, 16, 2)}, X),
    "control flow on shapes": (by_shape, {"again": conv(2, 16, 16, 3)}, inputs(3, 2, size=10)),
    "control flow on values": (by_value, {}, X),
    "an assertion on values": (caught, {}, X),
    "state on the module": (counted, {"calls": 0, "last": None, "seen": None}, X),
    "autocast and no_grad": (under_autocast, {}, X),
    "a function of autograd": (own_function, {}, X),
    "a width that is checked": (checked_width, {"width": 16}, X),
    "the input added": (input_repeated, {}, X),
    "the input joined": (input_joined, {"joined": conv(2, 19, 13, 3)}, X),
}


def build(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any], ChannelGraph]:
    use, more, example = CASES[name]
    torch.manual_seed(0)
    held = {key: value for key, value in more.items() if key != "seen"}
    model = Net(use, **layers(**held))
    if "seen" in more:
        del model.last
        model.last = None
        model.register_buffer("seen", torch.zeros(1))
    settle(model)
    if isinstance(example, dict):
        return model, (), example, eslkit.trace(model, example_inputs=example)
    args = example if isinstance(example, tuple) else (example,)
    return model, args, {}, eslkit.trace(model, example_inputs=args)


@pytest.mark.parametrize("name", CASES)
def test_halved_and_back(name: str) -> None:
    model, args, keywords, graph = build(name)
    example = keywords or args
    assert_partition(model, graph)
    assert graph.widths["stem"] == 16
    want = run(model, *args, **keywords)
    small = eslkit.shrink(model, example_inputs=example)
    assert size_of(small) <= 0.45 * size_of(model)
    made = run(small, *args, **keywords)
    assert [t.shape for t in made] == [t.shape for t in want] or name == "state on the module"
    big = eslkit.expand(model, init="first", example_inputs=example)
    back = eslkit.shrink(big, init="first", example_inputs=example)
    if name != "state on the module":
        assert_same_model(back, model)
    assert all(map(torch.equal, run(back, *args, **keywords), want))


@pytest.mark.parametrize("name", CASES)
def test_narrowed_equals_masked_and_wide_equals_before(name: str) -> None:
    model, args, keywords, graph = build(name)
    example = keywords or args
    halves = {n: graph.group(n).width // 2 for n in plain_groups(graph)}
    assert "stem" in halves or "mean" in graph.group("stem").mixed[0]  # a condition reads them
    narrow = eslkit.resize(model, halves, init="first", example_inputs=example)
    hidden = masked(model, graph, halves)
    for made, want in zip(
        run(narrow, *args, **keywords), run(hidden, *args, **keywords), strict=True
    ):
        if made.shape == want.shape:  # features that are given out have fewer channels
            MASKED.check(made, want)
    doubles = {n: 2 * graph.group(n).width for n in plain_groups(graph)}
    wide = eslkit.resize(model, doubles, init="preserve", example_inputs=example)
    for made, want in zip(run(wide, *args, **keywords), run(model, *args, **keywords), strict=True):
        PRESERVED.check(made, want)
