"""Numbers in the model's code that depend on the width: attention's scale, for one.

`q @ k.T / sqrt(d)` multiplies by another number once `d` is another. Where the operation belongs
to a product of activations, whoever wants the function kept multiplies one side's producers by the
inverse. Elsewhere the number is only told of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import fx

from eslkit.graph.scaling import SCALED, THROUGH
from eslkit.graph.trace import Traced
from eslkit.graph.values import Value, flat

__all__ = ["Numbers", "factor_in", "numbers_of"]


def factor_in(node: fx.Node) -> float | None:
    """The number by which an operation multiplies; None if it is not one that does."""
    name = _name(node)
    numbers = [float(a) for a in node.args if isinstance(a, (int, float))]
    if name == "mul":
        return math.prod(numbers)
    if name == "div":
        return 1.0 / math.prod(numbers) if all(numbers) else None
    if name in ("baddbmm", "addmm"):
        return float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
    return None


@dataclass(frozen=True)
class Numbers:
    """What changed numbers mean for the channels."""

    factors: Mapping[int, float]
    """Atom -> by what its position on a divided axis must be multiplied to keep the function."""
    groups: Mapping[str, tuple[str, ...]]
    """Group name -> the operations whose number depends on its width."""
    open: Mapping[str, tuple[str, ...]]
    """The same for those of them that no product of activations makes up for."""


def numbers_of(traced: Traced, changed: Mapping[fx.Node, float]) -> Numbers:
    """Where the operations whose number has changed belong.

    Args:
        traced: the model.
        changed: operation -> its new number, relative to the old one.
    """
    atoms = traced.labels.atoms
    factors: dict[int, float] = {}
    touched: dict[str, dict[str, None]] = {}
    left: dict[str, dict[str, None]] = {}
    owner = {
        int(root): group.name
        for group in traced.graph.resizable
        for root in atoms.find(_members(traced, group.name))
    }
    for node, ratio in changed.items():
        product = _product_of(traced, node)
        mine = traced.divided.by_product.get(product, np.zeros(0, np.int64))
        for atom in mine.tolist():
            factors[atom] = factors.get(atom, 1.0) / ratio
        labels = list(mine) or list(_labels(traced, [node, *node.all_input_nodes]))
        where = f"{_name(node)} in {traced.exported.owners[node] or 'the model'}"
        for root in set(atoms.find(np.array(labels, np.int64)).tolist()) & owner.keys():
            note = f"a number that depends on the width, {where}"
            touched.setdefault(owner[root], {})[note] = None
            if not mine.size:
                left.setdefault(owner[root], {})[note] = None
    return Numbers(
        factors,
        {name: tuple(notes) for name, notes in touched.items()},
        {name: tuple(notes) for name, notes in left.items()},
    )


def _members(traced: Traced, name: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    group = traced.graph.group(name)
    span = group.spans[0]
    first = next(
        axis.first
        for axis in traced.labels.axes
        if (axis.name, axis.axis) == (span.parameter, span.axis)
    )
    return first + span.positions(group.width)[:, 0]


def _labels(traced: Traced, nodes: Iterable[fx.Node]) -> Iterable[int]:
    for node in nodes:
        value = traced.labels.values.get(node)
        if isinstance(value, Value):
            for part in value.parts:
                yield from flat(part).tolist()


def _product_of(traced: Traced, node: fx.Node) -> fx.Node | None:
    """The product of activations whose result, or one side of which, an operation multiplies."""
    products = {product.node for product in traced.labels.atoms.products}
    source: fx.Node | None = node
    while source is not None:
        if source in products:
            return source
        source = _only_source(traced, source)
    pending, found = list(node.users), set[fx.Node]()
    while pending:
        user = pending.pop()
        if user in products:
            found.add(user)
        elif _name(user) in THROUGH | SCALED | {""} and user.op == "call_function":
            pending.extend(user.users)
        else:
            return None
    return found.pop() if len(found) == 1 else None


def _only_source(traced: Traced, node: fx.Node) -> fx.Node | None:
    """The one activation of which an operation gives a multiple."""
    if _name(node) not in THROUGH | SCALED:
        return None
    values = traced.labels.values
    moving = [
        s
        for s in node.all_input_nodes
        if isinstance(value := values.get(s), Value) and not value.weight
    ]
    return moving[0] if len(moving) == 1 else None


def _name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None else ""
