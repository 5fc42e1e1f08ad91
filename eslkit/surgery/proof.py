"""A resize is proved by running it: every module must give tensors of the sizes foretold.

The resized model's own code runs on fake tensors. Where it fails, or gives another size than the
labels foretold, the integers that the modules around the failure keep are tried at their new
values; what then still fails is reported with the module and the text of the failure.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.instancenorm import (
    _InstanceNorm,  # pyright: ignore[reportPrivateUsage]
)

from eslkit.graph.export import Exported, World, run, source_line
from eslkit.graph.maps import op_name
from eslkit.graph.record import Recorder
from eslkit.graph.skeleton import prepare
from eslkit.graph.values import Value
from eslkit.surgery.integers import Aims, Edit, apply_edits, known_edits
from eslkit.surgery.numbers import factor_in
from eslkit.surgery.sizes import Sizes
from eslkit.surgery.trials import Trials, present

__all__ = ["Failure", "Proof", "prove"]

_MOST_IDLE = 48
"""Runs without any progress after which no further attribute is tried, near and far each."""

_ONE_WAY = 1 << 40
"""What a whole run in train mode counts as progress, before one in eval mode."""


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
    """Run the model at its new sizes, on stand-ins; its weights count only if its code looks.

    Args:
        model: the model.
        sizes: its new sizes.
        aims: what the integers of its modules are in the end, where that is known; all of them
            are set where the sizes are those of the end, and they come first elsewhere.
    """
    aims = aims or Aims()
    world = World(sizes.traced.exported.runner)
    bare = world.copy(model, lambda n, t: sizes.parameter(n, tuple(t.shape)), sizes.values)
    expected = _Expected(sizes)
    given = (*known_edits(model, bare), *_bare_norms(model, expected))
    apply_edits(bare, given)
    numbers: dict[fx.Node, float] = {}
    runs = _Runs(model, bare, expected, world, numbers)
    edits, failure, exported = given, None, None
    for due in (aims.edits, ()) if aims.reached and aims.edits else ((),):
        kept = present(bare, due)
        apply_edits(bare, due)
        failure, exported = runs()
        if failure is None:
            edits = (*given, *due)
            break
        apply_edits(bare, kept)
    trials = Trials(model, bare, sizes, aims)

    def tried(proposal: tuple[Edit, ...]) -> Failure | None:
        kept = present(bare, proposal)
        apply_edits(bare, proposal)
        after, _ = runs()
        apply_edits(bare, kept)
        return after

    while failure is not None:
        made, (path, stack) = edits[len(given) :], (failure.path, failure.stack)
        better = _better(failure, trials.near(path, stack, made), edits, trials, tried)
        better = better or _better(failure, trials.far(path, stack), edits, trials, tried)
        if better is None:
            break
        apply_edits(bare, better[0])
        edits, failure = (*edits, *better[0]), better[1]
    if world.runner.kind == "real":  # what it does may hang on the weights
        return Proof(edits, failure, _steady(bare, expected, world, numbers), None)
    return Proof(edits, failure, numbers, exported)


def _better(
    failure: Failure,
    proposals: Iterator[tuple[Edit, ...]],
    edits: tuple[Edit, ...],
    trials: Trials,
    tried: Callable[[tuple[Edit, ...]], Failure | None],
) -> tuple[tuple[Edit, ...], Failure | None] | None:
    """The first edits with which more goes well, and what fails then; None if there are none."""
    better: tuple[tuple[Edit, ...], Failure | None] | None = None
    runs = 0
    for trial in proposals:
        alike = trials.alike(trial, edits)
        for proposal in (trial + alike, trial) if alike else (trial,):
            after = tried(proposal)
            runs += 1
            best = failure if better is None else better[1]
            if after is None or (best is not None and after.progress > best.progress):
                better = (proposal, after)
            if better is not None and not _due_to(better[1], alike):
                break
        if better is not None or runs >= _MOST_IDLE:
            break
    return better


def _steady(
    bare: nn.Module, expected: _Expected, world: World, numbers: dict[fx.Node, float]
) -> dict[fx.Node, float]:
    """Those of the changed numbers that hang on the widths alone, not on the weights."""
    if not numbers:
        return numbers
    with torch.no_grad():
        for tensor in (*nn.Module.parameters(bare), *nn.Module.buffers(bare)):
            if tensor.is_floating_point():
                tensor.mul_(1.01)
    again: dict[fx.Node, float] = {}
    _run(bare, expected, world, again)
    return {node: ratio for node, ratio in numbers.items() if again.get(node) == ratio}


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


def _due_to(failure: Failure | None, edits: tuple[Edit, ...]) -> bool:
    """Whether it then failed in a module that was changed because another one needed it."""
    return failure is not None and bool({edit.path for edit in edits} & set(failure.stack))


class _Runs:
    """Runs of a resized model: as it was traced, and in eval mode where its own code asks for it.

    A block that merges its branches in eval mode is another network there.
    """

    def __init__(
        self,
        model: nn.Module,
        bare: nn.Module,
        expected: _Expected,
        world: World,
        numbers: dict[fx.Node, float],
    ) -> None:
        self._model, self._bare, self._expected = model, bare, expected
        self._world, self._numbers = world, numbers
        kinds = {type(module) for module in nn.Module.modules(bare)}
        self._two_ways = world.runner.train and any(map(_asks_for_mode, kinds))

    def __call__(self) -> tuple[Failure | None, Exported | None]:
        """What failed; the operations, if nothing did."""
        failure, exported = _run(self._bare, self._expected, self._world, self._numbers)
        if failure is None and self._two_ways:
            failure = self._in_eval_mode()
        return failure, None if failure else exported

    def _in_eval_mode(self) -> Failure | None:
        self._bare.eval()
        failure, _ = _run(self._bare, self._expected, self._world, {}, as_traced=False)
        prepare(self._bare, train=True)
        if failure is None or not self._runs_as_it_is():
            return None
        text = f"in eval mode, {failure.text}"
        return replace(failure, text=text, progress=failure.progress + _ONE_WAY)

    def _runs_as_it_is(self) -> bool:
        """Whether the model itself runs in eval mode; asked once if it does not."""
        traced, same = self._expected.traced, self._world.copy(self._model).eval()
        try:
            run(same, traced.inputs, traced.keywords, world=self._world)
        except Exception:  # noqa: BLE001  the user's code may raise anything
            self._two_ways = False
        return self._two_ways


def _asks_for_mode(kind: type[nn.Module]) -> bool:
    own = [c for c in kind.__mro__ if c.__module__.partition(".")[0] not in ("torch", "builtins")]
    codes = [getattr(item, "__code__", None) for c in own for item in vars(c).values()]
    return any(code is not None and "training" in code.co_names for code in codes)


def _run(
    bare: nn.Module,
    expected: _Expected,
    world: World,
    numbers: dict[fx.Node, float],
    *,
    as_traced: bool = True,
) -> tuple[Failure | None, Exported | None]:
    """One run: what failed, or all of it; in `numbers`, what multiplies by another number."""
    traced = expected.traced
    numbers.clear()
    watch = _Watch(expected, numbers, as_traced=as_traced)
    recorder = watch.recorder
    held = [(b, b.clone()) for b in nn.Module.buffers(bare)] if world.runner.kind == "real" else []
    try:
        exported = run(bare, traced.inputs, traced.keywords, world=world, recorder=recorder)
    except Exception as error:  # noqa: BLE001  the user's code may raise anything: the reason
        stack = tuple(recorder.marks[call].path for call in recorder.stack)
        text = str(error)
        if not isinstance(error, _OtherSizeError):
            text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        where = stack[-1] if stack else ""
        return Failure(where, text, watch.progress, stack, watch.reached), None
    finally:
        for buffer, before in held:  # the next run's code looks at them again
            buffer.copy_(before)
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
            call.number: (call.path, [shapes.get(node) for node in call.outputs])
            for call in exported.calls
        }
        times = Counter(call.path for call in exported.calls)
        self.single = {path: n for n, (path, _) in self.calls.items() if times[path] == 1}
        """Modules that are called once -> the number of the call."""
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


def _check_kernel(node: fx.Node) -> None:
    """Refuse a convolution that tensors without memory can have, and others cannot.

    Raises:
        _OtherSizeError: its kernel is not for so many groups, or channels.
    """
    if op_name(node) != "convolution":
        return
    args: Any = node.args
    channels, shape = args[0].meta["val"].shape[1], tuple(args[1].meta["val"].shape)
    transposed, groups = args[6], args[8]
    if shape[0] % groups or (transposed and shape[0] != channels):
        where = source_line(node) or "a convolution"
        raise _OtherSizeError(
            f"{where} has a kernel of shape {shape} for {channels} channels in {groups} groups"
        )


class _Watch:
    """Compares a run with what is expected of it.

    Code that runs at another width may still do something else there: cut the channels into heads
    of another size, say. So operations are compared one by one as long as they are the same; when
    the code takes another way, on purpose, the results of its modules still count: once it calls
    one more, or one fewer, those of the modules that are called once.
    """

    def __init__(
        self, expected: _Expected, numbers: dict[fx.Node, float], *, as_traced: bool
    ) -> None:
        """With `as_traced=False` the code is known to take another way, and to have other results.

        That it runs is then all that is asked.
        """
        self.recorder = Recorder(check=self._operation, check_call=self._call)
        self.progress = 0
        """How many operations and calls went well."""
        self._expected = expected
        self._numbers = numbers
        self._same = self._as_traced = as_traced
        self._alike = 0
        """How many calls were of the expected modules, from the first on."""
        self._called: set[str] = set()
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
        _check_kernel(node)
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
        path = self.recorder.marks[number].path
        foretold = self._foretold(number, path) if self._as_traced else ()
        for tensor, want in zip(results, foretold, strict=False):
            self._compare(tuple(tensor.shape), want, path or "the model")
        self._called.add(path)
        self.progress += 1

    def _foretold(self, number: int, path: str) -> Sequence[Shape | None]:
        """The shapes of a call's results: of the same call, not of one that has its number."""
        marks, calls = self.recorder.marks, self._expected.calls
        while self._alike < len(marks):
            if calls.get(self._alike, (marks[self._alike].path,))[0] != marks[self._alike].path:
                break
            self._alike += 1
        known = number if number < self._alike else self._expected.single.get(path, -1)
        if number >= self._alike and path in self._called:
            return ()
        return calls[known][1] if known in calls else ()

    def _compare(self, shape: tuple[int, ...], want: Shape | None, where: str) -> None:
        if want is not None and (
            len(want) != len(shape)
            or any(w is not None and w != s for w, s in zip(want, shape, strict=True))
        ):
            self._differs = 1
            raise _OtherSizeError(f"{where} gives a tensor of shape {shape}, not {want}")
