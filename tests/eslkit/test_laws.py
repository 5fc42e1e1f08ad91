"""The laws of the surgery, held against drawn encoder-decoders."""

from __future__ import annotations

import copy
import io
import os
import pickle
import random
import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import eslkit
from eslkit.errors import ResizeError
from eslkit.graph.channels import ChannelGraph
from eslkit.surgery.widths import check_widths
from tests.eslkit.networks import Form, forms
from tests.tolerances import MASKED, PRESERVED

EXAMPLES = int(os.environ.get("LAW_EXAMPLES", "6"))
"""Drawn networks for each law; each takes a second or two. More are a matter of patience."""

PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking whole networks takes minutes
MANY = settings(max_examples=EXAMPLES, phases=PHASES)
FEW = settings(max_examples=max(1, EXAMPLES // 2), phases=PHASES)


@pytest.fixture(autouse=True)
def refusals_are_told() -> Iterator[None]:
    """What a drawn network's own norms refuse keeps its width; that is told, and no failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", eslkit.ResizeWarning)
        yield


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert list(left) == list(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert torch.equal(tensor, right[name]), name


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def drawn_widths(graph: ChannelGraph, seed: int) -> dict[str, int]:
    """Smaller widths for about half of the groups; tied ones are halved together, or stay."""
    dice = random.Random(seed)
    widths: dict[str, int] = {}
    for group in graph.resizable:
        if group.name in widths or dice.random() < 0.5:
            continue
        wanted = {group.name: dice.randint(1, group.width)}
        if group.tied:
            unit = [group, *map(graph.group, group.tied)]
            wanted = {g.name: g.width // 2 for g in unit if not any(g.width % 2 for g in unit)}
        try:
            check_widths(graph, widths | wanted)
        except ResizeError:
            continue
        widths |= wanted
    return widths


def plain_groups(graph: ChannelGraph) -> set[str]:
    """Groups whose channels no operation mixes or counts, them or what they are tied to."""
    counted = {name for constraint in graph.constraints for name in constraint.counts}
    odd = counted | {group.name for group in graph.resizable if group.mixed}
    return {g.name for g in graph.resizable if not odd & {g.name, *g.tied}}


def masked(model: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> nn.Module:
    """The model with the weights that read the channels behind the first `width` set to zero."""
    made = copy.deepcopy(model)
    tensors = {**dict(made.named_parameters()), **dict(made.named_buffers())}
    for name, width in widths.items():
        group = graph.group(name)
        for span in group.spans:
            if span.role == "consumer":
                gone = torch.from_numpy(span.positions(group.width)[width:].ravel())
                with torch.no_grad():
                    tensors[span.parameter].index_fill_(span.axis, gone, 0)
    return made


@MANY
@given(forms())
def test_groups_partition_all_parameter_axes(form: Form) -> None:
    model = form.build()
    graph = eslkit.trace(model, example_inputs=form.inputs())
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    times = {(n, a): np.zeros(s, int) for n, t in tensors.items() for a, s in enumerate(t.shape)}
    for group in graph.groups:
        for span in group.spans:
            where = span.positions(group.width)
            assert where.max() < tensors[span.parameter].shape[span.axis]
            times[span.parameter, span.axis][where.ravel()] += 1
    for key, count in times.items():
        if key in graph.positions:
            assert graph.positions[key]
            assert not count.any(), key
        else:
            assert (count == 1).all(), key
    assert all(group.protected != "" for group in graph.groups)
    assert graph.resizable


@MANY
@given(forms(), st.sampled_from(("first", "last", "combined", "preserve")))
def test_keeping_all_channels_is_the_identity(form: Form, init: str) -> None:
    model = form.build()
    graph = eslkit.trace(model, example_inputs=form.inputs())
    kept = eslkit.resize(model, graph.widths, init=init, example_inputs=form.inputs())
    assert kept is not model
    assert_same_bits(tensors_of(kept), tensors_of(model))
    assert torch.equal(run(kept, form.inputs()), run(model, form.inputs()))


FREE = ("conv", "linear")
"""Bottlenecks whose groups can be resized one by one; attention wants all its widths at once."""


@MANY
@given(forms(inside=FREE), st.integers(0, 2**16))
def test_narrowed_equals_masked(form: Form, seed: int) -> None:
    model, x = form.build(), form.inputs()
    graph = eslkit.trace(model, example_inputs=x)
    allowed = plain_groups(graph)
    widths = {n: w for n, w in drawn_widths(graph, seed).items() if n in allowed}
    narrow = eslkit.resize(model, widths, init="first", example_inputs=x)
    MASKED.check(run(narrow, x), run(masked(model, graph, widths), x))


@MANY
@given(forms(inside=FREE), st.sampled_from((2, 1.5, 3)))
def test_preserve_leaves_the_output_unchanged(form: Form, width: float) -> None:
    model, x = form.build(), form.inputs()
    graph = eslkit.trace(model, example_inputs=x)
    widths = {name: round(width * graph.group(name).width) for name in plain_groups(graph)}
    wide = eslkit.resize(model, widths, init="preserve", example_inputs=x)
    PRESERVED.check(run(wide, x), run(model, x))


@MANY
@given(forms(), st.integers(0, 1))
def test_shrink_undoes_expand(form: Form, depth: int) -> None:
    model, x = form.build(), form.inputs()
    big = eslkit.expand(model, width=2, depth=depth, init="first", example_inputs=x)
    assert sum(p.numel() for p in big.parameters()) > sum(p.numel() for p in model.parameters())
    back = eslkit.shrink(big, width=0.5, depth=-depth, init="first", example_inputs=x)
    assert type(back) is type(model)
    assert_same_bits(tensors_of(back), tensors_of(model))
    assert repr(back) == repr(model)
    assert torch.equal(run(back, x), run(model, x))


@FEW
@given(forms(), st.booleans(), st.integers(0, 1))
def test_the_model_is_not_touched(form: Form, training: bool, depth: int) -> None:
    model, x = form.build().train(training), form.inputs()
    first = next(model.parameters()).requires_grad_(False)
    before, objects = tensors_of(model), [id(p) for p in model.parameters()]
    modes, text = [m.training for m in model.modules()], repr(model)
    plain = [set(vars(m)) for m in model.modules()]
    rng, threads = torch.get_rng_state(), torch.get_num_threads()
    big = eslkit.expand(model, depth=depth, example_inputs=x)
    eslkit.shrink(big, depth=-depth, example_inputs=x)
    assert torch.equal(rng, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert_same_bits(tensors_of(model), before)
    assert [id(p) for p in model.parameters()] == objects
    assert [m.training for m in model.modules()] == modes
    assert [set(vars(m)) for m in model.modules()] == plain
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert repr(model) == text
    assert not first.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert big.training == training
    assert not {p.data_ptr() for p in big.parameters()} & {p.data_ptr() for p in model.parameters()}


@FEW
@given(forms(), st.sampled_from(("expand", "deepen", "shrink")))
def test_what_is_made_can_be_used_like_any_model(form: Form, what: str) -> None:
    model, x = form.build(), form.inputs(batch=2)
    if what == "shrink":
        made = eslkit.shrink(model, example_inputs=x)
    else:
        made = eslkit.expand(model, depth=int(what == "deepen"), example_inputs=x)
    want = run(made, x)
    assert torch.equal(run(copy.deepcopy(made), x), want)
    assert torch.equal(run(pickle.loads(pickle.dumps(made)), x), want)
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(made)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(torch.load(file))
    assert torch.equal(run(other, x), want)
    torch.testing.assert_close(run(torch.export.export(made, (x,)).module(), x), want)
    made.train()
    optimizer = torch.optim.SGD(made.parameters(), lr=1e-3)
    loss = made(x).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in made.parameters())
    optimizer.step()
    assert not torch.equal(run(made.eval(), x), want)


@pytest.mark.parametrize("dims", [1, 2])
def test_what_is_made_can_be_compiled(dims: int) -> None:
    form = Form(
        dims=dims,
        widths=(4, 6),
        skip="concat",
        norm="batch",
        activation="leaky",
        down="max",
        up="transposed",
        block="plain",
        bottleneck="conv",
        in_channels=1,
        out_channels=1,
        bias=True,
        seed=0,
    )
    made = eslkit.expand(form.build(), depth=1, example_inputs=form.inputs())
    compiled = torch.compile(made, backend="aot_eager")
    torch.testing.assert_close(run(compiled, form.inputs()), run(made, form.inputs()))
