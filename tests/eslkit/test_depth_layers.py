"""Layers that keep their shape, taken out: the keys are those of the smaller model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eslkit.errors import DepthError, InputError
from eslkit.surgery.layers import layers_towards, removable_layers, remove_layers

PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
MANY = settings(max_examples=10, phases=PHASES)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.norm(self.conv1(x))))


class Net(nn.Module):
    """An hourglass with stages of residual blocks, in a ModuleList or a Sequential."""

    def __init__(self, blocks: tuple[int, int, int], *, width: int = 3, kind: Any = nn.Sequential):
        super().__init__()
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        stages = [
            [Residual(width * k) for _ in range(n)] for n, k in zip(blocks, (1, 2, 1), strict=True)
        ]
        self.outer, self.inner, self.last = (
            nn.Sequential(*s) if kind is nn.Sequential else kind(s) for s in stages
        )
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.leave = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.enter(x)
        for block in self.outer:
            skip = block(skip)
        low = self.down(skip)
        for block in self.inner:
            low = block(low)
        x = self.up(low) + skip
        for block in self.last:
            x = block(x)
        return self.leave(x)


X = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def reference(model: Net, x: Tensor, kept: list[set[str]]) -> Tensor:
    """The network written out by hand, with only these blocks of each stage."""
    model.eval()
    skip = model.enter(x)
    for name, block in model.outer.named_children():
        skip = block(skip) if name in kept[0] else skip
    low = model.down(skip)
    for name, block in model.inner.named_children():
        low = block(low) if name in kept[1] else low
    x = model.up(low) + skip
    for name, block in model.last.named_children():
        x = block(x) if name in kept[2] else x
    return model.leave(x)


counts = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))


@MANY
@given(counts, st.data(), st.sampled_from((nn.Sequential, nn.ModuleList)))
def test_any_choice_of_blocks_gives_the_smaller_class(
    blocks: tuple[int, int, int], data: st.DataObject, kind: type[nn.Module]
) -> None:
    model = Net(blocks, kind=kind)
    offered = removable_layers(model, example_inputs=X)
    assert {layer.name for layer in offered} == {
        f"{stage}.{i}"
        for stage, n in zip(("outer", "inner", "last"), blocks, strict=True)
        for i in range(n)
    }
    assert all(layer.coupled and layer.element for layer in offered)
    assert [layer.level for layer in offered] == sorted((x.level for x in offered), reverse=True)
    names = [layer.name for layer in offered]
    gone = data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    small = remove_layers(model, gone, example_inputs=X)
    left = [
        {str(i) for i in range(n) if f"{stage}.{i}" not in gone}
        for stage, n in zip(("outer", "inner", "last"), blocks, strict=True)
    ]
    assert torch.equal(small.eval()(X), reference(model, X, left))
    want = Net((len(left[0]), len(left[1]), len(left[2])), kind=kind)
    assert list(small.state_dict()) == list(want.state_dict())
    want.load_state_dict(small.state_dict())


@MANY
@given(counts, counts)
def test_the_way_to_a_smaller_model_is_found(
    a: tuple[int, int, int], b: tuple[int, int, int]
) -> None:
    large = Net((max(a[0], b[0]), max(a[1], b[1]), max(a[2], b[2])))
    small = Net((min(a[0], b[0]), min(a[1], b[1]), min(a[2], b[2])), width=2)
    names = layers_towards(large, small, example_inputs=X)
    step: nn.Module = large
    for name in names:  # one after the other, by the names of the large model
        step = remove_layers(step, [name], example_inputs=X)
    whole = remove_layers(large, names, example_inputs=X)
    assert list(step.state_dict()) == list(whole.state_dict()) == list(small.state_dict())
    assert torch.equal(step.eval()(X), whole.eval()(X))


def test_repeated_convolutions_go_with_their_norm_and_activation() -> None:
    def net(repeats: int) -> nn.Sequential:
        unit = [
            m
            for _ in range(repeats)
            for m in (nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU())
        ]
        return nn.Sequential(nn.Conv1d(1, 4, 3), *unit, nn.Conv1d(4, 1, 1))

    model = net(3)
    x = torch.zeros(1, 1, 9)
    assert [layer.modules for layer in removable_layers(model, example_inputs=x)] == [
        ("7", "8", "9"),
        ("4", "5", "6"),
        ("1", "2", "3"),
    ]
    assert not any(layer.coupled for layer in removable_layers(model, example_inputs=x))
    assert layers_towards(model, net(1), example_inputs=x) == ("7", "4")
    assert list(remove_layers(model, ["4"], example_inputs=x).state_dict()) == list(
        net(2).state_dict()
    )


class Middle(nn.Module):
    """Convolutions as attributes, and a module that is called twice."""

    def __init__(self, *, second: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        if second:
            self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x)) if hasattr(self, "second") else x
        return self.last(self.twice(self.twice(x)))


def test_an_attribute_becomes_an_identity() -> None:
    model = Middle()
    assert [layer.name for layer in removable_layers(model, example_inputs=X)] == ["second"]
    small = remove_layers(model, ["second"], example_inputs=X)
    assert type(small.second) is nn.Identity
    assert list(small.state_dict()) == list(Middle(second=False).state_dict())
    assert layers_towards(model, Middle(second=False), example_inputs=X) == ("second",)
    assert "second.weight" in model.state_dict()


def test_what_cannot_be_removed_is_said() -> None:
    model = Middle()
    with pytest.raises(InputError, match=r"'twice'.*called more than once.*there are: second"):
        remove_layers(model, ["twice"], example_inputs=X)
    with pytest.raises(InputError, match="is a string"):
        remove_layers(model, "second", example_inputs=X)
    with pytest.raises(DepthError, match=r"second.weight is only in the target"):
        layers_towards(Middle(second=False), model, example_inputs=X)


class Counting(nn.Module):
    """Its own code counts its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(3):
            x = self.blocks[i](x)
        return x


class Pairs(Counting):
    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ModuleList(nn.Conv2d(1, 1, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block, scale in zip(self.blocks, self.scales, strict=False):
            x = block(x) + scale(x).mean()
        return x


@pytest.mark.parametrize(
    "model, match",
    [(Counting(), r"does not run without blocks.1: IndexError"), (Pairs(), "counts")],
)
def test_code_that_counts_its_layers_refuses(model: nn.Module, match: str) -> None:
    with pytest.raises(DepthError, match=match):
        remove_layers(model, ["blocks.1"], example_inputs=X)
