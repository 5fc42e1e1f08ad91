"""A forward pass written down, operation by operation, as an `fx.Graph`.

A dispatch mode sees every ATen operation after composite operations (linear, einsum, attention,
instance norm ...) have fallen apart, and before anything is computed. Writes in place are turned
into pure operations on the way: the tensor that was written stands for the result from then on,
what it is a view of is put together anew, and other views of that are taken anew when read.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from eslkit.graph.constants import constant_values
from eslkit.graph.forms import call

__all__ = ["Mark", "Recorder", "UnfollowedViewError", "source_line", "tensor_leaves"]

aten = torch.ops.aten

_QUESTIONS = frozenset({aten._local_scalar_dense.default, aten.equal.default})
"""Operations whose result is a number or a truth value, with which the code goes on."""


class UnfollowedViewError(Exception):
    """A tensor shares memory with another in a way that cannot be written down."""


class Mark:
    """One call of one module, while it is written down."""

    def __init__(self, path: str, simple: bool, start: int) -> None:  # noqa: FBT001
        self.path = path
        self.simple = simple
        self.start = self.stop = start
        self.inputs: list[fx.Node] = []
        self.outputs: list[fx.Node] = []


@dataclass(frozen=True)
class _View:
    """How a tensor is a view of another one."""

    base: Tensor
    func: Any
    args: tuple[Any, ...]
    """All arguments behind the first."""
    item: int | None
    """Which of several results it is."""


class _Held:
    """What stands for a tensor: its node, and how often its memory had been written by then."""

    __slots__ = ("item", "node", "version", "view")

    def __init__(self, node: fx.Node, item: int | None, version: int, view: _View | None) -> None:
        self.node, self.item, self.version, self.view = node, item, version, view


class Recorder(TorchDispatchMode):
    """Writes operations into `graph`, and the calls of a model's modules into `marks`.

    Args:
        check: called with each new operation; it may raise to stop the run.
        check_call: called with the number of a call and its results' tensors; it may raise.
    """

    def __init__(
        self,
        *,
        check: Callable[[fx.Node], None] | None = None,
        check_call: Callable[[int, list[Tensor]], None] | None = None,
    ) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.marks: list[Mark] = []
        self.stack: list[int] = []
        """Numbers of the calls that are under way."""
        self.owners: dict[fx.Node, str] = {}
        self.times = 1.0
        """How often each operation stands for one (see `graph.recurrence`)."""
        self._count = 0
        self._held: dict[Tensor, _Held] = {}  # strong: an id must not be given twice
        self._storages: dict[int, Tensor] = {}
        """Memory -> the tensor that has all of it."""
        self._versions: dict[Tensor, int] = {}
        """Such a tensor -> how often its memory was written."""
        self._source: tuple[str, int] | None = None
        self._check = check
        self._check_call = check_call

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and asking takes a tenth of the time

    def place(self, name: str, tensor: Tensor) -> fx.Node:
        """A placeholder for a tensor that is there before the run."""
        node = self._new(self.graph.placeholder(name), tensor)
        self._hold(tensor, node)
        return node

    def knows(self, tensor: Tensor) -> bool:
        """Whether the tensor was there before the run, or made by it."""
        return tensor in self._held

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The node that stands for a tensor now; a constant where nothing made it."""
        held = self._held.get(tensor) or self._unknown(tensor)
        view = held.view
        if view is not None:
            version = self._versions[self._root(tensor)]
            if held.version != version:  # its memory was written through another tensor
                source = self.node_of(view.base)
                held.node = self._emit(view.func, [source, *view.args], {}, tensor)
                held.item, held.version = view.item, version
        if held.item is not None:
            item = self.graph.call_function(operator.getitem, (held.node, held.item))
            owner = self.owners[held.node]
            held.node, held.item = self._new(item, tensor), None
            self.owners[item] = owner
        return held.node

    def _root(self, tensor: Tensor) -> Tensor:
        view = self._held[tensor].view
        while view is not None:
            tensor = view.base
            view = self._held[tensor].view
        return tensor

    def _new(self, node: fx.Node, value: Any) -> fx.Node:
        node.meta["val"] = value
        self.owners[node] = self.marks[self.stack[-1]].path if self.stack else ""
        self._count += 1
        return node

    def _emit(self, target: Any, args: list[Any], kwargs: dict[str, Any], value: Any) -> fx.Node:
        """An operation in the graph."""
        node = self.graph.create_node("call_function", target, tuple(args), kwargs)
        node.meta["source"], node.meta["times"] = self._source, self.times
        self._new(node, value)
        if self._check is not None:
            self._check(node)
        return node

    def _hold(
        self, tensor: Tensor, node: fx.Node, item: int | None = None, view: _View | None = None
    ) -> _Held:
        if view is None:
            self._storages[_storage(tensor)] = tensor
            self._versions[tensor] = 0
        held = self._held[tensor] = _Held(node, item, 0, view)
        held.version = self._versions[self._root(tensor)]
        return held

    def _unknown(self, tensor: Tensor) -> _Held:
        """A constant, or another handle (`x.data`) on a tensor that is known."""
        root = self._storages.get(_storage(tensor))
        if root is None:
            node = self.graph.create_node("get_attr", f"_constant{self._count}")
            return self._hold(tensor, self._new(node, tensor))
        form = (tensor.shape, tensor.stride(), tensor.storage_offset())
        for other in reversed(self._held):
            if (other.shape, other.stride(), other.storage_offset()) == form and (
                self._root(other) is root
            ):
                view = _View(other, aten.detach.default, (), None)
                return self._hold(tensor, self.node_of(other), None, view)
        raise UnfollowedViewError(
            f"a tensor of shape {tuple(tensor.shape)} shares memory with another one in a way that "
            "cannot be followed"
        )

    def _write(self, tensor: Tensor, node: fx.Node, item: int | None) -> None:
        """From now on a node stands for `tensor`, and in what it is a view of."""
        held = self._held[tensor]
        chain: list[_Held] = []
        while held.view is not None:
            base = held.view.base
            below = self.node_of(base)  # as it was before
            held.node, held.item = node, item
            held.version = self._versions[self._root(tensor)]
            target, args = _put_back(held.view, below, self.node_of(tensor), base)
            node, item = self._emit(target, args, {}, base), None
            chain.append(held)
            tensor, held = base, self._held[base]
        held.node, held.item = node, item
        self._versions[tensor] += 1
        held.version = self._versions[tensor]
        for other in chain:
            other.version = held.version

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.inplace_view in func.tags:
            self._keep_form(args[0])
        if func in _QUESTIONS:
            answer = self._answer(func, args)
            if answer is not None:
                return answer
        result = call(func, args, kwargs)
        results = result if isinstance(result, (list, tuple)) else (result,)
        if not any(isinstance(item, Tensor) for item in results):
            return result  # a number: the code goes on with it
        frame = inspect.currentframe()
        self._source = _source(frame.f_back if frame is not None else None)
        nodes = [self._argument(arg) for arg in args]
        named = {name: self._argument(arg) for name, arg in kwargs.items()}
        target, views = func, _is_view(func)
        written = _written(func, args, kwargs)
        if written:
            target, named = _functional(func, named)
        node = self._emit(target, nodes, named, result)
        for i, item in enumerate(results):
            number = i if result is not item else None
            if not isinstance(item, Tensor):
                continue
            if any(item is tensor for tensor in written):
                self._write(item, node, number)
            elif views and item is not args[0]:
                self._hold(item, node, number, _View(args[0], func, tuple(nodes[1:]), number))
            else:
                self._hold(item, node, number)
        return result

    def _answer(self, func: Any, args: tuple[Any, ...]) -> Any:
        """What a question asked of constants gives; None where not all are, or it needs no help."""
        if not all(isinstance(arg, FakeTensor) for arg in args):
            return None
        nodes = [self.node_of(arg) for arg in args]
        values = constant_values(nodes)
        if values is None:
            return None
        with no_dispatch():
            return func(*(values[node] for node in nodes))

    def _keep_form(self, tensor: Tensor) -> None:
        """Nodes that `tensor` stood for keep its form, which is about to change (`transpose_`)."""
        before = aten.detach.default(tensor)
        for node in self.graph.nodes:
            value = node.meta["val"]
            if value is tensor:
                node.meta["val"] = before
            elif isinstance(value, (list, tuple)):
                node.meta["val"] = [before if item is tensor else item for item in value]

    def _argument(self, arg: Any) -> Any:
        if isinstance(arg, Tensor):
            return self.node_of(arg)
        if isinstance(arg, (list, tuple)):
            return [self._argument(item) for item in arg]
        return arg

    def watch(self, model: nn.Module) -> Iterator[Any]:
        """Hooks on every module of `model` that note its calls."""
        names = {id(module): name for name, module in model.named_modules()}

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found: list[Any] = list(args)
            if kwargs or not all(isinstance(arg, Tensor) for arg in args):
                found = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            simple = len(args) == 1 and not kwargs and len(found) == 1 and found[0] is args[0]
            self.stack.append(len(self.marks))
            self.marks.append(Mark(names[id(module)], simple, self._count))
            self.marks[-1].inputs += [self.node_of(tensor) for tensor in found]

        def leave(module: nn.Module, args: Any, result: Any) -> None:
            call, found = self.stack[-1], tensor_leaves(result)
            mark = self.marks[call]
            mark.simple = mark.simple and isinstance(result, Tensor)
            mark.outputs += [self.node_of(tensor) for tensor in found]
            mark.stop = self._count
            if self._check_call is not None:
                self._check_call(call, found)
            self.stack.pop()

        for module in nn.Module.modules(model):
            yield module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
            yield module.register_forward_hook(leave)


def _storage(tensor: Tensor) -> int:
    """Which memory a tensor is a view of; on `meta` there is none, but it still has a number."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def _is_view(func: Any) -> bool:
    """Whether an operation gives another view of its first argument."""
    return not func._schema.is_mutable and any(
        result.alias_info is not None for result in func._schema.returns
    )


def _put_back(view: _View, below: fx.Node, node: fx.Node, base: Tensor) -> tuple[Any, list[Any]]:
    """The operation that puts a new value of a view into what it is a view of."""
    name = view.func.overloadpacket.__name__
    args: list[Any] = list(view.args)
    item = view.item or 0
    if name == "slice":
        return aten.slice_scatter.default, [below, node, *args]
    if name == "select":
        return aten.select_scatter.default, [below, node, *args]
    if name == "unbind":
        return aten.select_scatter.default, [below, node, *(args or [0]), item]
    if name in ("split", "split_with_sizes"):
        axis = args[1] if len(args) > 1 else 0
        sizes = args[0]
        start = sizes * item if isinstance(sizes, int) else sum(sizes[:item])
        length = node.meta["val"].shape[axis]
        return aten.slice_scatter.default, [below, node, axis, start, start + length]
    if name == "transpose":
        return aten.transpose.int, [node, *args]
    if name == "t":
        return aten.t.default, [node]
    if name == "permute":
        order = [axis % len(args[0]) for axis in args[0]]
        return aten.permute.default, [node, [order.index(axis) for axis in range(len(order))]]
    if name in ("view", "squeeze", "unsqueeze", "detach", "alias", "lift_fresh", "_reshape_alias"):
        return aten.view.default, [node, list(base.shape)]
    raise UnfollowedViewError(f"memory is written through {name}, which cannot be followed")


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes in place."""
    schema = func._schema
    if not schema.is_mutable:
        return []
    found: list[Tensor] = []
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [x for x in pytree.tree_leaves(value) if isinstance(x, Tensor)]
    return found


def _functional(func: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The operation without the writing: `add_` -> `add`, `add.out` -> `add`."""
    outs = {a.name for a in func._schema.arguments if a.is_out}
    named = {name: value for name, value in named.items() if name not in outs}
    space, _, name = func._schema.name.partition("::")
    packet = getattr(getattr(torch.ops, space), name.removesuffix("_"), None)
    overload = func._overloadname.removesuffix("out").removesuffix("_") or "default"
    return getattr(packet, overload, func), named


def _source(frame: FrameType | None) -> tuple[str, int] | None:
    """File and line of the nearest frame outside torch; None where all is torch's own code."""
    while frame is not None:
        side = _side(frame.f_code.co_filename)
        if side != "torch":
            return (frame.f_code.co_filename, frame.f_lineno) if side == "model" else None
        frame = frame.f_back
    return None


@functools.cache
def _side(file: str) -> str:
    """Whose code a file holds: torch's, ours (where the run was started), or the model's."""
    place = file.replace("\\", "/")
    if "/torch/" in place or place.endswith("/eslkit/graph/recurrence.py"):
        return "torch"
    return "ours" if "/eslkit/graph/" in place else "model"


def source_line(node: fx.Node) -> str:
    """`file.py:12 'x = x + y'`: the line of the model's code that made `node`.

    Empty where a layer of torch made it without any code of the model's.
    """
    found = node.meta.get("source")
    if found is None:
        return ""
    file, number = found
    return f"{file.rsplit('/', 1)[-1]}:{number} `{linecache.getline(file, number).strip()}`"


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
