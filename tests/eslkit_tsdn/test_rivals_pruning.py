"""Pruning: what stays, and what is said where it cannot be."""

from __future__ import annotations

import importlib.util
import signal
import sys

import pytest
import torch
from torch import nn

import eslkit
from eslkit.errors import InputError, UnsupportedError
from eslkit_tsdn.budget import Budget
from eslkit_tsdn.models import TSDN, NBNet, UNet
from eslkit_tsdn.rivals.pruning import prune_and_finetune, pruned
from eslkit_tsdn.rivals.torch_pruning import prune_channels
from tests.eslkit_tsdn.test_rivals_costs import SOURCE
from tests.tolerances import REFERENCE

needs_torch_pruning = pytest.mark.skipif(
    importlib.util.find_spec("torch_pruning") is None,
    reason="the extra `pruning` (torch-pruning) is not installed",
)
X = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))


def pair(kind: type[nn.Module] = UNet) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return kind((3, 4, 6)), kind((6, 8, 10))


@needs_torch_pruning
@pytest.mark.parametrize("kind", [UNet, TSDN])
@pytest.mark.parametrize("importance", ["l1", "l2"])
def test_torch_pruning_reaches_the_small_networks_shapes(kind, importance) -> None:
    small, large = pair(kind)
    before = {name: tensor.clone() for name, tensor in large.state_dict().items()}
    frozen = next(large.parameters()).requires_grad_(False)
    made = pruned(
        large, small, large=large, step=1, steps=1, example_input=X, importance=importance
    )
    assert type(made) is kind and made.eval()(X).shape == X.shape
    shapes = {name: tensor.shape for name, tensor in small.state_dict().items()}
    assert {name: tensor.shape for name, tensor in made.state_dict().items()} == shapes
    assert all(torch.equal(tensor, before[name]) for name, tensor in large.state_dict().items())
    assert not frozen.requires_grad and large.training


@needs_torch_pruning
@pytest.mark.parametrize("p, importance", [(1, "l1"), (2, "l2")])
def test_the_channels_with_the_largest_norms_stay(p: int, importance: str) -> None:
    """One layer between two: rows of the first and columns of the second count, by the mean."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)
    ).double()
    made = prune_channels(model, {"0": 3}, example_input=X.double(), importance=importance)
    rows = model[0].weight.flatten(1).abs().pow(p).sum(1)
    columns = model[2].weight.transpose(0, 1).flatten(1).abs().pow(p).sum(1)
    kept = (rows + columns).argsort(descending=True)[:3].sort().values
    assert torch.equal(made[0].weight, model[0].weight[kept])
    assert torch.equal(made[0].bias, model[0].bias[kept])
    assert torch.equal(made[2].weight, model[2].weight[:, kept])
    x = X.double()
    gate = torch.zeros(6, dtype=torch.float64)
    gate[kept] = 1
    expected = model[2](model[1](model[0](x)) * gate[:, None, None])
    REFERENCE.check(made(x), expected)


@needs_torch_pruning
def test_steps_lie_on_a_straight_line() -> None:
    small, large = pair()
    network, widths = large, []
    for step in (1, 2, 3):
        network = pruned(network, small, large=large, step=step, steps=3, example_input=X)
        widths.append([network.encoder[0].conv1.out_channels, network.middle.conv2.out_channels])
    assert widths == [[5, 9], [4, 7], [3, 6]]


def test_eslkits_engine_takes_the_same_steps_and_any_policy() -> None:
    small, large = pair()
    options = {"large": large, "steps": 3, "example_input": X, "engine": "eslkit"}
    first = pruned(large, small, step=1, importance="l1", **options)
    assert [first.encoder[0].conv1.out_channels, first.middle.conv2.out_channels] == [5, 9]
    last = pruned(first, small, step=3, importance=eslkit.policies.last, **options)
    expected = eslkit.inherit(small, first, init="last", example_inputs=(X,))
    assert all(map(torch.equal, last.parameters(), expected.parameters()))


@needs_torch_pruning
def test_where_torch_pruning_fails_it_is_quoted() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no graph of mine")

    with pytest.raises(
        UnsupportedError, match=r"Torch-Pruning [\d.]+ cannot prune the Other: .*no graph of mine"
    ):
        prune_channels(Other(), {"a": 2}, example_input=X)
    with pytest.raises(UnsupportedError, match="would lose all its channels"):
        prune_channels(UNet((3, 4)), {"encoder.0.conv1": 0}, example_input=X)


@needs_torch_pruning
def test_torch_pruning_is_given_up_where_it_finds_no_end() -> None:
    """NBNet's projection, by a matrix that its features make, couples all that comes before."""
    small, large = NBNet((4, 6)), NBNet((6, 8))
    widths = {n: m.out_channels for n, m in small.named_modules() if hasattr(m, "out_channels")}
    with pytest.raises(UnsupportedError, match=r"prune the NBNet: TimeoutError: .* 0\.5 seconds"):
        prune_channels(large, widths, example_input=X, patience=0.5)
    before = signal.getsignal(signal.SIGVTALRM)
    assert before is signal.SIG_DFL and signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


@needs_torch_pruning
def test_a_network_that_is_not_reached_is_told_by_the_first_shape() -> None:
    """Channels that are added up can only go together; the small network says otherwise."""

    class Added(nn.Module):
        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, a, 1), nn.Conv2d(4, b, 1)
            self.out = nn.Conv2d(a, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.a(x) + self.b(x))

    large = Added(8, 8)
    with pytest.raises(UnsupportedError, match=r"does not reach the Added: a.weight shall have"):
        pruned(large, Added(6, 4), large=large, step=1, steps=1, example_input=X)


def test_without_torch_pruning_it_is_said_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    small, large = pair()
    with pytest.raises(InputError, match=r"pip install 'eslkit\[pruning\]'.*engine='eslkit'"):
        prune_and_finetune(small, large, SOURCE, budget=Budget(iterations=1))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"importance": "magic"}, "importance='magic'"),
        ({"engine": "magic"}, "engine='magic'"),
        ({"importance": eslkit.policies.last}, "needs engine='eslkit'"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 3}, "divided among 3"),
    ],
)
def test_what_cannot_be_is_refused(options, message) -> None:
    small, large = pair()
    with pytest.raises(InputError, match=message):
        prune_and_finetune(small, large, SOURCE, budget=Budget(iterations=2), **options)


def test_networks_the_wrong_way_round_are_refused() -> None:
    small, large = pair()
    for engine in ("torch-pruning", "eslkit"):
        with pytest.raises(InputError, match="the wrong way round"):
            prune_and_finetune(
                large, small, SOURCE, budget=Budget(iterations=2), engine=engine, steps=2
            )
    with pytest.raises(
        InputError, match=r"not of one form: 'encoder.1.conv1' is only in the large"
    ):
        prune_and_finetune(UNet((3, 4)), large, SOURCE, budget=Budget(iterations=2))
