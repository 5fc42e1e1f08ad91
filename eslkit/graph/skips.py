"""Skip connections, read off the graph.

A map is joined (concatenated or added) with another one that came from it the long way round,
through a coarser level: then it has skipped that level. Sets of nodes are integers, one bit a
node, so that all paths of a network are followed in one pass over its operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from torch import Tensor, fx

from eslkit.graph.channels import Skip
from eslkit.graph.export import Exported
from eslkit.graph.labels import Labels
from eslkit.graph.levels import Resolution
from eslkit.graph.values import Value, flat

__all__ = ["find_skips"]

_JOINS = {"cat": "concat", "add": "add"}


def find_skips(
    exported: Exported, labels: Labels, resolution: Resolution, groups: Mapping[int, str]
) -> tuple[Skip, ...]:
    """All skip connections of a model, in the order in which they are joined.

    Args:
        exported: the model's graph.
        labels: the labels of every node.
        resolution: the model's levels.
        groups: representative atom -> name of its group.
    """
    ways = _Ways(exported, resolution.dims + 2)
    found: list[Skip] = []
    for node, kind, source in ways.joined():
        value = labels.values[source]
        parts = value.parts if isinstance(value, Value) else ()
        names = [
            groups[root]
            for part in parts
            for root in dict.fromkeys(labels.atoms.find(flat(part)).tolist())
            if root in groups
        ]
        found.append(
            Skip(
                kind=kind,
                level=resolution.of_positions(ways.positions[source]),
                source=exported.owners[source],
                target=exported.owners[node],
                groups=tuple(dict.fromkeys(names)),
            )
        )
    return tuple(dict.fromkeys(found))


class _Ways:
    """How every map comes from those before: at its own resolution, or through a coarser one."""

    def __init__(self, exported: Exported, rank: int) -> None:
        self.positions: dict[fx.Node, int] = {}
        self._bit: dict[fx.Node, int] = {}
        self._level: dict[fx.Node, int] = {}
        """Ancestors reached without a change of resolution, the node itself included."""
        self._below: dict[fx.Node, int] = {}
        """Ancestors reached through a map that is coarser than they are."""
        self._joins: list[tuple[fx.Node, str, list[fx.Node]]] = []
        above: dict[fx.Node, int] = {}
        finer: dict[int, int] = {}
        for node in exported.graph.nodes:
            size = _positions(node, rank)
            if size is None:
                continue
            sources = [s for s in node.all_input_nodes if s in self.positions]
            self.positions[node] = size
            self._bit[node] = bit = 1 << len(self._bit)
            self._level[node], self._below[node], above[node] = bit, 0, bit
            for source in sources:
                above[node] |= above[source]
                self._below[node] |= self._below[source]
                if self.positions[source] == size:
                    self._level[node] |= self._level[source]
            for other in finer:
                if other > size:
                    self._below[node] |= above[node] & finer[other]
            finer[size] = finer.get(size, 0) | bit
            kind = _JOINS.get(_name(node))
            if kind and len(sources) > 1:
                self._joins.append((node, kind, sources))

    def joined(self) -> Iterator[tuple[fx.Node, str, fx.Node]]:
        """Where maps are joined: the operation, its kind, and the map that went the short way."""
        for node, kind, sources in self._joins:
            same = [s for s in sources if self.positions[s] == self.positions[node]]
            for short in same:
                long = [s for s in same if self._level[short] & self._below[s]]
                if any(not self._level[s] & self._below[short] for s in long):
                    yield node, kind, short


def _positions(node: fx.Node, rank: int) -> int | None:
    value = node.meta.get("val")
    if isinstance(value, Tensor) and value.dim() == rank:
        return math.prod(value.shape[2:])
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
        return math.prod(value[0].shape[2:]) if value[0].dim() == rank else None
    return None


def _name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None else ""
