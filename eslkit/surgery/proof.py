"""A resize is proved by running it: every module must give tensors of the sizes foretold.

The resized model's own code runs on fake tensors. Where it fails, or gives another size than the
labels foretold, the integers that the modules around the failure keep are tried at their new
values; what then still fails is reported with the module and the text of the failure.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from eslkit.graph.export import (
    export,
    prepare,
    skeleton,
    source_line,
    tensor_leaves,
    trace_context,
)
from eslkit.graph.trace import nodes_of
from eslkit.graph.values import Value
from eslkit.surgery.integers import Edit, apply_edits, candidates, known_edits
from eslkit.surgery.sizes import Sizes

__all__ = ["Failure", "prove"]

_MOST_RUNS = 48


@dataclass(frozen=True)
class Failure:
    """Where a resized model's own code did not go along."""

    path: str
    """The module."""
    text: str
    calls: int
    """How many module calls went well before."""
    stack: tuple[str, ...]
    """Modules being called when it happened, outermost first."""


def prove(model: nn.Module, sizes: Sizes) -> tuple[tuple[Edit, ...], Failure | None]:
    """Run the model at its new sizes on fake tensors.

    Returns:
        The attributes that must be set, and None or the failure that no attribute mends.
    """
    bare, mode = _resized(model, sizes)
    edits = known_edits(model, bare)
    apply_edits(bare, edits)
    failure = _try(bare, sizes, mode)
    runs = 1
    while failure is not None and runs < _MOST_RUNS:
        better: tuple[tuple[Edit, ...], Failure | None] | None = None
        for trial in _trials(bare, sizes, failure):
            kept = tuple(
                Edit(e.path, e.attribute, getattr(bare.get_submodule(e.path), e.attribute))
                for e in trial
            )
            apply_edits(bare, trial)
            after = _try(bare, sizes, mode)
            runs += 1
            if after is None or after.calls > failure.calls:
                better = (trial, after)
                break
            apply_edits(bare, kept)
        if better is None:
            return edits, failure
        edits, failure = (*edits, *better[0]), better[1]
    return edits, failure


def _try(bare: nn.Module, sizes: Sizes, mode: FakeTensorMode | None) -> Failure | None:
    return _run(bare, sizes, mode) or _compare_operations(bare, sizes)


def _compare_operations(bare: nn.Module, sizes: Sizes) -> Failure | None:
    """Every operation inside the modules must give the size foretold, too.

    Code that runs at another width may still do something else there: cut the channels into
    heads of another size, say. Operations are compared one by one as long as they are the same.
    """
    traced = sizes.traced
    train = traced.exported.train
    again = export(bare, traced.inputs, traced.keywords, train=train, calls=False)
    before = [n for n in traced.exported.graph.nodes if _is_operation(n)]
    after = [n for n in again.graph.nodes if _is_operation(n)]
    for number, (old, new) in enumerate(zip(before, after, strict=False)):
        if old.target != new.target:
            return None  # the code took another way, on purpose: its modules' sizes were right
        value = traced.labels.values.get(old)
        held = new.meta["val"]
        if not isinstance(value, Value) or not value.parts or not isinstance(held, Tensor):
            continue  # without labels nothing is foretold
        want = sizes.tensor(value)
        shape = tuple(held.shape)
        if len(want) != len(shape) or any(
            w is not None and w != s for w, s in zip(want, shape, strict=True)
        ):
            path = traced.exported.owners[old]
            text = f"{source_line(new)} gives a tensor of shape {shape}, not {want}"
            names = path.split(".")
            stack = tuple(".".join(names[:i]) for i in range(len(names) + 1))
            return Failure(path, text, len(traced.exported.calls) + number, stack)
    return None


def _is_operation(node: fx.Node) -> bool:
    return node.op == "call_function" and "probe" not in str(node.target)


def _resized(model: nn.Module, sizes: Sizes) -> tuple[nn.Module, FakeTensorMode | None]:
    mode = FakeTensorMode(allow_non_fake_inputs=True) if sizes.traced.exported.fake else None
    names = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}

    def make(tensor: Tensor) -> Tensor:
        name = names.get(id(tensor))
        if name is None:
            return tensor.detach()
        shape = sizes.parameter(name, tuple(tensor.shape))
        if mode is None:
            return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
        with mode:
            return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)

    return skeleton(model, make), mode


def _run(bare: nn.Module, sizes: Sizes, mode: FakeTensorMode | None) -> Failure | None:
    traced = sizes.traced
    prepare(bare, train=traced.exported.train)
    watch = _Watch(bare, sizes)

    def stand_in(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return mode.from_tensor(leaf.detach()) if mode else leaf.detach().clone()
        return leaf

    args, kwargs = pytree.tree_map(stand_in, (traced.inputs, dict(traced.keywords)))
    handles = watch.install()
    log = logging.getLogger("torch._subclasses.fake_tensor")
    quiet, log.disabled = log.disabled, True  # it would print every failure that is tried here
    try:
        with trace_context():
            if mode is not None:
                with mode:
                    bare(*args, **kwargs)
            else:
                bare(*args, **kwargs)
    except _OtherSizeError as error:
        return Failure(error.path, str(error), watch.calls, tuple(watch.stack))
    except Exception as error:  # noqa: BLE001  the user's code may raise anything: the reason
        path = watch.stack[-1] if watch.stack else ""
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return Failure(path, text, watch.calls, tuple(watch.stack))
    finally:
        log.disabled = quiet
        for handle in handles:
            handle.remove()
    return None


class _OtherSizeError(Exception):
    def __init__(self, path: str, text: str) -> None:
        super().__init__(text)
        self.path = path


def _foretold(sizes: Sizes, node: fx.Node) -> tuple[int | None, ...] | None:
    value = sizes.traced.labels.values.get(node)
    return sizes.tensor(value) if isinstance(value, Value) else None


class _Watch:
    """Compares the outputs of every call with the sizes foretold."""

    def __init__(self, model: nn.Module, sizes: Sizes) -> None:
        self.stack: list[str] = []
        self.calls = 0
        self._model = model
        self._names = {id(module): name for name, module in model.named_modules()}
        traced = sizes.traced
        self._expected = {  # now: inside the fake mode, labels could not be read
            call.number: [_foretold(sizes, node) for node in call.outputs]
            for call in traced.exported.calls
        }
        self._entered = 0
        self._numbers: list[int] = []

    def install(self) -> list[Any]:
        """Hooks on every module."""
        handles: list[Any] = []
        for module in self._model.modules():
            handles.append(module.register_forward_pre_hook(self._enter, prepend=True))
            handles.append(module.register_forward_hook(self._leave))
        return handles

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.stack.append(self._names[id(module)])
        self._numbers.append(self._entered)
        self._entered += 1

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        expected = self._expected.get(self._numbers.pop(), [])
        for tensor, want in zip(tensor_leaves(result), expected, strict=False):
            if want is not None:
                self._compare(tuple(tensor.shape), want)
        self.stack.pop()
        self.calls += 1

    def _compare(self, shape: tuple[int, ...], want: tuple[int | None, ...]) -> None:
        if len(want) != len(shape) or any(
            w is not None and w != s for w, s in zip(want, shape, strict=True)
        ):
            path = self.stack[-1]
            raise _OtherSizeError(
                path, f"{path or 'the model'} returned a tensor of shape {shape}, not {want}"
            )


def _trials(bare: nn.Module, sizes: Sizes, failure: Failure) -> list[tuple[Edit, ...]]:
    """Edits worth trying, nearest module first: all of a module at once, then one by one."""
    trials: list[tuple[Edit, ...]] = []
    for path in reversed(failure.stack):
        module = bare.get_submodule(path)
        if type(module).__module__.startswith("torch.nn.modules") and path != failure.path:
            continue
        found = candidates(module, path, _sizes_in(sizes, path))
        first: dict[str, Edit] = {}
        for edit in found:
            first.setdefault(edit.attribute, edit)
        if len(first) > 1:
            trials.append(tuple(first.values()))
        trials.extend((edit,) for edit in found)
    return trials


def _sizes_in(sizes: Sizes, path: str) -> dict[int, set[int]]:
    """Old size -> new sizes, over the tensors that a module's operations make and read."""
    traced = sizes.traced
    seen: dict[int, set[int]] = {}

    def note(old: tuple[int, ...], new: tuple[int | None, ...]) -> None:
        for before, after in zip(old, new, strict=True):
            if after is not None and after != before:
                seen.setdefault(before, set()).add(after)

    for node in nodes_of(traced, path):
        value = traced.labels.values.get(node)
        if isinstance(value, Value):
            note(value.shape, sizes.tensor(value))
        for source in node.all_input_nodes:
            value = traced.labels.values.get(source)
            if isinstance(value, Value):
                note(value.shape, sizes.tensor(value))
    return seen
