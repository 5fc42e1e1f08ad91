"""Which integers of modules are worth trying at new values where a resized model's code fails."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from torch import nn

from eslkit.graph.trace import nodes_of
from eslkit.graph.values import Value
from eslkit.surgery.integers import Aims, Edit, candidates
from eslkit.surgery.sizes import Sizes

__all__ = ["Trials", "present"]

_MOST_TOGETHER = 16
"""How many choices of values for the attributes of one module are tried at once."""
_MOST_ELSEWHERE = 16
"""How many edits of modules that were not being called are tried where one failed."""


def present(model: nn.Module, edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """The attributes as they are."""
    return tuple(
        Edit(e.path, e.attribute, getattr(model.get_submodule(e.path), e.attribute)) for e in edits
    )


class Trials:
    """What may be tried on a resized model, of which some attributes may have been set already.

    Args:
        model: the model as it was.
        bare: the one that is run at the new sizes.
        sizes: the resize.
        aims: what the attributes are in the end, where that is known.
    """

    def __init__(self, model: nn.Module, bare: nn.Module, sizes: Sizes, aims: Aims) -> None:
        self._model, self._bare = model, bare
        self._sizes, self._aims = sizes, aims
        self._known: dict[str, dict[int, set[int]]] = {}
        self._widths: dict[int, set[int]] = {}
        for change in sizes.changes:
            self._widths.setdefault(change.group.width, set()).add(change.new)

    def near(
        self, path: str, stack: tuple[str, ...], made: tuple[Edit, ...]
    ) -> Iterator[tuple[Edit, ...]]:
        """Edits of the modules that were being called, nearest first: all at once, then singles.

        Those that have been made may be undone. What is known of the end comes first; sizes of a
        module's tensors come before the widths of groups, which no tensor may show.

        Args:
            path: the module that failed.
            stack: the modules that were being called.
            made: edits made since the first run.
        """
        yield from self._undone(stack, made)
        for outer in reversed(stack):
            due = self._aims.of(outer)
            due = tuple(e for e in due if present(self._bare, (e,))[0].value != e.value)
            if len(due) > 1:
                yield due
            yield from ((edit,) for edit in due)
        tried: set[str] = set()
        for of_groups in (False, True):
            for outer in self._own(path, stack):
                sizes = self._widths if of_groups else self._sizes_in(outer)
                for trial in self._of_module(outer, sizes):
                    if repr(trial) not in tried:
                        tried.add(repr(trial))
                        yield trial

    def far(self, path: str, stack: tuple[str, ...]) -> Iterator[tuple[Edit, ...]]:
        """What is tried when nothing near has helped.

        Several attributes of one module, each with a value of its own; then attributes that other
        modules' code reads.

        Args:
            path: the module that failed.
            stack: the modules that were being called.
        """
        for outer in self._own(path, stack):
            yield from itertools.islice(self._together(outer), _MOST_TOGETHER)
        yield from itertools.islice(self._elsewhere(stack), _MOST_ELSEWHERE)

    def alike(self, trial: tuple[Edit, ...], edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
        """The same edits on other modules of the same class that kept the same values in the model.

        What stands twelve times in a network need not be found twelve times. What has been edited
        already stays: it may have got the value that another one is to lose. Where it is known what
        a value is in the end, only modules that end with the same one are alike.
        """
        done = {(edit.path, edit.attribute) for edit in (*edits, *trial)}
        ends = {(edit.path, edit.attribute): edit.value for edit in self._aims.edits}
        found: list[Edit] = []
        for edit, before in zip(trial, present(self._model, trial), strict=True):
            kind = type(self._bare.get_submodule(edit.path))
            final = ends.get((edit.path, edit.attribute)) == edit.value
            found += [
                Edit(path, edit.attribute, edit.value)
                for path, module in self._bare.named_modules()
                if type(module) is kind
                and (path, edit.attribute) not in done
                and vars(module).get(edit.attribute) == before.value
                and not (final and ends.get((path, edit.attribute)) != edit.value)
            ]
        return tuple(found)

    def _undone(self, stack: tuple[str, ...], made: tuple[Edit, ...]) -> Iterator[tuple[Edit, ...]]:
        """Attributes as they were, those of modules alike with them.

        Several numbers of one module that were the same and changed at once need not all have
        changed.
        """
        last = {(edit.path, edit.attribute): edit for edit in made}
        for path in reversed(stack):
            kind = type(self._bare.get_submodule(path))
            for edit in (edit for edit in last.values() if edit.path == path):
                alike = tuple(
                    other
                    for other in last.values()
                    if (other.attribute, other.value) == (edit.attribute, edit.value)
                    and type(self._bare.get_submodule(other.path)) is kind
                )
                yield present(self._model, (edit,))
                if len(alike) > 1:
                    yield present(self._model, alike)

    def _own(self, path: str, stack: tuple[str, ...]) -> Iterator[str]:
        """Modules of a stack, innermost first, without torch's own unless one failed."""
        for outer in reversed(stack):
            if outer == path or not _is_torch(self._bare.get_submodule(outer)):
                yield outer

    def _of_module(self, path: str, sizes: Mapping[int, set[int]]) -> Iterator[tuple[Edit, ...]]:
        found = self._candidates(path, sizes)
        first: dict[str, Edit] = {}
        for edit in found:
            first.setdefault(edit.attribute, edit)
        if len(first) > 1:
            yield tuple(first.values())
        for edit in found:
            yield (edit,)

    def _together(self, path: str) -> Iterator[tuple[Edit, ...]]:
        """Edits of several attributes that were the same and need not become the same."""
        choices: dict[str, list[Edit | None]] = {}
        for edit in self._candidates(path, self._sizes_in(path)):
            choices.setdefault(edit.attribute, []).append(edit)
        if max(map(len, choices.values()), default=0) > 1 < len(choices):
            for chosen in itertools.product(*([*edits, None] for edits in choices.values())):
                trial = tuple(edit for edit in chosen if edit is not None)
                if len(trial) > 1:  # single ones have been tried
                    yield trial

    def _elsewhere(self, stack: tuple[str, ...]) -> Iterator[tuple[Edit, ...]]:
        """Edits of modules that were not being called, all of one class at once.

        An outer module may hand out what its parts are to get by the numbers that they keep.
        """
        kinds: dict[type, list[str]] = {}
        for path, module in self._model.named_modules():
            if path not in stack and not _is_torch(module):
                kinds.setdefault(type(module), []).append(path)
        for paths in kinds.values():
            found: dict[str, list[Edit]] = {}
            for path in paths:
                first: dict[str, Edit] = {}
                for edit in self._candidates(path, self._sizes_of(path)):
                    first.setdefault(edit.attribute, edit)
                for name, edit in first.items():
                    found.setdefault(name, []).append(edit)
            if len(found) > 1:
                yield tuple(itertools.chain.from_iterable(found.values()))
            for edits in found.values():
                yield tuple(edits)

    def _sizes_of(self, path: str) -> dict[int, set[int]]:
        """As `_sizes_in`, or those of its parameters where it does nothing with tensors itself."""
        seen = self._sizes_in(path)
        if not seen:
            for name, tensor in self._model.get_submodule(path).named_parameters(prefix=path):
                _note(seen, tuple(tensor.shape), self._sizes.parameter(name, tuple(tensor.shape)))
        return seen

    def _candidates(self, path: str, sizes: Mapping[int, set[int]]) -> list[Edit]:
        """Sizes are told of the module as it was: what was edited may be another's old size."""
        now = vars(self._bare.get_submodule(path))
        found = candidates(self._model.get_submodule(path), path, sizes)
        return [edit for edit in found if now.get(edit.attribute) != edit.value]

    def _sizes_in(self, path: str) -> dict[int, set[int]]:
        """Old size -> new sizes, over the tensors that a module's operations make and read."""
        if path in self._known:
            return self._known[path]
        traced = self._sizes.traced
        seen: dict[int, set[int]] = {}
        for node in nodes_of(traced, path):
            for source in (node, *node.all_input_nodes):
                value = traced.labels.values.get(source)
                if isinstance(value, Value):
                    _note(seen, value.shape, self._sizes.tensor(value))
        self._known[path] = seen
        return seen


def _note(seen: dict[int, set[int]], old: tuple[int, ...], new: tuple[int | None, ...]) -> None:
    for before, after in zip(old, new, strict=True):
        if after is not None and after != before:
            seen.setdefault(before, set()).add(after)


def _is_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules")
