"""Models that the user has compiled before eslkit sees them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import eslkit
from eslkit.errors import InputError

X = torch.rand(1, 3, 16, 16)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 3, 1)
    )


@pytest.mark.parametrize("in_place", [True, False])
def test_what_torch_compile_made_is_followed_as_it_was_written(in_place: bool) -> None:
    """Compiling eslkit's own recorder on the way took twenty times as long."""
    model, want = network(), eslkit.schedule(network(), depth=0, example_inputs=X).plan
    compiled = model if in_place else torch.compile(model, backend="eager")
    if in_place:
        model.compile(backend="eager")
    before = {kind: dict(found) for kind, found in counters.items()}
    plan = eslkit.schedule(compiled, depth=0, example_inputs=X).plan  # type: ignore[arg-type]
    assert {kind: dict(found) for kind, found in counters.items()} == before, "nothing is compiled"
    assert [step.macs for step in plan.steps] == [step.macs for step in want.steps]
    assert [step.parameters for step in plan.steps] == [step.parameters for step in want.steps]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_torch_jit_made_is_refused_by_name() -> None:
    part = nn.Sequential(nn.Conv2d(3, 3, 1), torch.jit.script(nn.ReLU()))
    for model, named in ((part, "`1` of the model"), (torch.jit.script(part), "The model")):
        with pytest.raises(InputError, match=rf"{named} was compiled by torch\.jit"):
            eslkit.trace(model, example_inputs=X)
