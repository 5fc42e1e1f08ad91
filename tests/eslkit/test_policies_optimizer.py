"""Optimizer state carried over: training goes on as if the channels had been masked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

import eslkit
from eslkit.errors import InputError
from eslkit.surgery import policies
from eslkit.surgery.depth import flatten_step
from eslkit.surgery.inherit import named_tensors
from eslkit.surgery.optimizers import inherit_optimizer
from tests.eslkit.networks import Form, forms
from tests.eslkit.test_laws import FEW, drawn_widths, plain_groups
from tests.tolerances import MASKED, REFERENCE

Make = Callable[[Any], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-3),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "asgd": lambda p: torch.optim.ASGD(p),
}


def train(model: nn.Module, optimizer: Optimizer, xs: list[Tensor], after: Any = None) -> None:
    for x in xs:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        if after is not None:
            after()


def batches(form: Form, count: int, seed: int) -> list[Tensor]:
    dice = torch.Generator().manual_seed(seed)
    shape = form.inputs(batch=2).shape
    return [torch.randn(shape, dtype=torch.float64, generator=dice) for _ in range(count)]


def form_of(**other: Any) -> Form:
    plain = {
        "dims": 2,
        "widths": (4, 6),
        "skip": "concat",
        "norm": "none",
        "activation": "leaky",
        "down": "max",
        "up": "transposed",
        "block": "plain",
        "bottleneck": "conv",
        "in_channels": 2,
        "out_channels": 2,
        "bias": True,
        "seed": 0,
    }
    return Form(**{**plain, **other})


def narrowed_equals_masked(
    form: Form, widths: dict[str, int], make: Make, *, anew: bool = False
) -> None:
    """Training goes on alike in the narrowed and in the masked network.

    `anew` narrows again before every update, so that rounding does not grow from one to the next:
    some drawn networks amplify it a hundredfold an update.
    """
    x = form.inputs()
    model = form.build()
    graph = eslkit.trace(model, example_inputs=x)
    optimizer = make(model.parameters())
    train(model, optimizer, batches(form, 2, 0))

    def mask() -> None:
        tensors = named_tensors(model)
        for name, width in widths.items():
            group = graph.group(name)
            for span in group.spans:
                if span.role == "consumer":
                    gone = (group.width - width) * span.inner
                    with torch.no_grad():
                        tensors[span.parameter].narrow(span.axis, span.start, gone).zero_()

    more, [y] = batches(form, 4, 1), batches(form, 1, 2)
    for updates in [[batch] for batch in more] if anew else [more]:
        narrow = eslkit.resize(model, widths, init="last", example_inputs=x)
        inherited = make(narrow.parameters())
        fresh = inherit_optimizer(
            inherited, optimizer, model=narrow, source_model=model, init="last", example_inputs=x
        )
        assert fresh == ()
        mask()
        train(model, optimizer, updates, mask)
        train(narrow, inherited, updates)
        MASKED.check(narrow(y).detach(), model(y).detach())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_goes_on_as_in_the_masked_network(name: str) -> None:
    widths = {"encoder.0.first.conv": 2, "up.0.layer": 1, "enter.second.conv": 3}
    narrowed_equals_masked(form_of(), widths, OPTIMIZERS[name])


AMPLIFYING = form_of(
    dims=3,
    widths=(5, 2, 5),
    norm="layer",
    activation="relu",
    down="average",
    up="resize",
    block="depthwise",
    bottleneck="linear",
    in_channels=3,
    out_channels=4,
    bias=False,
    seed=1075,
)
"""Its layer norms see next to no variance: four updates of Adam make 4e-10 of rounding."""


@FEW
@given(forms(inside=("conv", "linear")), st.integers(0, 2**16))
@example(AMPLIFYING, 63784)
def test_drawn_networks_go_on_as_if_masked(form: Form, seed: int) -> None:
    model = form.build()
    graph = eslkit.trace(model, example_inputs=form.inputs())
    free = plain_groups(graph)
    widths = {n: w for n, w in drawn_widths(graph, seed).items() if n in free}
    narrowed_equals_masked(form, widths, OPTIMIZERS["adam"], anew=True)


@pytest.mark.parametrize("bottleneck", ["conv", "attention"])
def test_gradients_of_copies_go_by_the_dual_maps(bottleneck: str) -> None:
    """After widening by copies, carried averages are those that the wide network would have."""
    form = form_of(bottleneck=bottleneck, widths=(4, 8))
    x, model = form.inputs(), form.build()
    graph = eslkit.trace(model, example_inputs=x)
    widths = {name: 2 * width for name, width in graph.widths.items()}
    for init in ("preserve", "split"):
        pair = [form.build(), eslkit.resize(form.build(), widths, init=init, example_inputs=x)]
        optimizers = [torch.optim.Adam(m.parameters(), lr=0.0) for m in pair]
        for network, optimizer in zip(pair, optimizers, strict=True):
            train(network, optimizer, batches(form, 3, 0))
        carried = torch.optim.Adam(pair[1].parameters(), lr=0.0)
        inherit_optimizer(
            carried,
            optimizers[0],
            model=pair[1],
            source_model=pair[0],
            init=init,
            example_inputs=x,
        )
        for parameter in pair[1].parameters():
            for key, value in optimizers[1].state[parameter].items():
                REFERENCE.check(carried.state[parameter][key], value)


def test_groups_and_options_stay_and_fresh_channels_start_at_zero() -> None:
    form = form_of()
    x, model = form.inputs(), form.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train(model, optimizer, batches(form, 2, 0))
    before = {k: dict(v) for k, v in optimizer.state.items()}
    wide = eslkit.expand(model, width=2, init="first", example_inputs=x)
    weights = [p for p in wide.parameters() if p.dim() > 1]
    others = [p for p in wide.parameters() if p.dim() <= 1]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": others, "lr": 5e-4}]
    made = torch.optim.Adam(groups, lr=1e-2)
    assert (
        inherit_optimizer(
            made, optimizer, model=wide, source_model=model, init="first", example_inputs=x
        )
        == ()
    )
    assert [g["lr"] for g in made.param_groups] == [1e-2, 5e-4]
    assert [g["weight_decay"] for g in made.param_groups] == [0.1, 0]
    conv, wider = model.encoder[0].second.conv, wide.encoder[0].second.conv
    for key in ("exp_avg", "exp_avg_sq"):
        value = made.state[wider.weight][key]
        assert torch.equal(value[:4, :4], optimizer.state[conv.weight][key])
        assert not value[4:].any()
        assert not value[:, 4:].any()
    assert int(made.state[wider.weight]["step"]) == 2
    assert all(before[p][k] is v for p, s in optimizer.state.items() for k, v in s.items())
    train(wide, made, batches(form, 2, 1))


def test_weights_drawn_afresh_have_no_state() -> None:
    given = pair()
    wide = eslkit.expand(given["source_model"], example_inputs=given["example_inputs"])
    optimizer = OPTIMIZERS["adam"](wide.parameters())
    fresh = inherit_of(given, optimizer=optimizer, model=wide, init="random")
    assert fresh == tuple(name for name, _ in wide.named_parameters())
    assert not optimizer.state


def test_inserted_levels_come_and_go() -> None:
    form = form_of()
    x, model = form.inputs(), form.build()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    train(model, optimizer, batches(form, 2, 0))
    deep = eslkit.expand(model, width=1, depth=1, init="first", example_inputs=x)
    down = torch.optim.SGD(deep.parameters(), lr=1e-2, momentum=0.9)
    fresh = inherit_optimizer(down, optimizer, model=deep, source_model=model, example_inputs=x)
    assert fresh and all(".level." in name for name in fresh)
    train(deep, down, batches(form, 2, 1))
    flat, _ = flatten_step(deep)
    up = torch.optim.SGD(flat.parameters(), lr=1e-2, momentum=0.9)
    half = inherit_optimizer(up, down, model=flat, source_model=deep, example_inputs=x)
    assert [name for name in half if not name.endswith(".level.exit.conv.weight")] == []
    assert len(half) == 1
    last, _ = flatten_step(flat)
    end = torch.optim.SGD(last.parameters(), lr=1e-2, momentum=0.9)
    assert inherit_optimizer(end, up, model=last, source_model=flat, example_inputs=x) == ()
    assert [n for n, _ in last.named_parameters()] == [n for n, _ in model.named_parameters()]


class Odd(torch.optim.SGD):
    """Keeps something of its own beside the momentum."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["variance"] = p.grad.square()


def pair(make: Make = OPTIMIZERS["adam"]) -> dict[str, Any]:
    form = form_of()
    x, model = form.inputs(), form.build()
    source = make(model.parameters())
    train(model, source, batches(form, 1, 0))
    narrow = eslkit.shrink(model, init="l1", example_inputs=x)
    return {
        "optimizer": make(narrow.parameters()),
        "source": source,
        "model": narrow,
        "source_model": model,
        "init": "l1",
        "example_inputs": x,
    }


def inherit_of(given: dict[str, Any], **other: Any) -> tuple[str, ...]:
    all_of_it = {**given, **other}
    optimizer, source = all_of_it.pop("optimizer"), all_of_it.pop("source")
    return inherit_optimizer(optimizer, source, **all_of_it)


def test_what_does_not_fit_is_refused() -> None:
    given = pair()
    other = form_of(seed=1).build()
    with pytest.raises(InputError, match="state of Adam cannot go into AdamW"):
        inherit_of(given, optimizer=OPTIMIZERS["adamw"](given["model"].parameters()))
    with pytest.raises(InputError, match=r"source trains \d+ parameters that source_model does"):
        inherit_of(given, source_model=other)
    with pytest.raises(InputError, match=r"does not come from source_model by this policy"):
        inherit_of(given, init="last")
    inherit_of(given, init="last", verify=False)
    train(given["model"], given["optimizer"], batches(form_of(), 1, 3))
    with pytest.raises(InputError, match="call inherit_optimizer before training"):
        inherit_of(given)


def test_state_of_a_kind_that_is_not_known_is_asked_for() -> None:
    given = pair(lambda p: Odd(p, lr=1e-3, momentum=0.9))
    with pytest.raises(InputError, match=r"holds 'variance' of shape .* kinds=\{'variance'"):
        inherit_of(given)
    assert inherit_of(given, kinds={"variance": "gradient squared"}) == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64], ids=str)
def test_state_of_any_dtype_is_selected(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6, dtype=dtype), nn.Linear(6, 2, dtype=dtype))
    x = torch.randn(2, 3, dtype=dtype)
    source = torch.optim.Adam(model.parameters())
    model(x).abs().square().sum().backward()
    source.step()
    made = eslkit.resize(model, {"0": 3}, init="last", example_inputs=x)
    optimizer = torch.optim.Adam(made.parameters())
    inherit_optimizer(
        optimizer, source, model=made, source_model=model, init="last", example_inputs=x
    )
    for key in ("exp_avg", "exp_avg_sq"):
        want = source.state[model[1].weight][key]
        have = optimizer.state[made[1].weight][key]
        assert have.dtype == want.dtype
        assert torch.equal(have, want[:, 3:])


def test_least_squares_carries_what_its_selection_keeps() -> None:
    given = pair()
    x = given["example_inputs"]
    init = policies.least_squares([x])
    made = eslkit.shrink(given["source_model"], init=init, example_inputs=x)
    optimizer = OPTIMIZERS["adam"](made.parameters())
    inherit_of(given, optimizer=optimizer, model=made, init=init)
    inherit_of(given)
    pairs = zip(made.parameters(), given["model"].parameters(), strict=True)
    for left, right in pairs:
        want = given["optimizer"].state[right]["exp_avg"]
        assert torch.equal(optimizer.state[left]["exp_avg"], want)
