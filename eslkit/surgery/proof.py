"""A resize is proved by running it: every module must give tensors of the sizes foretold.

The resized model's own code runs on fake tensors. Where it fails, or gives another size than the
labels foretold, the integers that the modules around the failure keep are tried at their new
values; what then still fails is reported with the module and the text of the failure.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from torch import Tensor, fx, nn
from torch.nn.modules.instancenorm import (
    _InstanceNorm,  # pyright: ignore[reportPrivateUsage]
)

from eslkit.graph.export import Exported, World, run, source_line
from eslkit.graph.record import Recorder
from eslkit.graph.trace import nodes_of
from eslkit.graph.values import Value
from eslkit.surgery.integers import Aims, Edit, apply_edits, candidates, known_edits
from eslkit.surgery.numbers import factor_in
from eslkit.surgery.sizes import Sizes

__all__ = ["Failure", "Proof", "prove"]

_MOST_IDLE = 48
"""Runs without any progress after which no further attribute is tried."""


@dataclass(frozen=True)
class Failure:
    """Where a resized model's own code did not go along."""

    path: str
    """The module."""
    text: str
    progress: int
    """How many operations and calls of modules went well before."""
    stack: tuple[str, ...]
    """Modules being called when it happened, outermost first."""
    node: fx.Node | None = None
    """The operation of the traced graph at which it happened, where the two runs still agree."""


@dataclass(frozen=True)
class Proof:
    """What running a model at its new sizes has shown."""

    edits: tuple[Edit, ...]
    """The attributes that must be set."""
    failure: Failure | None
    """What no attribute mends; None if all went well."""
    numbers: Mapping[fx.Node, float]
    """Operations that now multiply by another number -> the new one relative to the old one."""
    exported: Exported | None
    """The operations of the resized model, if it ran once and went well: what tracing it finds."""


def prove(model: nn.Module, sizes: Sizes, aims: Aims | None = None) -> Proof:
    """Run the model at its new sizes, on stand-ins; its weights do not count.

    Args:
        model: the model.
        sizes: its new sizes.
        aims: what the integers of its modules are in the end, where that is known; all of them
            are set where the sizes are those of the end, and they come first elsewhere.
    """
    aims = aims or Aims()
    world = World(sizes.traced.exported.runner)
    bare = world.copy(model, lambda name, tensor: sizes.parameter(name, tuple(tensor.shape)))
    expected = _Expected(sizes)
    given = (*known_edits(model, bare), *_bare_norms(model, expected))
    apply_edits(bare, given)
    numbers: dict[fx.Node, float] = {}
    edits, failure, exported = given, None, None
    for due in (aims.edits, ()) if aims.reached and aims.edits else ((),):
        kept = _present(bare, due)
        apply_edits(bare, due)
        failure, exported = _run(bare, expected, world, numbers)
        if failure is None:
            edits = (*given, *due)
            break
        apply_edits(bare, kept)
    known: dict[str, dict[int, set[int]]] = {}
    while failure is not None:
        better: tuple[tuple[Edit, ...], Failure | None] | None = None
        runs = 0
        undone = _undone(model, bare, edits[len(given) :], failure)
        for trial in chain(undone, _trials(bare, sizes, failure, known, aims)):
            alike = _spread(bare, trial, model, edits, aims)
            for proposal in (trial + alike, trial) if alike else (trial,):
                kept = _present(bare, proposal)
                apply_edits(bare, proposal)
                after, _ = _run(bare, expected, world, numbers)
                runs += 1
                apply_edits(bare, kept)
                best = failure if better is None else better[1]
                if after is None or (best is not None and after.progress > best.progress):
                    better = (proposal, after)
                if better is not None and not _due_to(better[1], alike):
                    break
            if better is not None or runs >= _MOST_IDLE:
                break
        if better is None:
            break
        apply_edits(bare, better[0])
        edits, failure = (*edits, *better[0]), better[1]
    if world.runner.kind == "real":  # what it does may hang on the weights
        exported = None
    return Proof(edits, failure, numbers, exported)


def _bare_norms(model: nn.Module, expected: _Expected) -> tuple[Edit, ...]:
    """Instance norms without parameters: they only warn of a width that is not theirs."""
    found: dict[str, Edit] = {}
    modules = dict(model.named_modules())
    for call in expected.traced.exported.calls:
        module = modules.get(call.path)
        if not isinstance(module, _InstanceNorm) or not call.simple:
            continue
        before, after = expected.traced.exported.shape(call.inputs[0]), expected.inputs[call.number]
        axis = len(before) - module._get_no_batch_dim()  # pyright: ignore[reportPrivateUsage]
        new = after[axis] if after else None
        bare = not module.affine and not module.track_running_stats and new is not None
        if bare and module.num_features == before[axis] != new:
            found[call.path] = Edit(call.path, "num_features", new)
    return tuple(found.values())


def _present(bare: nn.Module, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """The attributes as they are."""
    return tuple(
        Edit(e.path, e.attribute, getattr(bare.get_submodule(e.path), e.attribute)) for e in edits
    )


def _spread(
    bare: nn.Module,
    trial: tuple[Edit, ...],
    model: nn.Module,
    edits: tuple[Edit, ...],
    aims: Aims,
) -> tuple[Edit, ...]:
    """The same edits on other modules of the same class that kept the same values in the model.

    What stands twelve times in a network need not be found twelve times. What has been edited
    already stays: it may have got the value that another one is to lose. Where it is known what a
    value is in the end, only modules that end with the same one are alike.
    """
    done = {(edit.path, edit.attribute) for edit in (*edits, *trial)}
    ends = {(edit.path, edit.attribute): edit.value for edit in aims.edits}
    found: list[Edit] = []
    for edit, before in zip(trial, _present(model, trial), strict=True):
        kind = type(bare.get_submodule(edit.path))
        final = ends.get((edit.path, edit.attribute)) == edit.value
        found += [
            Edit(path, edit.attribute, edit.value)
            for path, module in bare.named_modules()
            if type(module) is kind
            and (path, edit.attribute) not in done
            and vars(module).get(edit.attribute) == before.value
            and not (final and ends.get((path, edit.attribute)) != edit.value)
        ]
    return tuple(found)


def _undone(
    model: nn.Module, bare: nn.Module, edits: tuple[Edit, ...], failure: Failure
) -> Iterator[tuple[Edit, ...]]:
    """Attributes of the modules around a failure as they were, those of modules alike with them.

    Several numbers of one module that were the same and changed at once need not all have changed.
    """
    made = {(edit.path, edit.attribute): edit for edit in edits}
    for path in reversed(failure.stack):
        kind = type(bare.get_submodule(path))
        for edit in (edit for edit in made.values() if edit.path == path):
            alike = tuple(
                other
                for other in made.values()
                if (other.attribute, other.value) == (edit.attribute, edit.value)
                and type(bare.get_submodule(other.path)) is kind
            )
            yield _present(model, (edit,))
            if len(alike) > 1:
                yield _present(model, alike)


def _due_to(failure: Failure | None, edits: tuple[Edit, ...]) -> bool:
    """Whether it then failed in a module that was changed because another one needed it."""
    return failure is not None and bool({edit.path for edit in edits} & set(failure.stack))


def _run(
    bare: nn.Module, expected: _Expected, world: World, numbers: dict[fx.Node, float]
) -> tuple[Failure | None, Exported | None]:
    """One run: what failed, or all of it; in `numbers`, what multiplies by another number."""
    traced = expected.traced
    numbers.clear()
    watch = _Watch(expected, numbers)
    recorder = watch.recorder
    try:
        exported = run(bare, traced.inputs, traced.keywords, world=world, recorder=recorder)
    except Exception as error:  # noqa: BLE001  the user's code may raise anything: the reason
        stack = tuple(recorder.marks[call].path for call in recorder.stack)
        text = str(error)
        if not isinstance(error, _OtherSizeError):
            text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        where = stack[-1] if stack else ""
        return Failure(where, text, watch.progress, stack, watch.reached), None
    return None, exported


class _OtherSizeError(Exception):
    """A tensor has not the shape that was foretold."""


Shape = tuple[int | None, ...]


class _Expected:
    """The shapes that the labels foretell, of every operation and of every module's results."""

    def __init__(self, sizes: Sizes) -> None:
        self.traced = sizes.traced
        exported = sizes.traced.exported
        self._sizes = sizes
        shapes: dict[fx.Node, Shape | None] = {}
        for node, value in sizes.traced.labels.values.items():
            shapes[node] = sizes.tensor(value) if isinstance(value, Value) else None
        self.operations = [
            (node, self._foretold(node)) for node in exported.graph.nodes if _is_operation(node)
        ]
        self.calls = {
            call.number: [shapes.get(node) for node in call.outputs] for call in exported.calls
        }
        self.inputs = {
            call.number: shapes.get(call.inputs[0]) if call.inputs else None
            for call in exported.calls
        }

    def _foretold(self, node: fx.Node) -> dict[int, Shape]:
        """Shapes of the results of an operation, by number, that have labels and are used."""
        value = self.traced.labels.values.get(node)
        if isinstance(value, Value):
            return {0: self._sizes.tensor(value)} if value.parts else {}
        if not isinstance(node.meta["val"], list):
            return {}
        pieces = [user.args[1] for user in node.users if user.users]
        return {
            number: self._sizes.tensor(piece)
            for number, piece in enumerate(value or ())
            if piece.parts and number in pieces
        }


def _is_operation(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is not operator.getitem


class _Watch:
    """Compares a run with what is expected of it.

    Code that runs at another width may still do something else there: cut the channels into heads
    of another size, say. So operations are compared one by one as long as they are the same; when
    the code takes another way, on purpose, the results of its modules still count.
    """

    def __init__(self, expected: _Expected, numbers: dict[fx.Node, float]) -> None:
        self.recorder = Recorder(check=self._operation, check_call=self._call)
        self.progress = 0
        """How many operations and calls went well."""
        self._expected = expected
        self._numbers = numbers
        self._same = True
        self._number = 0
        self._differs = 0

    @property
    def reached(self) -> fx.Node | None:
        """The operation that was the next one, or that gave another size."""
        operations = self._expected.operations
        at = self._number - self._differs
        return operations[at][0] if self._same and 0 <= at < len(operations) else None

    def _operation(self, node: fx.Node) -> None:
        operations = self._expected.operations
        number, self._number = self._number, self._number + 1
        self._same = (
            self._same and number < len(operations) and operations[number][0].target == node.target
        )
        value = node.meta["val"]
        if self._same and isinstance(value, (Tensor, list)):
            where = source_line(node) or f"{node.target} in {self.recorder.owners[node] or 'it'}"
            old, foretold = operations[number]
            results = value if isinstance(value, list) else [value]
            if isinstance(value, Tensor) or len(value) == len(old.meta["val"]):
                for place, want in foretold.items():
                    self._compare(tuple(results[place].shape), want, where)
            self._compare_numbers(old, node)
        self.progress += 1

    def _compare_numbers(self, old: fx.Node, new: fx.Node) -> None:
        before, after = factor_in(old), factor_in(new)
        if before and after and before != after:
            self._numbers[old] = after / before

    def _call(self, number: int, results: list[Tensor]) -> None:
        for tensor, want in zip(results, self._expected.calls.get(number, ()), strict=False):
            path = self.recorder.marks[number].path
            self._compare(tuple(tensor.shape), want, path or "the model")
        self.progress += 1

    def _compare(self, shape: tuple[int, ...], want: Shape | None, where: str) -> None:
        if want is not None and (
            len(want) != len(shape)
            or any(w is not None and w != s for w, s in zip(want, shape, strict=True))
        ):
            self._differs = 1
            raise _OtherSizeError(f"{where} gives a tensor of shape {shape}, not {want}")


def _trials(
    bare: nn.Module,
    sizes: Sizes,
    failure: Failure,
    known: dict[str, dict[int, set[int]]],
    aims: Aims,
) -> Iterator[tuple[Edit, ...]]:
    """Edits worth trying, nearest module first: all of a module at once, then one by one.

    What is known of the end comes first; sizes of the module's tensors come before the widths of
    groups, which no tensor may show.
    """
    for path in reversed(failure.stack):
        due = tuple(e for e in aims.of(path) if _present(bare, (e,))[0].value != e.value)
        if len(due) > 1:
            yield due
        yield from ((edit,) for edit in due)
    widths: dict[int, set[int]] = {}
    for change in sizes.changes:
        widths.setdefault(change.group.width, set()).add(change.new)
    tried: set[str] = set()
    for of_groups in (False, True):
        for path in reversed(failure.stack):
            module = bare.get_submodule(path)
            if type(module).__module__.startswith("torch.nn.modules") and path != failure.path:
                continue
            if path not in known:
                known[path] = _sizes_in(sizes, path)
            for trial in _of_module(module, path, widths if of_groups else known[path]):
                if repr(trial) not in tried:
                    tried.add(repr(trial))
                    yield trial


def _of_module(
    module: nn.Module, path: str, sizes: Mapping[int, set[int]]
) -> Iterator[tuple[Edit, ...]]:
    found = candidates(module, path, sizes)
    first: dict[str, Edit] = {}
    for edit in found:
        first.setdefault(edit.attribute, edit)
    if len(first) > 1:
        yield tuple(first.values())
    for edit in found:
        yield (edit,)


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
