"""What a rule sees: one operation of the graph, with labels in place of tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eslkit.graph.atoms import Atoms
from eslkit.graph.values import Value, flat

__all__ = ["Op", "Parts", "Rule", "dims_of", "protect"]

Parts = Sequence[Tensor]


@dataclass(frozen=True)
class Op:
    """One operation of the graph, with labels in place of tensors."""

    target: Any
    args: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the results; of a result that is no tensor, the empty shape."""
    where: str

    @property
    def name(self) -> str:
        """The operation's name, without the underscore of those that write in place."""
        return self.target.overloadpacket.__name__.rstrip("_")

    @functools.cached_property
    def values(self) -> list[Value]:
        """All tensors among the arguments, in order."""
        found: list[Value] = []
        for arg in self.args.values():
            items: Sequence[Any] = arg if isinstance(arg, (list, tuple)) else (arg,)
            found.extend(item for item in items if isinstance(item, Value))
        return found

    @property
    def x(self) -> Value:
        """The first tensor."""
        return self.values[0]

    @property
    def weight(self) -> bool:
        """Whether the results depend on parameters alone."""
        return all(value.weight for value in self.values)

    def result(self, parts: Parts, index: int = 0, *, free: bool = False) -> Value:
        """The value of result number `index`."""
        values = self.values
        given = any(value.given for value in values) and not parts
        counted = self.name in _COUNTING or (any(v.counted for v in values) and not parts)
        loose = self._loose(self.shapes[index])
        return Value(
            self.shapes[index],
            tuple(parts),
            free,
            self.weight,
            given,
            loose=loose,
            counted=counted,
        )

    def _loose(self, shape: tuple[int, ...]) -> frozenset[int]:
        """Axes of a result that are as long as the code wants them.

        They repeat one number, as those of what it was made from do, or are those of a tensor made
        from nothing (zeros, say) to which the others are broadcast.
        """
        repeats = self.name in _REPEATING
        if not repeats and torch.Tag.pointwise not in self.target.tags:
            return frozenset()
        found = {axis for axis, size in enumerate(shape) if size > 1}
        for value in self.values[:1] if repeats else self.values:
            shift = len(shape) - len(value.shape)
            held = {a + shift for a, n in enumerate(value.shape) if n > 1 and a not in value.loose}
            found -= held if not value.free else set()
        made = any(v.loose or (v.free and not v.counted) for v in self.values)
        return frozenset(found if repeats or made else ())

    def results(self, parts: Parts) -> list[Value]:
        """The same parts for every result that has their shape, and none for the others."""
        return [
            self.result(parts if shape == self.shapes[0] else (), i)
            for i, shape in enumerate(self.shapes)
        ]


_COUNTING = {"arange", "linspace", "logspace", "range", "cumsum"}
_REPEATING = {"expand", "expand_copy", "repeat"}

Rule = Callable[[Atoms, Op], list[Value]]


def dims_of(op: Op, rank: int, name: str = "dim") -> tuple[int, ...]:
    """The axes named by an argument, as non-negative numbers; all where it is absent or None."""
    given = op.args.get(name)
    if given is None or given == []:
        return tuple(range(rank))
    axes: Sequence[int] = given if isinstance(given, (list, tuple)) else (given,)
    return tuple(axis % rank for axis in axes) if rank else ()


def protect(atoms: Atoms, op: Op, form: str = "") -> list[Value]:
    """No rule, in general or for this form of it: whatever goes in must stay as it is."""
    for value in op.values:
        for part in value.parts:
            atoms.fix(flat(part), f"no rule for {op.where}{form}")
    return [op.result((), i) for i in range(len(op.shapes))]
