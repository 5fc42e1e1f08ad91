"""Where a level can be inserted: edges that separate a bottleneck's entries from its exits.

A bottleneck is the region of lowest resolution between a reduction and an up-sampling. Its entries
are the maps that were reduced to its resolution, its exits those that are brought to a finer one.
A place is a set of edges, the uses of one map inside a module or behind it, without which no way
leads from an entry to an exit: a level put there sees everything that passes the bottleneck.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import networkx as nx
from torch import fx

from eslkit.graph.export import Call
from eslkit.graph.maps import (
    PRODUCTS,
    Layout,
    find_maps,
    grid_of,
    moves_data,
    nearest,
    op_name,
    scales_of,
    sources,
    users,
)
from eslkit.graph.trace import Traced

__all__ = ["Bottleneck", "Place", "find_bottlenecks", "op_name", "places_at"]

_APART = set("split split_with_sizes unsafe_split unsafe_chunk chunk unbind select narrow".split())
_GLOBAL = ("mean", "adaptive", "sum", "amax")
_RAISING = set(
    "max_unpool2d max_unpool3d grid_sampler_2d grid_sampler_3d grid_sampler col2im slice_scatter "
    "index index_select".split()
)


@dataclass(frozen=True)
class Place:
    """An edge, as the input or the output of a module that can be wrapped."""

    node: fx.Node
    path: str
    """The module to wrap."""
    before: bool
    """Whether the level goes before the module (the edge is its input) or behind it."""
    slots: tuple[int, ...]
    """Which of the tensors that go in, or come out, the edge is."""
    width: int
    """Channels on the edge."""
    layout: Layout
    sizes: tuple[int, ...]
    """Positions along each spatial axis."""
    layers_before: int
    """Layers with weights in the bottleneck that the edge does not lead to."""
    layers_behind: int

    def __str__(self) -> str:
        return f"{'before' if self.before else 'behind'} {self.path}"


@dataclass(frozen=True)
class Bottleneck:
    """A connected region of lowest resolution between a reduction and an up-sampling."""

    nodes: tuple[fx.Node, ...]
    """Everything on a way from an entry to an exit."""
    entries: tuple[fx.Node, ...]
    exits: tuple[fx.Node, ...]
    raised: tuple[fx.Node, ...]
    """The finer maps that are made from the exits."""
    positions: int
    places: tuple[Place, ...]
    """Where a level can go, best first."""


def find_bottlenecks(traced: Traced) -> tuple[Bottleneck, ...]:
    """All bottlenecks of a model: one for each hourglass; empty where there is none."""
    finder = _Finder(traced)
    for scale in sorted(set(finder.scales.values())):
        regions = finder.regions(scale)
        if regions:
            return tuple(finder.with_places(regions, scale))
    return ()


def places_at(traced: Traced, path: str) -> tuple[Place, ...]:
    """Edges at one module, in a bottleneck or not: its only input first, then its only output."""
    finder = _Finder(traced)
    found: dict[tuple[bool, tuple[int, ...]], Place] = {}
    calls = [call for call in traced.exported.calls if call.path == path]
    for call, before, slots, node in _edges(calls):
        whole = len(call.inputs if before else call.outputs) == len(slots)
        place = finder.place(node, path, before, slots, (0, 0)) if whole else None
        if place is not None:
            found.setdefault((before, slots), place)
    return tuple(sorted(found.values(), key=lambda place: not place.before))


@dataclass
class _Region:
    nodes: set[fx.Node]
    entries: set[fx.Node]
    exits: set[fx.Node]
    raised: set[fx.Node]


class _Finder:
    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.maps = find_maps(traced)
        self.scales = scales_of(self.maps, traced.resolution.dims)
        self.order = {node: i for i, node in enumerate(traced.exported.graph.nodes)}
        self.outputs = set(traced.exported.outputs)

    def regions(self, scale: int) -> list[_Region]:
        """What lies between the entries and the exits at this scale, one item a region."""
        found: list[_Region] = []
        for entry in (n for n in self.maps if self._is_entry(n, scale)):
            reached = self._reach(entry, scale)
            maps = [n for n in reached if n in self.maps]
            raised = {n: up for n in maps if (up := self._raised(n, scale))}
            if not raised:
                continue
            region = _Region(reached, {entry}, set(raised), set().union(*raised.values()))
            for other in [r for r in found if r.nodes & reached]:
                found.remove(other)
                region.nodes |= other.nodes
                region.entries |= other.entries
                region.exits |= other.exits
                region.raised |= other.raised
            found.append(region)
        for region in found:
            self._complete(region)
        return sorted(found, key=lambda region: min(self.order[n] for n in region.nodes))

    def _is_entry(self, node: fx.Node, scale: int) -> bool:
        if self.scales[node] != scale or any(g in op_name(node) for g in _GLOBAL):
            return False
        if _takes_apart(node):
            return False
        if not any(self.scales[s] > scale for s in nearest(node, self._reduced, self.maps)):
            return False
        return scale > 1 or not self._from_global(node)

    def _reduced(self, node: fx.Node) -> Iterable[fx.Node]:
        """What a node is made from, unless by attention or cutting, which are no reductions."""
        product = op_name(node) in PRODUCTS and node not in self.traced.resolution.layers
        return () if product or _takes_apart(node) else node.all_input_nodes

    def _from_global(self, node: fx.Node) -> bool:
        """Whether a map of one position comes from a global pooling, as that of a gate does."""
        seen, pending = {node}, list(node.all_input_nodes)
        while pending:
            here = pending.pop()
            if here in seen:
                continue
            seen.add(here)
            if any(g in op_name(here) for g in _GLOBAL):
                return True
            if here not in self.maps:
                pending.extend(here.all_input_nodes)
        return False

    def _raised(self, node: fx.Node, scale: int) -> set[fx.Node]:
        """Finer maps made from this one by an up-sampling."""
        found: set[fx.Node] = set()
        seen, pending = {node}, list(users(node))
        while pending:
            user = pending.pop()
            if user in seen:
                continue
            seen.add(user)
            if user in self.maps:
                if self.scales[user] > scale and _samples(user, scale):
                    found.add(user)
            elif scale > 1 and moves_data(user):
                pending.extend(users(user))
        return found

    def _reach(self, start: fx.Node, scale: int) -> set[fx.Node]:
        reached, pending = {start}, [start]
        while pending:
            for user in users(pending.pop()):
                if user not in reached and self.scales.get(user, scale) == scale:
                    reached.add(user)
                    pending.append(user)
        return reached

    def _complete(self, region: _Region) -> None:
        """All that lies on a way from an entry to an exit, whatever its resolution.

        A classifier that hangs on the bottleneck leads to no exit, and does not count.
        """
        behind = _closure(region.entries, users)
        ends = {s for node in region.raised for s in node.all_input_nodes} | region.exits
        region.nodes = behind & _closure(ends & behind, sources)

    def with_places(self, regions: list[_Region], scale: int) -> Iterator[Bottleneck]:
        """The bottlenecks, each with its places.

        A module that is called several times is a place only where every call of it is one.
        """
        found = [list(self._places(region)) for region in regions]
        fits: dict[tuple[str, bool, tuple[int, ...]], set[int]] = defaultdict(set)
        for places in found:
            for call, place in places:
                fits[place.path, place.before, place.slots].add(call)
        calls: dict[str, int] = defaultdict(int)
        for call in self.traced.exported.calls:
            calls[call.path] += 1
        for region, places in zip(regions, found, strict=True):
            good = [
                place
                for _, place in places
                if len(fits[place.path, place.before, place.slots]) == calls[place.path]
            ]
            yield Bottleneck(
                nodes=tuple(sorted(region.nodes, key=self.order.__getitem__)),
                entries=tuple(sorted(region.entries & region.nodes, key=self.order.__getitem__)),
                exits=tuple(sorted(region.exits, key=self.order.__getitem__)),
                raised=tuple(sorted(region.raised, key=self.order.__getitem__)),
                positions=scale,
                places=tuple(sorted(good, key=self._preference)),
            )

    def _places(self, region: _Region) -> Iterator[tuple[int, Place]]:
        passed = self._passed_by_all(region)
        layers = [n for n in region.nodes if n in self.traced.resolution.layers]
        for call, before, slots, node in _edges(self.traced.exported.calls):
            if node not in passed or not call.path:
                continue
            own = self.maps[node]
            if own.positions * 2**self.traced.resolution.dims < self.scales[node]:
                continue
            cut = {user for user in users(node) if self._is_cut(call, before, user)}
            if not cut or not self._separates(node, cut, region):
                continue
            behind = _closure(cut & region.nodes, users)
            count = sum(layer in behind for layer in layers)
            counts = (len(layers) - count, count)
            place = self.place(node, call.path, before, slots, counts)
            if place is not None:
                yield call.number, place

    def place(
        self,
        node: fx.Node,
        path: str,
        before: bool,  # noqa: FBT001  one of a place's own fields
        slots: tuple[int, ...],
        layers: tuple[int, int],
    ) -> Place | None:
        """The place of that form; None where the node is no map, or its positions no grid."""
        own = self.maps.get(node)
        if own is None:
            return None
        grid = grid_of(node, self.maps, self.traced.resolution.dims)
        if grid is None:
            return None
        return Place(node, path, before, slots, own.width, own.layout, grid, *layers)

    def _is_cut(self, call: Call, before: bool, user: fx.Node) -> bool:  # noqa: FBT001
        where = self.order[user]
        return call.start <= where < call.stop if before else where >= call.stop

    def _passed_by_all(self, region: _Region) -> set[fx.Node]:
        """Maps that every way from an entry to an exit leads through."""
        graph: nx.DiGraph[object] = nx.DiGraph()
        for node in region.nodes:
            for user in users(node):
                if user in region.nodes or user in region.raised:
                    graph.add_edge(node, user)
        for entry in region.entries:
            graph.add_edge("start", entry)
        for node in region.raised:
            graph.add_edge(node, "stop")
        if not nx.has_path(graph, "start", "stop"):
            return set()
        above = nx.immediate_dominators(graph, "start")
        found: set[fx.Node] = set()
        here = above["stop"]
        while here != "start":
            if isinstance(here, fx.Node) and here in region.nodes and here in self.maps:
                found.add(here)
            here = above[here]
        return found

    def _separates(self, node: fx.Node, cut: set[fx.Node], region: _Region) -> bool:
        """Whether no way leads from an entry to an exit without these uses of the node."""
        seen, pending = set(region.entries), list(region.entries)
        while pending:
            here = pending.pop()
            for user in users(here):
                if here is node and user in cut:
                    continue
                if user in region.raised:
                    return False
                if user in region.nodes and user not in seen:
                    seen.add(user)
                    pending.append(user)
        return True

    def _preference(self, place: Place) -> tuple[object, ...]:
        """Between layers, in the middle, right before a layer, as far inside as can be."""
        between = place.layers_before > 0 and place.layers_behind > 0
        gap = abs(place.layers_before - place.layers_behind)
        return (
            not between,
            math.prod(place.sizes) != self.maps[place.node].positions,  # cut into windows
            place.layout != "first",
            gap,
            not place.before,
            -self.order[place.node],
            -place.path.count("."),
            -len(place.path),
        )


def _samples(node: fx.Node, scale: int) -> bool:
    """Whether the operation can make more positions of its input, other than by broadcasting."""
    name = op_name(node)
    if name == "convolution":
        return bool(node.args[6])
    if "upsample" in name or name in _RAISING or name == "pixel_shuffle":
        return True
    return scale > 1 and moves_data(node)


def _closure(
    start: Iterable[fx.Node], step: Callable[[fx.Node], Iterable[fx.Node]]
) -> set[fx.Node]:
    seen = set(start)
    pending = list(seen)
    while pending:
        for node in step(pending.pop()):
            if node not in seen:
                seen.add(node)
                pending.append(node)
    return seen


def _takes_apart(node: fx.Node) -> bool:
    """Whether the operation gives positions that lie together, as the steps of a recurrence do."""
    whole = op_name(node) == "slice" and bool(len(node.args) < 5 or node.args[4] == 1)
    return whole or op_name(node) in _APART


def _edges(calls: Iterable[Call]) -> Iterator[tuple[Call, bool, tuple[int, ...], fx.Node]]:
    """The tensors that go into and come out of modules: call, whether in, which, and node."""
    for call in calls:
        for before, nodes in ((True, call.inputs), (False, call.outputs)):
            for node in dict.fromkeys(nodes):
                slots = tuple(i for i, other in enumerate(nodes) if other is node)
                yield call, before, slots, node
