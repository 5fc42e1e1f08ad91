"""The graph run on labels instead of numbers.

Every axis longer than 1 of every parameter and buffer starts with its own atoms; inputs have
none. Each operation's rule unites the atoms that must be kept or dropped together. What the
outputs show is fixed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from eslkit.graph.atoms import UNUSED, Atoms, IntArray
from eslkit.graph.export import Exported, source_line
from eslkit.graph.moves import MOVES
from eslkit.graph.ops import Op, protect
from eslkit.graph.rules import rule_for
from eslkit.graph.scaling import MATRIX, result_scales
from eslkit.graph.values import Value, flat, merge

__all__ = ["Axis", "Labels", "run_on_labels"]


@dataclass(frozen=True)
class Axis:
    """One axis of one parameter or buffer, and the atoms of its positions."""

    name: str
    axis: int
    first: int
    size: int
    trainable: bool
    """Whether it belongs to a parameter, not to a buffer."""

    @property
    def atoms(self) -> IntArray:
        """The atoms of the axis, in order."""
        return np.arange(self.first, self.first + self.size)


@dataclass(frozen=True)
class Labels:
    """What running the graph on labels has found."""

    atoms: Atoms
    axes: tuple[Axis, ...]
    values: dict[fx.Node, Any]
    """Labels of every node: a Value, or a list of them."""


def run_on_labels(exported: Exported, *, holding: frozenset[fx.Node] = frozenset()) -> Labels:
    """Run the graph on labels; every axis position of every parameter gets an atom.

    Args:
        exported: the model's operations.
        holding: reductions over part of an axis whose reduced part stays as long as it is.
    """
    atoms = Atoms(holding=frozenset[object](holding))
    axes: list[Axis] = []
    values: dict[fx.Node, Any] = {}
    first = atoms.new(sum(sum(exported.shape(node)) for node in exported.parameters))
    for node, name in exported.parameters.items():
        shape = exported.shape(node)
        trainable = name not in exported.buffers
        made = _parameter(atoms, axes, name, shape, first, trainable=trainable)
        values[node] = replace(made, mask=_masks(node)[0])
        first += sum(shape)
        if not node.users:
            for axis in axes[-len(shape) :] if shape else ():
                atoms.fix(axis.atoms, UNUSED)
    for node in exported.inputs:
        values[node] = Value(exported.shape(node), given=True, mask=_masks(node)[0])
    for node in exported.graph.nodes:
        if node.op == "get_attr":
            mask = _masks(node)[0]
            values[node] = Value(_shapes(node)[0], weight=True, constant=True, mask=mask)
        elif node.op == "call_function" and node not in exported.dead:
            values[node] = _call(atoms, node, values, exported)
    for before, after in exported.updates:
        _keep_form(atoms, values[before], values[after], exported.parameters[before])
    for node in exported.outputs:
        for value in _values(values[node]):
            for part in value.parts:
                atoms.fix(flat(part), "the model's output")
    return Labels(atoms, tuple(axes), values)


def _keep_form(atoms: Atoms, before: Value, after: Value, name: str) -> None:
    """What is written into a buffer has the buffer's channels."""
    if before.parts and after.parts and before.shape == after.shape:
        merge(atoms, [before, after], before.shape, f"the new value of {name}")


def _parameter(
    atoms: Atoms,
    axes: list[Axis],
    name: str,
    shape: tuple[int, ...],
    first: int,
    *,
    trainable: bool,
) -> Value:
    parts: list[Tensor] = []
    for axis, size in enumerate(shape):
        axes.append(Axis(name, axis, first, size, trainable))
        if size > 1:
            view = [size if i == axis else 1 for i in range(len(shape))]
            parts.append(torch.arange(first, first + size).reshape(view))
        else:
            atoms.fix(np.arange(first, first + size), "an axis of size 1")
        first += size
    return Value(shape, tuple(parts), weight=True, scales=True, raw=True)


def _call(atoms: Atoms, node: fx.Node, values: dict[fx.Node, Any], exported: Exported) -> Any:
    if node.target is operator.getitem:
        source, index = node.args
        return values[source][index]  # type: ignore[index]
    target: Any = node.target
    if not hasattr(target, "_schema"):
        return None  # arithmetic on numbers
    op = Op(target, _bind(node, values), _shapes(node), _where(node, exported))
    atoms.where, atoms.node = op.where, node
    results = [
        replace(value, mask=True) if mask else value
        for value, mask in zip(_results(atoms, op), _masks(node), strict=True)
    ]
    multiple = isinstance(node.meta["val"], (list, tuple))
    return results if multiple else results[0]


def _results(atoms: Atoms, op: Op) -> list[Value]:
    """What the rule gives, and whether it scales with its producers."""
    results = _apply(atoms, op)
    scales = result_scales(op)
    moving = [value for value in op.values if not value.weight]
    contracted = op.target.overloadpacket.__name__ in MATRIX
    if len(moving) == 1 if contracted else not scales:
        atoms.plain.extend(flat(part) for value in moving for part in value.parts)
    constant = all(value.constant for value in op.values)
    raw = op.name in MOVES and op.x.raw
    return [replace(r, constant=constant, scales=scales, raw=raw) for r in results]


def _apply(atoms: Atoms, op: Op) -> list[Value]:
    if not any(value.parts for value in op.values):
        free = bool(op.values) and all(v.free or not v.shape for v in op.values)
        free = free or not op.values or rule_for(op.target).__name__ == "factory"
        return [op.result((), i, free=free) for i in range(len(op.shapes))]
    try:
        return rule_for(op.target)(atoms, op)
    except ValueError as error:  # a rule's own, in plain words
        return protect(atoms, op, f" in this form: {error}")
    except (RuntimeError, IndexError, KeyError, TypeError):  # torch's, about the labels
        return protect(atoms, op, " in this form")


def _bind(node: fx.Node, values: dict[fx.Node, Any]) -> dict[str, Any]:
    target: Any = node.target
    schema = target._schema.arguments
    given = dict(zip((a.name for a in schema), node.args, strict=False)) | dict(node.kwargs)
    bound = {a.name: given.get(a.name, a.default_value) for a in schema}

    def fill(arg: Any) -> Any:
        return values.get(arg) if isinstance(arg, fx.Node) else arg

    return {
        name: [fill(item) for item in arg] if isinstance(arg, (list, tuple)) else fill(arg)
        for name, arg in bound.items()
        if name in given or arg is not None
    }


def _shapes(node: fx.Node) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(x.shape) if isinstance(x, Tensor) else () for x in _leaves(node))


def _masks(node: fx.Node) -> tuple[bool, ...]:
    return tuple(isinstance(x, Tensor) and x.dtype == torch.bool for x in _leaves(node))


def _leaves(node: fx.Node) -> Sequence[Any]:
    value = node.meta["val"]
    return value if isinstance(value, (list, tuple)) else [value]


def _where(node: fx.Node, exported: Exported) -> str:
    target: Any = node.target
    line = source_line(node)
    owner = exported.owners[node] or "the model"
    return f"{target.overloadpacket.__name__} in {owner}" + (f" ({line})" if line else "")


def _values(value: Any) -> Iterator[Value]:
    for leaf in pytree.tree_leaves(value, is_leaf=lambda item: isinstance(item, Value)):
        if isinstance(leaf, Value):
            yield leaf
