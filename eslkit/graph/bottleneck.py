"""Where a level can be inserted: edges that separate a bottleneck's entries from its exits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from eslkit.graph.export import Call
from eslkit.graph.trace import Traced
from eslkit.graph.values import Value

__all__ = ["Bottleneck", "Place", "find_bottlenecks", "op_name"]

_GLOBAL = ("mean", "adaptive", "sum", "amax")
_SAMPLING = ("upsample", "pixel_shuffle", "max_unpool", "convolution", "grid_sampler")


@dataclass(frozen=True)
class Place:
    """An edge, as the input or the output of a module that can be wrapped."""

    node: fx.Node
    path: str
    """The module to wrap."""
    before: bool
    """Whether the level goes before the module (the edge is its input) or behind it."""
    width: int
    """Channels on the edge."""
    convs_before: int
    convs_behind: int


@dataclass(frozen=True)
class Bottleneck:
    """A connected region of lowest resolution between a reduction and an up-sampling."""

    nodes: tuple[fx.Node, ...]
    entries: tuple[fx.Node, ...]
    exits: tuple[fx.Node, ...]
    positions: int
    places: tuple[Place, ...]
    """Where a level can go, best first."""


def op_name(node: fx.Node) -> str:
    """The ATen operation's name, empty for what is no operation."""
    target: Any = node.target
    packet = getattr(target, "overloadpacket", None)
    return packet.__name__ if node.op == "call_function" and packet is not None else ""


def find_bottlenecks(traced: Traced) -> tuple[Bottleneck, ...]:
    """All bottlenecks of a model: one for each hourglass; empty where there is none."""
    finder = _Finder(traced)
    for positions in sorted({p for p in finder.positions.values() if p is not None}):
        regions = finder.regions(positions)
        if regions:
            return tuple(finder.bottleneck(region, positions) for region in regions)
    return ()


class _Finder:
    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.rank = traced.resolution.dims + 2
        self.nodes = [n for n in traced.exported.graph.nodes if n.op == "call_function"]
        self.order = {node: i for i, node in enumerate(traced.exported.graph.nodes)}
        self.positions = {node: self._positions(node) for node in self.nodes}

    def _positions(self, node: fx.Node) -> int | None:
        value = self.traced.labels.values.get(node)
        held = node.meta.get("val")
        if not isinstance(held, Tensor) or not isinstance(value, Value) or value.weight:
            return None
        if op_name(node) in ("probe", "empty") or len(value.shape) != self.rank:
            return None
        if value.part_on(1) is None and any(
            value.part_on(axis) is not None for axis in range(2, self.rank)
        ):
            return None  # channels stand last, as a linear layer wants them
        return math.prod(value.shape[2:])

    def regions(self, positions: int) -> list[list[fx.Node]]:
        """Nodes between the entries and the exits at this resolution, one list a region."""
        entries = [n for n in self.nodes if self._is_entry(n, positions)]
        regions: list[set[fx.Node]] = []
        for entry in entries:
            reached = self._reach(entry, positions)
            if not any(self._is_exit(node, positions) for node in reached):
                continue
            touching = [region for region in regions if region & reached]
            regions = [region for region in regions if not region & reached]
            regions.append(reached.union(*touching))
        return [sorted(region, key=self.order.__getitem__) for region in regions]

    def _is_entry(self, node: fx.Node, positions: int) -> bool:
        if self.positions[node] != positions or any(g in op_name(node) for g in _GLOBAL):
            return False
        sources = [self.positions.get(s) for s in _nearest(node, _sources, self.positions)]
        if not sources or not any(s is not None and s > positions for s in sources):
            return False
        return positions > 1 or not any(
            g in op_name(s) for s in node.all_input_nodes for g in _GLOBAL
        )

    def _is_exit(self, node: fx.Node, positions: int) -> bool:
        return any(
            (self.positions.get(user) or 0) > positions
            and any(word in op_name(user) for word in _SAMPLING)
            for user in _nearest(node, _users, self.positions)
        )

    def _reach(self, start: fx.Node, positions: int) -> set[fx.Node]:
        reached, pending = {start}, [start]
        while pending:
            for user in pending.pop().users:
                if user in reached or user.op == "output" or op_name(user) == "probe":
                    continue
                if self.positions.get(user) in (positions, None):
                    reached.add(user)
                    pending.append(user)
        return reached

    def bottleneck(self, region: list[fx.Node], positions: int) -> Bottleneck:
        """The region with its entries, exits, and the places for a level."""
        inside = set(region)
        entries = [n for n in region if self._is_entry(n, positions)]
        exits = [n for n in region if self._is_exit(n, positions)]
        places: list[Place] = []
        convs = [n for n in region if self.positions[n] and op_name(n) == "convolution"]
        for node in region:
            if self.positions[node] != positions:
                continue
            if not self._separates(node, inside, entries, exits):
                continue
            behind = self._count(node, inside, convs)
            before = len(convs) - behind
            width = self.traced.exported.shape(node)[1]
            for call, first in _wrappable(self.traced.exported.calls, node):
                places.append(Place(node, call.path, first, width, before, behind))
        places.sort(key=self._preference)
        return Bottleneck(tuple(region), tuple(entries), tuple(exits), positions, tuple(places))

    def _preference(self, place: Place) -> tuple[Any, ...]:
        between = place.convs_before > 0 and place.convs_behind > 0
        gap = abs(place.convs_before - place.convs_behind)
        return (not between, gap, not place.before, -self.order[place.node], -len(place.path))

    def _separates(
        self,
        node: fx.Node,
        inside: set[fx.Node],
        entries: Iterable[fx.Node],
        exits: Iterable[fx.Node],
    ) -> bool:
        """Whether every way from an entry to an exit leads through the node."""
        goal = set(exits) - {node}
        seen = {n for n in entries if n is not node}
        pending = list(seen)
        while pending:
            here = pending.pop()
            if here in goal:
                return False
            for user in here.users:
                if user in inside and user not in seen and user is not node:
                    seen.add(user)
                    pending.append(user)
        return True

    def _count(self, node: fx.Node, inside: set[fx.Node], convs: list[fx.Node]) -> int:
        seen, pending = {node}, [node]
        while pending:
            for user in pending.pop().users:
                if user in inside and user not in seen:
                    seen.add(user)
                    pending.append(user)
        seen.discard(node)
        return sum(conv in seen for conv in convs)


def _nearest(
    node: fx.Node,
    neighbours: Callable[[fx.Node], Iterable[fx.Node]],
    known: dict[fx.Node, int | None],
) -> Iterator[fx.Node]:
    """The nearest maps with positions in one direction: what made a node, or is made from it."""
    seen, pending = set[fx.Node](), list(neighbours(node))
    while pending:
        here = pending.pop()
        if here in seen:
            continue
        seen.add(here)
        if known.get(here) is not None:
            yield here
        else:
            pending.extend(neighbours(here))


def _sources(node: fx.Node) -> Iterable[fx.Node]:
    return node.all_input_nodes


def _users(node: fx.Node) -> Iterable[fx.Node]:
    return node.users


def _wrappable(calls: Iterable[Call], node: fx.Node) -> Iterator[tuple[Call, bool]]:
    """Modules called once whose only input, or only output, is the node."""
    calls = tuple(calls)
    times: dict[str, int] = {}
    for call in calls:
        times[call.path] = times.get(call.path, 0) + 1
    for call in calls:
        if not call.simple or times[call.path] > 1 or not call.path:
            continue
        if call.inputs == (node,):
            yield call, True
        elif call.outputs == (node,):
            yield call, False
