"""Model + example inputs -> `torch.fx` graph of ATen operations.

The model's own Python code is run once on fake tensors (no memory, no arithmetic) while
`make_fx` writes down every ATen operation. Composite operations (linear, einsum, multi-head
attention, instance norm ...) fall apart into a small uniform set on the way, and
functionalization turns writes into views into pure operations. Control flow on shapes is simply
followed. A model whose control flow looks at values cannot run on fake tensors; it is traced on
real ones.

The run happens on a structural copy whose parameters are placeholders, so nothing that the
model's code stores on itself reaches the caller's model.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, library, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import stateless
from torch.utils import _pytree as pytree

from eslkit.errors import InputError, TraceError

__all__ = [
    "Call",
    "Exported",
    "export",
    "prepare",
    "skeleton",
    "source_line",
    "tensor_leaves",
    "trace_context",
]


def _probe(x: Tensor, call: int, leaving: bool) -> Tensor:  # noqa: FBT001  torch's calling convention
    return x.new_empty(())


# Lighter than a `custom_op`, whose wrappers cost milliseconds for each of the hundreds of probes.
_LIBRARY = library.Library("eslkit", "DEF")
_LIBRARY.define("probe(Tensor x, int call, bool leaving) -> Tensor")
_LIBRARY.impl("probe", _probe, "CompositeExplicitAutograd")


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
    buffers: frozenset[str] = frozenset()
    fake: bool = True
    """Whether the model's code ran on fake tensors."""
    train: bool = True
    """Whether the model's own code ran in train mode (it may return more there)."""

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of the tensor that `node` stands for."""
        return tuple(int(size) for size in node.meta["val"].shape)


def export(
    model: nn.Module,
    inputs: tuple[Any, ...],
    keywords: Mapping[str, Any],
    *,
    train: bool = True,
    calls: bool = True,
) -> Exported:
    """Write down the operations of `model(*inputs, **keywords)`.

    The model's own code runs in train mode where it can (heads and outputs that only training
    uses are then seen), torch's layers in eval mode.

    Args:
        model: any module; it is not touched.
        inputs: positional example inputs (tensors, or trees of them).
        keywords: keyword example inputs.
        train: whether to try train mode first.
        calls: whether to note the calls of modules, which can take as long as the operations do;
            without, the result has no calls and no owners.

    Raises:
        TraceError: the model's code failed on these inputs.
        InputError: the model cannot be copied.
    """
    failures: list[BaseException] = []
    for fake, training in ((True, train), (True, False), (False, False)):
        try:
            return _export(model, inputs, keywords, fake=fake, train=training, calls=calls)
        except InputError:
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


_REGISTRIES = ("_parameters", "_buffers", "_modules")


def skeleton(model: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of `model` in which every tensor `t` is `make(t)`; sharing is kept.

    Raises:
        InputError: the model holds something that cannot be copied.
    """
    memo: dict[int, Any] = {}
    for tensor in _own_tensors(model):
        made = make(tensor)
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = made
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} cannot be copied with copy.deepcopy: {error}. eslkit works on "
            "copies; remove what cannot be copied (locks, open files, generators) from the model."
        ) from error


def _own_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that other code left as plain attributes.

    Those (a weight that weight norm computes, a list of last outputs) cannot all be deep-copied.
    """
    seen: set[int] = set()
    pending: list[Any] = []
    for module in model.modules():
        pending += [vars(module)[name] for name in _REGISTRIES[:2]]
        pending += [value for key, value in vars(module).items() if key not in _REGISTRIES]
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, Mapping):
            pending.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            pending.extend(item)


@contextmanager
def trace_context() -> Generator[None]:
    """No gradients, no fused attention kernels; every global is put back."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    rng = torch.get_rng_state()
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            torch.backends.mha.set_fastpath_enabled(False)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        torch.set_rng_state(rng)


def _export(
    model: nn.Module,
    inputs: tuple[Any, ...],
    keywords: Mapping[str, Any],
    *,
    fake: bool,
    train: bool,
    calls: bool,
) -> Exported:
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else None

    def stand_in(tensor: Tensor) -> Tensor:
        data = tensor.detach()
        if mode is None:
            return data.clone()
        if isinstance(data, FakeTensor):  # of another mode: only its form counts
            with mode:
                return torch.empty_strided(
                    data.shape, data.stride(), dtype=data.dtype, device=data.device
                )
        return mode.from_tensor(data)

    parameters = {name: stand_in(p) for name, p in model.named_parameters()}
    buffers = {name: stand_in(b) for name, b in model.named_buffers()}
    bare = skeleton(model, lambda t: torch.empty_like(t.detach(), device="meta"))
    _restore_plain_attributes(model, bare)
    prepare(bare, train=train)
    leaves, spec = pytree.tree_flatten((inputs, dict(keywords)))
    where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    tensors = [stand_in(leaves[i]) for i in where]
    recorder = _CallRecorder(bare)

    def forward(state: dict[str, Tensor], tensors: list[Tensor]) -> list[Tensor]:
        filled = list(leaves)
        for i, tensor in zip(where, tensors, strict=True):
            filled[i] = tensor
        args, kwargs = pytree.tree_unflatten(filled, spec)
        with stateless._reparametrize_module(  # pyright: ignore[reportPrivateUsage]
            bare, state, tie_weights=True
        ):
            result = bare(*args, **kwargs)
        outputs = tensor_leaves(result)
        recorder.num_outputs = len(outputs)
        return [*outputs, *recorder.probes]  # as outputs, so that no clean-up drops the probes

    state = {**parameters, **buffers}
    with ExitStack() as stack:
        stack.enter_context(trace_context())
        if mode is not None:
            stack.enter_context(mode)
        if calls:
            stack.enter_context(recorder)
        traced = make_fx(
            torch.func.functionalize(forward), tracing_mode="real", record_stack_traces=True
        )(state, tensors)
    exported = _collect(traced.graph, list(state), recorder)
    return replace(exported, buffers=frozenset(buffers), fake=fake, train=train)


def prepare(model: nn.Module, *, train: bool) -> None:
    """Set the mode in which a model is traced; the model is changed.

    With `train`, the model's own code is in train mode, so that outputs and heads which only
    training uses are seen; torch's layers are in eval mode all the same (their labels do not
    depend on it, and a batch norm in train mode would refuse maps of one position).
    """
    model.train(train)
    if not train:
        return
    for module in model.modules():
        if type(module).__module__.startswith("torch.nn."):
            module.training = False


def _restore_plain_attributes(model: nn.Module, bare: nn.Module) -> None:
    """Plain tensor attributes are constants of the trace: they need their values."""
    for (_, module), (_, twin) in zip(model.named_modules(), bare.named_modules(), strict=True):
        for key, value in vars(module).items():
            if isinstance(value, Tensor):
                vars(twin)[key] = value.detach()


def tensor_leaves(result: Any) -> list[Tensor]:
    """Tensors in a result of any shape: nested containers, dataclasses, plain objects."""
    found: list[Tensor] = []
    pending: list[Any] = [result]
    while pending:
        item = pending.pop(0)
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, Mapping):
            pending = list(item.values()) + pending
        elif isinstance(item, (list, tuple)):
            pending = list(item) + pending
        elif hasattr(item, "__dict__") and not isinstance(item, (type, nn.Module)):
            pending = list(vars(item).values()) + pending
    return found


class _CallRecorder:
    """Hooks on every module that leave a probe operation on each tensor going in and out."""

    def __init__(self, model: nn.Module) -> None:
        self.probes: list[Tensor] = []
        self.num_outputs = 0
        self.paths: list[str] = []
        self.simple: list[bool] = []
        self._stack: list[int] = []
        self._names = {id(module): name for name, module in model.named_modules()}
        self._model = model
        self._handles: list[Any] = []

    def __enter__(self) -> _CallRecorder:
        for module in self._model.modules():
            self._handles.append(
                module.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)
            )
            self._handles.append(module.register_forward_hook(self._leave))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = len(self.paths)
        self.paths.append(self._names[id(module)])
        self._stack.append(call)
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        self.simple.append(
            len(args) == 1 and not kwargs and len(tensors) == 1 and tensors[0] is args[0]
        )
        self._mark(tensors, call, leaving=False)

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        call = self._stack.pop()
        self.simple[call] = self.simple[call] and isinstance(result, Tensor)
        self._mark(tensor_leaves(result), call, leaving=True)

    def _mark(self, tensors: Sequence[Tensor], call: int, *, leaving: bool) -> None:
        for tensor in tensors:
            self.probes.append(torch.ops.eslkit.probe(tensor, call, leaving))


def _collect(graph: fx.Graph, names: list[str], recorder: _CallRecorder) -> Exported:
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    parameters = dict(zip(placeholders, names, strict=False))
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    outputs = tuple(result[: recorder.num_outputs])
    nodes = list(graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    entered: dict[int, list[fx.Node]] = {}
    left: dict[int, list[fx.Node]] = {}
    bounds: dict[int, tuple[int, int]] = {}
    for node in nodes:
        if node.target is torch.ops.eslkit.probe.default:
            source, call, leaving = node.args
            (left if leaving else entered).setdefault(call, []).append(source)
            first, _ = bounds.get(call, (position[node], 0))
            bounds[call] = (first, position[node] + 1)
    calls = tuple(
        Call(
            number=call,
            path=recorder.paths[call],
            inputs=tuple(entered.get(call, ())),
            outputs=tuple(left.get(call, ())),
            simple=recorder.simple[call],
            start=bounds[call][0],
            stop=bounds[call][1],
        )
        for call in sorted(bounds)
    )
    return Exported(
        graph=graph,
        parameters=parameters,
        inputs=tuple(placeholders[len(names) :]),
        outputs=outputs,
        calls=calls,
        owners=_owners(nodes, calls),
    )


def _owners(nodes: list[fx.Node], calls: Sequence[Call]) -> dict[fx.Node, str]:
    paths = [""] * len(nodes)
    for call in calls:  # in order of entry: inner calls come later and overwrite
        paths[call.start : call.stop] = [call.path] * (call.stop - call.start)
    return dict(zip(nodes, paths, strict=True))


def source_line(node: fx.Node) -> str:
    """`file.py:12 'x = x + y'`: the line of the model's code that made `node`."""
    lines = str(node.meta.get("stack_trace") or "").strip().splitlines()
    heads = [i for i, line in enumerate(lines) if line.lstrip().startswith("File ")]
    own = [i for i in heads if "/torch/" not in lines[i] and "/eslkit/graph/" not in lines[i]]
    if not own:
        return "source unknown"
    i = own[-1]
    parts = lines[i].split('"')
    number = lines[i].split("line ")[1].split(",")[0]
    code = lines[i + 1].strip() if i + 1 < len(lines) else ""
    return f"{parts[1].rsplit('/', 1)[-1]}:{number} `{code}`"
