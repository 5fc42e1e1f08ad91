"""Model + example inputs -> `torch.fx` graph of ATen operations.

The model's own Python code is run once on tensors without memory (device `meta`) while a
recorder writes down every ATen operation. Composite operations (linear, einsum, multi-head
attention, instance norm ...) fall apart into a small uniform set on the way, and writes in place
become pure operations. Control flow on shapes is simply followed. Code that minds the device runs
on fake tensors instead, and code whose control flow looks at values on real ones.

The run happens on a structural copy whose parameters are stand-ins, so nothing that the model's
code stores on itself reaches the caller's model.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from eslkit.errors import InputError, TraceError
from eslkit.graph.leftovers import check_leftovers, leftovers
from eslkit.graph.record import Recorder, source_line, tensor_leaves
from eslkit.graph.recurrence import ShortSequences
from eslkit.graph.skeleton import prepare, skeleton

__all__ = [
    "Call",
    "Exported",
    "Runner",
    "World",
    "export",
    "run",
    "source_line",
    "tensor_leaves",
]


@dataclass(frozen=True)
class Call:
    """One call of one module: the tensors that went in and came out, as graph nodes."""

    number: int
    """Calls are numbered in the order in which they were entered, those without tensors too."""
    path: str
    inputs: tuple[fx.Node, ...]
    """Tensors among the arguments, in order."""
    outputs: tuple[fx.Node, ...]
    simple: bool
    """Exactly one argument and it is a tensor, and exactly one tensor as the result."""
    start: int
    """Index of the first node inside the call, in graph order."""
    stop: int
    """Index behind the last node inside the call."""


@dataclass(frozen=True)
class Runner:
    """How a model's code is run to be written down."""

    kind: str
    """On tensors that are `meta`, `fake`, or `real`."""
    train: bool
    """Whether the model's own code runs in train mode (it may return more there)."""


@dataclass(frozen=True)
class Exported:
    """A model's forward pass as a graph of ATen operations."""

    graph: fx.Graph
    parameters: dict[fx.Node, str]
    """Placeholder of each parameter and buffer -> qualified name (the first, where tied)."""
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    calls: tuple[Call, ...]
    owners: dict[fx.Node, str]
    """Node -> qualified name of the innermost module whose call made it."""
    buffers: frozenset[str]
    frozen: frozenset[str]
    """Parameters that are not trained."""
    runner: Runner
    dead: frozenset[fx.Node]
    """Operations whose results nothing uses, not even as the result of a module."""
    updates: tuple[tuple[fx.Node, fx.Node], ...] = ()
    """Placeholders of parameters and buffers that the code writes, in place or by a new tensor
    (running statistics) -> what they hold behind the run."""

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of the tensor that `node` stands for."""
        return tuple(int(size) for size in node.meta["val"].shape)


def export(
    model: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any], *, train: bool = True
) -> Exported:
    """Write down the operations of `model(*inputs, **keywords)`.

    The model's own code runs in train mode where it can (heads and outputs that only training
    uses are then seen), torch's layers in eval mode.

    Args:
        model: any module; it is not touched.
        inputs: positional example inputs (tensors, or trees of them).
        keywords: keyword example inputs.
        train: whether to try train mode first.

    Raises:
        TraceError: the model's code failed on these inputs.
        InputError: the model cannot be copied, or holds a state of an earlier run.
    """
    failures: list[BaseException] = []
    ways = [("meta", train), ("fake", train), ("fake", False), ("real", False)]
    for kind, training in dict.fromkeys(ways):
        world = World(Runner(kind, training))
        try:
            return run(world.copy(model), inputs, keywords, world=world)
        except (InputError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001  the user's code may raise anything; told below
            failures.append(error)
    raise TraceError(_failure(model, inputs, failures[-1])) from failures[-1]


def _failure(model: nn.Module, inputs: Sequence[Any], error: BaseException) -> str:
    shapes = [tuple(x.shape) for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]
    frames = traceback.extract_tb(error.__traceback__)
    where = next(
        (
            f"{f.filename}:{f.lineno} `{f.line}`"
            for f in reversed(frames)
            if "/torch/" not in f.filename and "/eslkit/graph/" not in f.filename
        ),
        "the model's code",
    )
    return (
        f"{type(model).__name__} did not run on example inputs of shapes {shapes}: "
        f"{type(error).__name__}: {error} (at {where}). Check that `model(*example_inputs)` runs "
        "in eval mode, and pass inputs of a size that the model accepts."
    )


@contextmanager
def _trace_context() -> Generator[None]:
    """No gradients, no fused attention kernels, no compilation; every global is put back."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    rng = torch.get_rng_state()
    log = logging.getLogger("torch._subclasses.fake_tensor")
    quiet, log.disabled = log.disabled, True  # it would print every failure of a trial
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _uncompiled():
            torch.backends.mha.set_fastpath_enabled(False)
            yield
    finally:
        log.disabled = quiet
        torch.backends.mha.set_fastpath_enabled(fastpath)
        torch.set_rng_state(rng)


def _uncompiled() -> AbstractContextManager[object]:
    """What the user has compiled runs as it was written; else the recorder would be compiled."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


class World:
    """Where a model's code runs: on tensors without memory, on fake ones, or on real ones."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        fake = runner.kind == "fake"
        self._mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else None

    def stand_in(self, tensor: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """What stands for `tensor`, at another shape if one is given; a real one keeps its own."""
        data = tensor.detach()
        if self.runner.kind == "meta":
            if shape is None:
                return torch.empty_like(data, device="meta")
            return torch.empty(shape, dtype=data.dtype, device="meta")
        if self._mode is None:
            return data.clone()
        if shape is None and not isinstance(data, FakeTensor):
            return self._mode.from_tensor(data)
        with self._mode:  # a fake tensor of another mode: only its form counts
            return torch.empty(shape or data.shape, dtype=data.dtype, device=data.device)

    def copy(
        self,
        model: nn.Module,
        shape: Callable[[str, Tensor], Sequence[int] | None] | None = None,
        values: Callable[[str, Tensor], Tensor] | None = None,
    ) -> nn.Module:
        """A copy of `model` with stand-ins, ready to be run.

        Args:
            model: it is not touched.
            shape: name and tensor of a parameter or buffer -> its shape in the copy.
            values: the same -> the tensor in the copy, where code looks at values.
        """
        names = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}

        def make(tensor: Tensor) -> Tensor:
            name = names.get(id(tensor))
            if name is None:  # a plain attribute: a constant, whose values may be needed
                return self.stand_in(tensor) if self.runner.kind == "meta" else tensor.detach()
            if self.runner.kind == "real" and values is not None:
                return self.stand_in(values(name, tensor.detach()))
            return self.stand_in(tensor, shape(name, tensor) if shape else None)

        made = skeleton(model, make)
        prepare(made, train=self.runner.train)
        return made

    @contextmanager
    def context(self) -> Generator[None]:
        """The modes in which the model's code runs."""
        with ExitStack() as stack:
            stack.enter_context(_trace_context())
            if self.runner.kind == "meta":
                stack.enter_context(torch.device("meta"))
            if self._mode is not None:
                stack.enter_context(self._mode)
            yield


def run(
    bare: nn.Module,
    inputs: tuple[Any, ...],
    keywords: Mapping[str, Any],
    *,
    world: World,
    recorder: Recorder | None = None,
) -> Exported:
    """Write down one run of a model that `World.copy` has made.

    Args:
        bare: the copy.
        inputs: positional example inputs.
        keywords: keyword example inputs.
        world: what made the copy.
        recorder: what writes; a new one if left out.

    Raises:
        InputError: the model was run before, and its next run reads what that has left.
        Exception: whatever the model's code raises.
    """
    recorder = recorder or Recorder()
    state = {**dict(bare.named_parameters()), **dict(bare.named_buffers())}
    parameters = {recorder.place(name.replace(".", "_"), t): name for name, t in state.items()}
    leaves, spec = pytree.tree_flatten((inputs, dict(keywords)))
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = [world.stand_in(leaves[i]) for i in where]
    placed = tuple(recorder.place(f"input_{i}", tensor) for i, tensor in enumerate(tensors))
    for i, tensor in zip(where, tensors, strict=True):
        leaves[i] = tensor
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    handles = list(recorder.watch(bare))
    before = leftovers(bare)
    held = [
        (module, dict(vars(module)), dict(module._buffers))  # pyright: ignore[reportPrivateUsage]
        for module in nn.Module.modules(bare)
    ]
    try:
        with world.context(), ShortSequences(recorder), recorder:
            results = tensor_leaves(bare(*args, **kwargs))
        check_leftovers(before, recorder, placed)
        updates = tuple(_updates(bare, recorder, parameters))
    finally:
        for handle in handles:
            handle.remove()
        for module, attributes, buffers in held:  # the next run begins as this one did
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.update(buffers)  # pyright: ignore[reportPrivateUsage]
    outputs = tuple(recorder.node_of(tensor) for tensor in results)
    if outputs and all(node.op == "get_attr" for node in outputs):
        raise RuntimeError("what the model returns was not made by its forward pass")
    recorder.graph.output(outputs)
    calls = tuple(_calls(recorder))
    return Exported(
        graph=recorder.graph,
        parameters=parameters,
        inputs=placed,
        outputs=outputs,
        calls=calls,
        owners=recorder.owners,
        buffers=frozenset(dict(bare.named_buffers())),
        frozen=frozenset(name for name, p in bare.named_parameters() if not p.requires_grad),
        runner=world.runner,
        dead=_dead(recorder.graph, calls, {after for _, after in updates}),
        updates=updates,
    )


def _updates(
    bare: nn.Module, recorder: Recorder, parameters: Mapping[fx.Node, str]
) -> Iterator[tuple[fx.Node, fx.Node]]:
    """What parameters and buffers hold behind the run, where it is something else than before."""
    state = {**dict(bare.named_parameters()), **dict(bare.named_buffers())}
    for before, name in parameters.items():
        tensor = state.get(name)
        if tensor is not None and recorder.knows(tensor):
            after = recorder.node_of(tensor)
            if after is not before:
                yield before, after


def _dead(graph: fx.Graph, calls: Sequence[Call], kept: set[fx.Node]) -> frozenset[fx.Node]:
    kept = kept.union(node for call in calls for node in (*call.inputs, *call.outputs))
    dead: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "call_function" and node not in kept and all(u in dead for u in node.users):
            dead.add(node)
    return frozenset(dead)


def _calls(recorder: Recorder) -> Iterator[Call]:
    for number, mark in enumerate(recorder.marks):
        if mark.inputs or mark.outputs:
            inputs, outputs = tuple(mark.inputs), tuple(mark.outputs)
            yield Call(number, mark.path, inputs, outputs, mark.simple, mark.start, mark.stop)
