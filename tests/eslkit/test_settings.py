"""Networks that read their widths off one object: a dictionary, a namespace, a dataclass ..."""

from __future__ import annotations

import copy
import warnings
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import eslkit
from eslkit.surgery.settings import parts_of, with_parts
from eslkit.trainer import StepContext


@dataclass(frozen=True)
class Settings:
    dim: int
    heads: int
    name: str = "attention"


class Config:
    """As those of large libraries."""

    def __init__(self, **named: Any) -> None:
        self.__dict__.update(named)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class Mixing(nn.Module):
    """Mixes positions in heads; its channels stand in `config`, where `dim` finds them."""

    def __init__(self, config: Any, dim: Callable[[Any], int], heads: Callable[[Any], int]) -> None:
        super().__init__()
        self.config, self.dim, self.heads = config, dim, heads
        self.q = nn.Conv2d(dim(config), dim(config), 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        dim, heads = self.dim(self.config), self.heads(self.config)
        y = self.q(x).view(b, heads, dim // heads, h * w).softmax(-1)
        return x + y.view(b, dim, h, w)


def network(config: Any, dim: Any, heads: Any) -> nn.Sequential:
    mixing = [Mixing(config, dim, heads) for _ in range(2)]
    return nn.Sequential(nn.Conv2d(3, 8, 1), *mixing, nn.Conv2d(8, 3, 1))


X = torch.rand(1, 3, 4, 4)
FORMS: dict[str, tuple[Any, Any, Any]] = {
    "dictionary": ({"dim": 8, "heads": 2}, lambda c: c["dim"], lambda c: c["heads"]),
    "nested": (
        {"model": {"dims": [8, 8], "heads": [2]}, "kind": "a"},
        lambda c: c["model"]["dims"][-1],
        lambda c: c["model"]["heads"][0],
    ),
    "namespace": (Namespace(dim=8, heads=2, lr=0.1), lambda c: c.dim, lambda c: c.heads),
    "simple": (SimpleNamespace(net=Settings(8, 2)), lambda c: c.net.dim, lambda c: c.net.heads),
    "dataclass": (Settings(8, 2), lambda c: c.dim, lambda c: c.heads),
    "config": (Config(dim=8, heads=2, dtype=torch.float32), lambda c: c.dim, lambda c: c.heads),
    # As many heads as channels before: all numbers at once is not what works.
    "same number": (Settings(8, 8), lambda c: c.dim, lambda c: c.heads),
}


@pytest.mark.parametrize("form", FORMS)
def test_widths_in_settings_go_along_and_come_back(form: str) -> None:
    config, dim, heads = FORMS[form]
    before, model = copy.deepcopy(config), network(config, dim, heads)
    sizes: list[tuple[int, int]] = []

    def train(made: nn.Module, _: StepContext) -> None:
        assert made(X).shape == X.shape
        sizes.append((dim(made[1].config), heads(made[1].config)))  # type: ignore[index]

    with warnings.catch_warnings():
        warnings.simplefilter("error", eslkit.ResizeWarning)
        made = eslkit.schedule(model, depth=0, granularity="one-shot", example_inputs=X)
        back = made.run(train).model
    assert sizes[0][0] == 16
    assert sizes[0][1] in (heads(before), 2 * heads(before))
    assert sizes[-1] == (dim(before), heads(before))
    assert model[1].config is model[2].config is config
    assert config == before
    for place in (1, 2):
        assert back[place].config == before  # type: ignore[index]
        assert back[place].config is not config  # type: ignore[index]


def test_what_settings_are_and_what_copies_of_them_share() -> None:
    inner = {"dim": 8}
    made = with_parts(Namespace(inner=inner, heads=2), {"heads": 4})
    assert made == Namespace(inner=inner, heads=4)
    assert made.inner is inner
    assert with_parts(Settings(8, 2), {"dim": 16}) == replace(Settings(8, 2), dim=16)
    assert parts_of({"a": 1, "b": {"c": 2}}) == {"a": 1, "b": {"c": 2}}


@pytest.mark.parametrize(
    "value",
    [
        {"a": torch.ones(2)},
        {"a": [nn.Linear(1, 1)]},
        {"a": 8, "b": {1: torch.ones(2)}},
        {1: 8},
        nn.Linear(2, 2),
        torch.ones(2),
        Settings,
        print,
        [1, 2],
        "dim",
        {"a": {"a": {"a": {"a": {"a": 8}}}}},
        object(),
    ],
)
def test_what_is_no_settings_is_left_alone(value: Any) -> None:
    assert parts_of(value) == {}
