"""Where a level can be inserted: edges that separate a bottleneck's entries from its exits.

A bottleneck is the region of lowest resolution between a reduction and an up-sampling. Its entries
are the maps that were reduced to its resolution, its exits those that are brought to a finer one.
A place is a set of edges, the uses of one map inside a module or behind it at every call of the
module, without which no way leads from an entry to an exit: a level put there sees everything that
passes the bottleneck. Where there is none, as some entries lead past it (an attention gate that
compares with the bottleneck, a second stream that joins it), the places are those that separate
the entries on which alone most of the layers depend.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import networkx as nx
from torch import fx

from eslkit.graph.export import Call
from eslkit.graph.maps import Layout, find_maps, grid_of, op_name, scales_of, sources, users
from eslkit.graph.regions import Region, closure, find_regions
from eslkit.graph.trace import Traced

__all__ = ["Bottleneck", "Place", "find_bottlenecks", "op_name", "places_at"]


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
class _Edge:
    """A tensor that goes into a call of a module, or comes out of it."""

    call: Call
    before: bool
    slots: tuple[int, ...]
    node: fx.Node


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
    for dims, written_out in _readings(traced):
        finder = _Finder(traced, dims)
        regions = find_regions(traced, finder.maps, finder.scales, dims, written_out=written_out)
        if regions:
            return tuple(finder.with_places(regions))
    return ()


def _readings(traced: Traced) -> Iterator[tuple[int, bool]]:
    """Dimensions of maps, and whether samplings that are written out count, surest first."""
    yield traced.resolution.dims, False
    for dims in _usual_dims(traced):
        yield dims, False
        yield dims, True


def places_at(traced: Traced, path: str) -> tuple[Place, ...]:
    """Edges at one module, in a bottleneck or not: its only input first, then its only output."""
    dims = dict.fromkeys(dims for dims, _ in _readings(traced))
    found = (_places_of(_Finder(traced, each), path) for each in dims)
    return next(filter(None, found), ())


def _places_of(finder: _Finder, path: str) -> tuple[Place, ...]:
    found: dict[tuple[bool, tuple[int, ...]], Place] = {}
    calls = [call for call in finder.traced.exported.calls if call.path == path]
    for call, before, slots, node in _edges(calls):
        whole = len(call.inputs if before else call.outputs) == len(slots)
        place = finder.place(node, path, before, slots, (0, 0)) if whole else None
        if place is not None:
            found.setdefault((before, slots), place)
    return tuple(sorted(found.values(), key=lambda place: not place.before))


def _usual_dims(traced: Traced) -> list[int]:
    """The dimensions of half of the convolutions, the most first.

    A network in two dimensions may have a stem over frames, or a convolution over time.
    """
    convolutions = [n for n in traced.resolution.layers if op_name(n) == "convolution"]
    counts = Counter(len(traced.exported.shape(node)) - 2 for node in convolutions)
    usual = [dims for dims, count in counts.items() if 2 * count >= len(convolutions)]
    return sorted(usual, reverse=True) or [traced.resolution.dims]


class _Finder:
    def __init__(self, traced: Traced, dims: int) -> None:
        self.traced = traced
        self.dims = dims
        self.maps = find_maps(traced, dims)
        self.scales = scales_of(self.maps, dims)
        self.order = {node: i for i, node in enumerate(traced.exported.graph.nodes)}
        self.outputs = set(traced.exported.outputs)

    def with_places(self, regions: list[Region]) -> Iterator[Bottleneck]:
        """The bottlenecks, each with its places."""
        passed = [self._passed_by_all(region) for region in regions]
        places: list[list[Place]] = [[] for _ in regions]
        for edges in self._at_all_calls():
            for number, place in self._separating(edges, regions, passed):
                places[number].append(place)
        for region, good in zip(regions, places, strict=True):
            good = good or self._partly(region)
            usual = self._usual_width(region, good)
            yield Bottleneck(
                nodes=tuple(sorted(region.nodes, key=self.order.__getitem__)),
                entries=tuple(sorted(region.entries & region.nodes, key=self.order.__getitem__)),
                exits=tuple(sorted(region.exits, key=self.order.__getitem__)),
                raised=tuple(sorted(region.raised, key=self.order.__getitem__)),
                positions=region.scale,
                places=tuple(sorted(good, key=lambda place: self._preference(place, usual))),
            )

    def _at_all_calls(self) -> Iterator[list[_Edge]]:
        """The edges at every module, together for all its calls: a level works at each of them."""
        calls = Counter(call.path for call in self.traced.exported.calls)
        found: dict[tuple[str, bool, tuple[int, ...]], list[_Edge]] = defaultdict(list)
        for call, before, slots, node in _edges(self.traced.exported.calls):
            if call.path and node in self.maps:
                found[call.path, before, slots].append(_Edge(call, before, slots, node))
        for (path, _, _), edges in found.items():
            forms = {(self.maps[e.node].layout, self.maps[e.node].width) for e in edges}
            if len(edges) == calls[path] and len(forms) == 1:
                yield edges

    def _separating(
        self, edges: list[_Edge], regions: list[Region], passed: list[set[fx.Node]]
    ) -> Iterator[tuple[int, Place]]:
        """The place at these edges in every region they are in, if they separate all of those."""
        hosts = {
            number: mine
            for number, region in enumerate(regions)
            if (mine := [edge for edge in edges if edge.node in region.nodes])
        }
        if sum(map(len, hosts.values())) < len(edges):
            return
        found: list[tuple[int, Place]] = []
        for number, mine in hosts.items():
            if len(mine) == 1 and mine[0].node not in passed[number]:
                return
            place = self._place_in(regions[number], mine)
            if place is None:
                return
            found.append((number, place))
        yield from found

    def _partly(self, region: Region) -> list[Place]:
        """The places that separate the entries on which alone the most layers depend, half or more.

        Half of the layers at least, so that a level is not put into a side branch; those that are
        trained, so that it is not put where masks are computed.
        """
        layers = region.nodes & set(self.traced.resolution.layers)
        layers = {layer for layer in layers if not self._is_frozen(layer)} or layers
        best, found = max(1, math.ceil(len(layers) / 2)), list[Place]()
        for edges in self._at_all_calls():
            if any(edge.node not in region.nodes for edge in edges):
                continue
            cuts = self._cuts(edges, region)
            around = self._unseparated(cuts, region)
            alone = len(layers - closure(around, users))
            place = self._place(region, edges, cuts) if alone >= best else None
            if place is None:
                continue
            if alone > best:
                best, found = alone, []
            found.append(place)
        return found

    def _is_frozen(self, layer: fx.Node) -> bool:
        exported = self.traced.exported
        names = {exported.parameters.get(node) for node in layer.all_input_nodes} - {None}
        return bool(names & (exported.frozen | exported.buffers))

    def _place_in(self, region: Region, edges: list[_Edge]) -> Place | None:
        cuts = self._cuts(edges, region)
        if not cuts or self._unseparated(cuts, region):
            return None
        return self._place(region, edges, cuts)

    def _cuts(self, edges: list[_Edge], region: Region) -> set[tuple[fx.Node, fx.Node]]:
        """The uses that the edges stand for; none where one is of too few positions."""
        for edge in edges:
            own = self.maps[edge.node]
            if own.positions * 2**self.dims < self.scales[edge.node]:
                return set()
        return {
            (edge.node, user)
            for edge in edges
            for user in users(edge.node)
            if self._is_cut(edge.call, edge.before, user)
        }

    def _place(
        self, region: Region, edges: list[_Edge], cuts: set[tuple[fx.Node, fx.Node]]
    ) -> Place | None:
        layers = [n for n in region.nodes if n in self.traced.resolution.layers]
        behind = closure({user for _, user in cuts} & region.nodes, users)
        count = sum(layer in behind for layer in layers)
        first = edges[0]
        counts = (len(layers) - count, count)
        return self.place(first.node, first.call.path, first.before, first.slots, counts)

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
        grid = grid_of(node, self.maps, self.dims)
        if grid is None:
            return None
        return Place(node, path, before, slots, own.width, own.layout, grid, *layers)

    def _is_cut(self, call: Call, before: bool, user: fx.Node) -> bool:  # noqa: FBT001
        where = self.order[user]
        return call.start <= where < call.stop if before else where >= call.stop

    def _passed_by_all(self, region: Region) -> set[fx.Node]:
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

    def _unseparated(self, cuts: set[tuple[fx.Node, fx.Node]], region: Region) -> set[fx.Node]:
        """The entries from which a way leads to an exit without these uses of nodes."""
        seen: set[fx.Node] = set()
        pending = [
            (source, end)
            for end in region.raised
            for source in sources(end)
            if source in region.nodes
        ]
        while pending:
            here, user = pending.pop()
            if (here, user) in cuts or here in seen:
                continue
            seen.add(here)
            pending.extend((s, here) for s in sources(here) if s in region.nodes)
        return seen & region.entries

    def _usual_width(self, region: Region, places: list[Place]) -> int:
        """The width that half of the region's layers have at the places around them.

        The thin latent of an autoencoder stands between two layers, and so does the wide middle
        of an inverted block; a residual block counts with all that is in it. Layers that work on
        every channel alone say nothing of the width that the model means.
        """
        mixing = {n for n in region.nodes & set(self.traced.resolution.layers) if self._mixes(n)}
        widths: dict[int, int] = {}
        for place in sorted(places, key=lambda place: self.order[place.node]):
            widths.setdefault(len(closure([place.node], sources) & mixing), place.width)
        found: list[int] = []
        for layer in range(len(mixing)):
            before = [number for number in widths if number <= layer]
            behind = [number for number in widths if number > layer]
            found += [widths[max(before)]] if before else []
            found += [widths[min(behind)]] if behind else []
        return statistics.median_low(found) if found else 0

    def _mixes(self, layer: fx.Node) -> bool:
        """Whether a layer does not work on every channel alone."""
        if op_name(layer) != "convolution":
            return True
        channels = self.traced.exported.shape(layer.all_input_nodes[0])[1]
        return channels == 1 or bool(layer.args[8] != channels)

    def _preference(self, place: Place, usual: int) -> tuple[object, ...]:
        """Between layers, of the usual width, in the middle, right before a layer, far inside."""
        between = place.layers_before > 0 and place.layers_behind > 0
        gap = abs(place.layers_before - place.layers_behind)
        return (
            not between,
            not usual <= 2 * place.width <= 4 * usual,
            math.prod(place.sizes) != self.maps[place.node].positions,  # cut into windows
            place.layout != "first",
            gap,
            not place.before,
            -self.order[place.node],
            -place.path.count("."),
            -len(place.path),
        )


def _edges(calls: Iterable[Call]) -> Iterator[tuple[Call, bool, tuple[int, ...], fx.Node]]:
    """The tensors that go into and come out of modules: call, whether in, which, and node."""
    for call in calls:
        for before, nodes in ((True, call.inputs), (False, call.outputs)):
            for node in dict.fromkeys(nodes):
                slots = tuple(i for i, other in enumerate(nodes) if other is node)
                yield call, before, slots, node
