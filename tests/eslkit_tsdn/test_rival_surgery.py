"""The rivals' networks in eslkit's hands, like a stranger's: found, enlarged, shrunk, exported."""

from __future__ import annotations

import copy
import io
import os
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import eslkit
from eslkit_tsdn.complexity import true_flops
from eslkit_tsdn.models import TSDN, CBDNet, DeamNet, DrawnNBNet, NBNet
from tests.eslkit.families.laws import (
    assert_partition,
    assert_same_model,
    masked,
    plain_groups,
    size_of,
)
from tests.tolerances import FLOAT32_FORWARD, MASKED, PRESERVED

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "CBDNet": lambda: CBDNet((4, 6, 8), estimator_width=4),
    "NBNet": lambda: NBNet((4, 6, 8), skip_width=4, basis=3),
    "NBNet as drawn": lambda: DrawnNBNet((4, 6, 8), basis=3),
    "DeamNet": lambda: DeamNet(8, gate_width=2, levels=2, iterations=2),
    "ThSDN": lambda: TSDN((4, 6), stages=3),
}
THOROUGH = int(os.environ.get("LAW_EXAMPLES", "6")) >= 20
each = pytest.mark.parametrize("name", NETWORKS)
rivals = pytest.mark.parametrize("name", NETWORKS if THOROUGH else ("CBDNet", "NBNet", "DeamNet"))


def example() -> Tensor:
    return torch.rand(1, 4, 16, 24, dtype=torch.float64)


def made(name: str) -> nn.Module:
    return NETWORKS[name]().double().eval()


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@each
def test_all_channels_are_found(name: str) -> None:
    """What stays is the planes of the raw image, the subspaces, and what is never called."""
    model = made(name)
    graph = eslkit.trace(model, example_inputs=example())
    assert_partition(model, graph)
    allowed = (
        "the model's input",
        "the model's output",
        "concatenated with a tensor of fixed size",
    )
    if "NBNet" in name:
        allowed += ("copies of one would make singular",)
    if name == "DeamNet":
        allowed += ("the forward pass does not use it",)
    for group in graph.groups:
        assert group.protected is None or any(word in group.protected for word in allowed), (
            graph.explain(group.name)
        )
    halved = eslkit.shrink(model, example_inputs=example())
    assert size_of(halved) < (0.55 if name == "DeamNet" else 0.4) * size_of(model)
    assert type(halved) is type(model)
    assert run(halved, example()).shape == (1, 4, 16, 24)


def test_the_levels_of_deamnet_are_those_of_its_shared_u_net() -> None:
    graph = eslkit.trace(made("DeamNet"), example_inputs=example())
    assert len(graph.levels) == 3
    assert {graph.group(f"operator.middle.{i}.0").level for i in (0, 1)} == {2}


def test_the_skip_connections_of_cbdnet_are_added() -> None:
    graph = eslkit.trace(made("CBDNet"), example_inputs=example())
    assert graph.group("denoiser.encoder1.2").level == 0
    sources = graph.group("denoiser.encoder1.2").producers
    assert set(sources) == {"denoiser.encoder1.2", "denoiser.up1"}


@rivals
def test_narrowed_equals_masked(name: str) -> None:
    """Law 3."""
    model, x = made(name), example()
    graph = eslkit.trace(model, example_inputs=x)
    allowed = plain_groups(graph)
    assert len(allowed) > 0.9 * len(graph.resizable)
    widths = {g.name: max(1, g.width // 2) for g in graph.resizable if g.name in allowed}
    narrow = eslkit.resize(model, widths, init="first", example_inputs=x)
    MASKED.check(run(narrow, x), run(masked(model, graph, widths), x))


@rivals
def test_doubled_keeps_its_function_where_asked(name: str) -> None:
    """Law 4."""
    model, x = made(name), example()
    wide = eslkit.expand(model, width=2, init="preserve", example_inputs=x)
    assert size_of(wide) > 2 * size_of(model)
    PRESERVED.check(run(wide, x), run(model, x))


@rivals
@pytest.mark.parametrize("depth", [0, 1] if THOROUGH else [1])
def test_shrink_undoes_expand(name: str, depth: int) -> None:
    """Laws 5 and 7; with a level inserted too, at the bottom of every U."""
    model, x = made(name), torch.rand(1, 4, 32, 32, dtype=torch.float64)
    before = copy.deepcopy(model)
    big = eslkit.expand(model, width=2, depth=depth, init="first", example_inputs=x)
    levels = [key for key in big.state_dict() if ".level." in key]
    assert bool(levels) == bool(depth)
    assert run(big, x).shape == x.shape
    back = eslkit.shrink(big, width=0.5, depth=-depth, init="first", example_inputs=x)
    assert_same_model(back, model)
    assert_same_model(model, before)
    assert torch.equal(run(back, x), run(model, x))


@rivals
def test_what_is_made_can_be_trained_exported_and_saved(name: str) -> None:
    """Law 9, on the doubled and deepened network."""
    x = torch.rand(2, 4, 32, 32)
    network = eslkit.expand(NETWORKS[name](), width=2, depth=1, example_inputs=x)
    outputs = network.train()(x)
    images = outputs if isinstance(outputs, tuple) else (outputs,)
    sum((image - x).abs().mean() for image in images).backward()
    unused = {key for key, p in network.named_parameters() if p.grad is None}
    assert all(key.startswith("operator.unused.") for key in unused)
    network.eval()
    want = run(network, x)
    exported = torch.export.export(network, (x,)).module()
    FLOAT32_FORWARD.check(exported(x), want)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(network)
    other.load_state_dict(torch.load(file))
    assert torch.equal(run(other, x), want)


@each
def test_two_counters_agree_on_the_cost(name: str) -> None:
    """eslkit's own, from the graph, and torch's."""
    model = made(name)
    price = eslkit.cost(model, example_inputs=example())
    assert price.flops == true_flops(model, shape=tuple(example().shape))


@pytest.mark.parametrize("name", NETWORKS if THOROUGH else ("NBNet",))
def test_compiled_is_the_same(name: str) -> None:
    model, x = NETWORKS[name]().eval(), torch.rand(1, 4, 16, 16)
    compiled = torch.compile(model, backend="aot_eager")
    FLOAT32_FORWARD.check(run(compiled, x), run(model, x))


@pytest.mark.parametrize("name", NETWORKS if THOROUGH else ("NBNet",))
def test_onnx_takes_images_of_any_size(name: str) -> None:
    """Inverses are written out, sizes are free in steps of what the network halves."""
    pytest.importorskip("onnx", reason="needs onnx and onnxscript")
    pytest.importorskip("onnxscript", reason="needs onnx and onnxscript")
    from onnx.reference import ReferenceEvaluator

    model = NBNet((3, 4), skip_width=3, basis=2) if name == "NBNet" else NETWORKS[name]()
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        free = {2: 4 * torch.export.Dim("h", max=99), 3: 4 * torch.export.Dim("w", max=99)}
        x = torch.rand(1, 4, 24, 40)
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False, dynamic_shapes=(free,))
        session = ReferenceEvaluator(program.model_proto)
        for height, width in ((24, 40), (16, 12)):
            x = torch.rand(1, 4, height, width)
            [got] = session.run(None, {program.model_proto.graph.input[0].name: x.numpy()})
            FLOAT32_FORWARD.check(torch.from_numpy(got), run(model, x))
