"""Every family of operations alone: its channels are found, and the laws hold."""

from __future__ import annotations

import copy
import functools
import io
import os
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import eslkit
from eslkit.errors import ResizeError
from eslkit.graph.channels import ChannelGraph
from tests.eslkit.families.all import FAMILIES, family
from tests.eslkit.families.family import Alone, inputs, settle
from tests.eslkit.families.known import KNOWN
from tests.eslkit.families.laws import (
    assert_partition,
    assert_same_model,
    masked,
    plain_groups,
    run,
    size_of,
    tensors_of,
)
from tests.tolerances import MASKED, PRESERVED

EXAMPLES = int(os.environ.get("LAW_EXAMPLES", "6"))
"""From 20 on, every family goes through every law, in each of its numbers of dimensions."""
THOROUGH = EXAMPLES >= 20
FIXED = ("the model's input", "the model's output", "one channel")


def each(law: str, *, every: int = 1, first: int = 0) -> pytest.MarkDecorator:
    """Families as parameters of a test, those marked that are known to fail it.

    Args:
        law: its name in the table of known failures.
        every: every second or so family will do, unless all is to be thorough.
        first: with which to begin, so that the laws do not all leave out the same families.
    """
    cases = [
        pytest.param(
            f.name,
            dims,
            id=f"{f.name}-{dims}d",
            marks=[pytest.mark.xfail(strict=True, reason=KNOWN[law, f.name])]
            if (law, f.name) in KNOWN
            else [],
        )
        for f in (FAMILIES if THOROUGH else FAMILIES[first::every])
        for dims in (f.dims if THOROUGH else f.dims[:1])
    ]
    return pytest.mark.parametrize("name, dims", cases)


@functools.cache
def case(name: str, dims: int) -> tuple[nn.Module, Tensor, ChannelGraph]:
    """The model, its input and its graph; the laws leave them as they are."""
    kind = family(name)
    torch.manual_seed(0)
    model = settle(Alone(kind, dims))
    x = inputs(3, dims, size=kind.size)
    return model, x, eslkit.trace(model, example_inputs=x)


@each("found")
def test_the_channels_are_found(name: str, dims: int) -> None:
    model, _, graph = case(name, dims)
    kind = family(name)
    assert_partition(model, graph)
    allowed = (*FIXED, *kind.keeps)
    for group in graph.groups:
        reason = group.protected
        assert reason is None or any(words in reason for words in allowed), graph.explain(
            group.name
        )
    mixed = {group.name: group.mixed for group in graph.resizable if group.mixed}
    assert bool(mixed) == kind.mixes, mixed


@each("halved")
def test_halving_takes_what_it_should(name: str, dims: int) -> None:
    model, x, graph = case(name, dims)
    small = eslkit.shrink(model, example_inputs=x)
    assert size_of(small) <= family(name).ratio * size_of(model)
    again = eslkit.trace(small, example_inputs=x)
    assert again.widths == {group: width // 2 for group, width in graph.widths.items()}
    assert run(small, x)[0].shape == run(model, x)[0].shape


@each("identity", every=4, first=3)
def test_keeping_all_channels_is_the_identity(name: str, dims: int) -> None:
    model, x, graph = case(name, dims)
    kept = eslkit.resize(model, graph.widths, init="first", example_inputs=x)
    assert kept is not model
    assert_same_model(kept, model)
    assert torch.equal(run(kept, x)[0], run(model, x)[0])


def refused(name: str, error: ResizeError) -> bool:
    """Whether the model's own views say that these groups cannot be resized without others."""
    return family(name).mixes and "A size is written into its code" in str(error)


def some_widths(graph: ChannelGraph, factor: float) -> dict[str, int]:
    return {n: max(1, round(graph.group(n).width * factor)) for n in sorted(plain_groups(graph))}


@each("masked")
@pytest.mark.parametrize("factor", (0.5, 0.25) if THOROUGH else (0.5,))
def test_narrowed_equals_masked(name: str, dims: int, factor: float) -> None:
    model, x, graph = case(name, dims)
    widths = some_widths(graph, factor)
    try:
        narrow = eslkit.resize(model, widths, init="first", example_inputs=x)
    except ResizeError as error:  # heads cut from all channels: these cannot go without those
        if not refused(name, error):
            raise
        return
    assert size_of(narrow) < size_of(model) or not widths
    MASKED.check(run(narrow, x)[0], run(masked(model, graph, widths), x)[0])


@each("preserve", every=2)
@pytest.mark.parametrize("factor", (2, 1.5) if THOROUGH else (2,))
def test_preserve_leaves_the_output_unchanged(name: str, dims: int, factor: float) -> None:
    model, x, graph = case(name, dims)
    try:
        wide = eslkit.resize(model, some_widths(graph, factor), init="preserve", example_inputs=x)
    except ResizeError as error:
        if not refused(name, error):
            raise
        return
    PRESERVED.check(run(wide, x)[0], run(model, x)[0])


@each("undone", every=2, first=1)
def test_shrink_undoes_expand(name: str, dims: int) -> None:
    model, x, graph = case(name, dims)
    big = eslkit.expand(model, init="first", example_inputs=x)
    assert eslkit.trace(big, example_inputs=x).widths == {g: 2 * w for g, w in graph.widths.items()}
    assert size_of(big) > size_of(model)
    back = eslkit.shrink(big, init="first", example_inputs=x)
    assert_same_model(back, model)
    assert torch.equal(run(back, x)[0], run(model, x)[0])


@each("untouched", every=6, first=2)
def test_the_model_is_not_touched(name: str, dims: int) -> None:
    model, x, _ = case(name, dims)
    before, modes = tensors_of(model), [m.training for m in model.modules()]
    objects = [id(t) for t in (*model.parameters(), *model.buffers())]
    plain, text = [dict(vars(m)) for m in model.modules()], repr(model)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    rng = torch.get_rng_state()
    eslkit.shrink(eslkit.expand(model, example_inputs=x), example_inputs=x)
    assert torch.equal(rng, torch.get_rng_state()) and torch.is_grad_enabled()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert [id(t) for t in (*model.parameters(), *model.buffers())] == objects
    assert [m.training for m in model.modules()] == modes and repr(model) == text
    assert [set(vars(m)) for m in model.modules()] == [set(held) for held in plain]
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks


@each("used", every=4, first=1)
def test_what_is_made_is_a_model_like_any(name: str, dims: int) -> None:
    model, x, _ = case(name, dims)
    made = eslkit.expand(model, example_inputs=x)
    want = run(made, x)[0]
    assert torch.equal(run(copy.deepcopy(made), x)[0], want)
    if not any(parametrize.is_parametrized(m) for m in made.modules()):  # torch refuses those
        assert torch.equal(run(pickle.loads(pickle.dumps(made)), x)[0], want)
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    other = eslkit.expand(model, example_inputs=x)
    other.load_state_dict(torch.load(file))
    assert torch.equal(run(other, x)[0], want)
    optimizer = torch.optim.SGD(made.train().parameters(), lr=1e-3)
    made(x).square().mean().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in made.parameters())
    optimizer.step()
    assert not torch.equal(run(made.eval(), x)[0], want)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_recurrence_over_a_single_image(name: str) -> None:
    torch.manual_seed(0)
    model, x = settle(Alone(family(name), 2)), inputs(3, 2, size=4, batch=1)
    graph = eslkit.trace(model, example_inputs=x)
    kept = eslkit.resize(model, graph.widths, init="first", example_inputs=x)
    assert torch.equal(run(kept, x)[0], run(model, x)[0])
