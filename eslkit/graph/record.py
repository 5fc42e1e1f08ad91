"""A forward pass written down, operation by operation, as an `fx.Graph`.

A dispatch mode sees every ATen operation after composite operations (linear, einsum, attention,
instance norm ...) have fallen apart, and before anything is computed. Writes in place are turned
into pure operations on the way: the tensor that was written stands for the result from then on.
Reading a tensor whose memory was written through another one (a view that is written into, the
base of which is read afterwards) needs true functionalization: then `AliasedWriteError` is raised.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, library, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["AliasedWriteError", "Mark", "Recorder", "source_line", "tensor_leaves"]


def _probe(x: Tensor, call: int, leaving: bool) -> Tensor:  # noqa: FBT001  torch's calling convention
    return x.new_empty(())


# Hooks see wrapped tensors under functionalization; the probe carries them to the recorder.
_LIBRARY = library.Library("eslkit", "DEF")
_LIBRARY.define("probe(Tensor x, int call, bool leaving) -> Tensor")
_LIBRARY.impl("probe", _probe, "CompositeExplicitAutograd")


class AliasedWriteError(Exception):
    """A tensor is read whose memory was written through another tensor."""


class Mark:
    """One call of one module, while it is written down."""

    def __init__(self, path: str, simple: bool, start: int) -> None:  # noqa: FBT001
        self.path = path
        self.simple = simple
        self.start = self.stop = start
        self.inputs: list[fx.Node] = []
        self.outputs: list[fx.Node] = []


class _Held:
    """What stands for a tensor: its node, and the state of its memory when it was made."""

    __slots__ = ("item", "node", "storage", "version")

    def __init__(self, node: fx.Node, item: int | None, storage: int, version: int) -> None:
        self.node, self.item, self.storage, self.version = node, item, storage, version


class Recorder(TorchDispatchMode):
    """Writes operations into `graph`, and the calls of a model's modules into `marks`.

    Args:
        check: called with each new node; it may raise to stop the run.
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
        self.aliased = False
        self._count = 0
        self._held: dict[Tensor, _Held] = {}  # strong: an id must not be given twice
        self._versions: dict[int, int] = {}
        self._check = check
        self._check_call = check_call

    def place(self, name: str, tensor: Tensor) -> fx.Node:
        """A placeholder for a tensor that is there before the run."""
        node = self._new(self.graph.placeholder(name), tensor)
        self._hold(tensor, node)
        return node

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The node that stands for a tensor now; a constant where nothing made it."""
        held = self._held.get(tensor)
        if held is None:
            held = self._unknown(tensor)
        if held.version != self._versions[held.storage]:
            self.aliased = True
            raise AliasedWriteError
        if held.item is not None:
            item = self.graph.call_function(operator.getitem, (held.node, held.item))
            owner = self.owners[held.node]
            held.node, held.item = self._new(item, tensor), None
            self.owners[item] = owner
        return held.node

    def _new(self, node: fx.Node, value: Any) -> fx.Node:
        node.meta["val"] = value
        self.owners[node] = self.marks[self.stack[-1]].path if self.stack else ""
        self._count += 1
        return node

    def _hold(self, tensor: Tensor, node: fx.Node, item: int | None = None) -> None:
        storage = _storage(tensor)
        version = self._versions.setdefault(storage, 0)
        self._held[tensor] = _Held(node, item, storage, version)

    def _unknown(self, tensor: Tensor) -> _Held:
        """A constant, or another handle (`x.data`) on a tensor that is known."""
        storage = _storage(tensor)
        form = (tensor.shape, tensor.stride(), tensor.storage_offset())
        if storage in self._versions:
            for other, held in reversed(self._held.items()):
                same = (other.shape, other.stride(), other.storage_offset()) == form
                if held.storage == storage and same:
                    self._held[tensor] = held
                    return held
            self.aliased = True
            raise AliasedWriteError
        node = self.graph.create_node("get_attr", f"_constant{self._count}")
        self._hold(tensor, self._new(node, tensor))
        return self._held[tensor]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.eslkit.probe.default:
            self._mark(*args)
            return args[0]
        result = func(*args, **kwargs)
        tensors = result if isinstance(result, (list, tuple)) else (result,)
        if not any(isinstance(item, Tensor) for item in tensors):
            return result  # a number: the code goes on with it
        nodes = [self._argument(arg) for arg in args]
        named = {name: self._argument(arg) for name, arg in kwargs.items()}
        written = _written(func, args, kwargs)
        target = func
        if written:
            target, named = _functional(func, named)
        node = self.graph.create_node("call_function", target, tuple(nodes), named)
        node.meta["source"] = _source(inspect.currentframe().f_back)  # type: ignore[union-attr]
        self._new(node, result)
        for tensor in written:
            held = self._held[tensor]
            self._versions[held.storage] += 1
            held.version = self._versions[held.storage]
        if isinstance(result, Tensor):
            self._hold(result, node)
        else:
            for i, item in enumerate(tensors):
                if isinstance(item, Tensor):
                    self._hold(item, node, i)
        if self._check is not None:
            self._check(node)
        return result

    def _argument(self, arg: Any) -> Any:
        if isinstance(arg, Tensor):
            return self.node_of(arg)
        if isinstance(arg, (list, tuple)):
            return [self._argument(item) for item in arg]
        return arg

    def _mark(self, tensor: Tensor, call: int, leaving: bool) -> None:  # noqa: FBT001
        mark = self.marks[call]
        (mark.outputs if leaving else mark.inputs).append(self.node_of(tensor))

    def watch(self, model: nn.Module) -> Iterator[Any]:
        """Hooks on every module of `model` that note its calls."""
        names = {id(module): name for name, module in model.named_modules()}

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            simple = len(args) == 1 and not kwargs and len(found) == 1 and found[0] is args[0]
            self.stack.append(len(self.marks))
            self.marks.append(Mark(names[id(module)], simple, self._count))
            for tensor in found:
                torch.ops.eslkit.probe(tensor, self.stack[-1], False)

        def leave(module: nn.Module, args: Any, result: Any) -> None:
            call, found = self.stack[-1], tensor_leaves(result)
            mark = self.marks[call]
            mark.simple = mark.simple and isinstance(result, Tensor)
            for tensor in found:
                torch.ops.eslkit.probe(tensor, call, True)
            mark.stop = self._count
            if self._check_call is not None:
                self._check_call(call, found)
            self.stack.pop()

        for module in model.modules():
            yield module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
            yield module.register_forward_hook(leave)


def _storage(tensor: Tensor) -> int:
    """Which memory a tensor is a view of; on `meta` there is none, but it still has a number."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


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
    if "/torch/" in place:
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
