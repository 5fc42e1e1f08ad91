"""Families together: the laws held against drawn encoder-decoders of drawn blocks."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterator

import pytest
import torch
from hypothesis import Phase, given, reject, settings
from hypothesis import strategies as st
from torch import nn

import eslkit
from eslkit.errors import ResizeError
from eslkit.graph.channels import ChannelGraph
from tests.eslkit.families.all import FAMILIES
from tests.eslkit.families.known import BROKEN
from tests.eslkit.families.laws import (
    assert_partition,
    assert_same_model,
    masked,
    plain_groups,
    run,
    size_of,
    tensors_of,
)
from tests.eslkit.families.mixture import Mixture, mixtures
from tests.eslkit.test_families import EXAMPLES
from tests.tolerances import MASKED, PRESERVED

PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
MANY = settings(max_examples=max(1, EXAMPLES // 2), phases=PHASES)
FEW = settings(max_examples=max(1, EXAMPLES // 6), phases=PHASES)
REFUSAL = "A size is written into its code"


@pytest.fixture(autouse=True)
def refusals_are_told() -> Iterator[None]:
    """What blocks together refuse (a norm over a concat, say) keeps its width and is told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", eslkit.ResizeWarning)
        # torch.export, of the weight that its own older weight norm leaves on the layer
        warnings.filterwarnings("ignore", "The tensor attributes .* were assigned during export")
        yield


def chosen_widths(graph: ChannelGraph, seed: int, factors: tuple[float, ...]) -> dict[str, int]:
    """Other widths for about half of the plain groups; what is tied changes together."""
    dice = random.Random(seed)
    plain = plain_groups(graph)
    widths: dict[str, int] = {}
    for group in graph.resizable:
        unit = {group.name, *group.tied}
        if group.name in widths or not unit <= plain or dice.random() < 0.5:
            continue
        factor = dice.choice(factors)
        new = {name: graph.group(name).width * factor for name in unit}
        if all(width == int(width) and width >= 1 for width in new.values()):
            widths |= {name: int(width) for name, width in new.items()}
    return widths


def resized(form: Mixture, model: nn.Module, widths: dict[str, int], init: str) -> nn.Module:
    """The model at these widths; another draw where a view needs other groups to go along."""
    try:
        return eslkit.resize(model, widths, init=init, example_inputs=form.inputs())
    except ResizeError as error:
        if REFUSAL in str(error) and any(f.mixes for f in form.families):
            reject()
        raise


# Where an orthogonal matrix is computed from all of a weight, none of it can be resized.
PROTECTED = frozenset(found.name for found in FAMILIES if found.ratio > 0.5)


@MANY
@given(mixtures(without=BROKEN | PROTECTED))
def test_all_axes_belong_to_groups_and_most_can_be_halved(form: Mixture) -> None:
    model, x = form.build(), form.inputs()
    graph = eslkit.trace(model, example_inputs=x)
    assert_partition(model, graph)
    small = eslkit.shrink(model, example_inputs=x)
    assert size_of(small) <= 0.5 * size_of(model)
    for made, given_ in zip(run(small, x), run(model, x), strict=True):
        assert made.shape == given_.shape


@MANY
@given(mixtures(without=BROKEN), st.sampled_from(("first", "last", "combined", "preserve")))
def test_keeping_all_channels_is_the_identity(form: Mixture, init: str) -> None:
    model, x = form.build(), form.inputs()
    graph = eslkit.trace(model, example_inputs=x)
    kept = eslkit.resize(model, graph.widths, init=init, example_inputs=x)
    assert_same_model(kept, model)
    assert all(map(torch.equal, run(kept, x), run(model, x)))


@MANY
@given(mixtures(without=BROKEN), st.integers(0, 2**16))
def test_narrowed_equals_masked(form: Mixture, seed: int) -> None:
    model, x = form.build(), form.inputs()
    graph = eslkit.trace(model, example_inputs=x)
    widths = chosen_widths(graph, seed, (0.5, 0.25, 0.75))
    narrow = resized(form, model, widths, "first")
    for made, want in zip(run(narrow, x), run(masked(model, graph, widths), x), strict=True):
        MASKED.check(made, want)


@MANY
@given(mixtures(without=BROKEN), st.integers(0, 2**16))
def test_preserve_leaves_the_output_unchanged(form: Mixture, seed: int) -> None:
    model, x = form.build(), form.inputs()
    graph = eslkit.trace(model, example_inputs=x)
    wide = resized(form, model, chosen_widths(graph, seed, (2, 1.5, 3)), "preserve")
    for made, want in zip(run(wide, x), run(model, x), strict=True):
        PRESERVED.check(made, want)


@MANY
@given(mixtures(without=BROKEN))
def test_shrink_undoes_expand(form: Mixture) -> None:
    model, x = form.build(), form.inputs()
    before, rng = tensors_of(model), torch.get_rng_state()
    big = eslkit.expand(model, init="first", example_inputs=x)
    assert size_of(big) > size_of(model)
    back = eslkit.shrink(big, init="first", example_inputs=x)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert_same_model(back, model)
    assert all(map(torch.equal, run(back, x), run(model, x)))


@FEW
@given(mixtures(without=BROKEN), st.sampled_from((0.5, 2)))
def test_what_is_made_can_be_trained_and_exported(form: Mixture, width: float) -> None:
    model, x = form.build(), form.inputs()
    change = eslkit.shrink if width < 1 else eslkit.expand
    made = change(model, width=width, example_inputs=x)
    want = run(made, x)
    exported = torch.export.export(made, (x,)).module()
    for given_, tensor in zip(run(exported, x), want, strict=True):
        torch.testing.assert_close(given_, tensor)
    other = copy.deepcopy(made).train()
    optimizer = torch.optim.SGD(other.parameters(), lr=1e-6)
    result = other(x)
    outputs = list(result.values()) if isinstance(result, dict) else [result]
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    optimizer.step()
    assert not all(map(torch.equal, run(other.eval(), x), want))


@FEW
@given(mixtures(without=BROKEN))
def test_what_is_made_can_be_compiled(form: Mixture) -> None:
    x = form.inputs()
    made = eslkit.shrink(form.build(), example_inputs=x)
    compiled = torch.compile(made, backend="eager")
    for tensor, want in zip(run(compiled, x), run(made, x), strict=True):
        torch.testing.assert_close(tensor, want)
