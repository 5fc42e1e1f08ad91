"""The hourglasses of a model: regions of low resolution between a reduction and an up-sampling.

Looked for at every scale, from the lowest up. Where no layer has weights, or all that comes from a
region only weighs other maps, as attention does, is none. At the lowest scale every region counts.
One at a higher scale counts where it is the bottom of an hourglass of its own: it has nothing in
common with those below it, and of any two one is reached from the finest resolution by reductions
that the other does not share. So stages of different depth in a row are found each, and a level on
the way down or up of a larger hourglass is not taken for one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import fx

from eslkit.graph.gates import is_gate, was_gate
from eslkit.graph.maps import PRODUCTS, Map, grid_of, moves_data, nearest, op_name, sources, users
from eslkit.graph.trace import Traced

__all__ = ["Region", "closure", "find_regions"]

_APART = set("split split_with_sizes unsafe_split unsafe_chunk chunk unbind select narrow".split())
_GLOBAL = ("mean", "adaptive", "sum", "amax")
_RAISING = set(
    "max_unpool2d max_unpool3d grid_sampler_2d grid_sampler_3d grid_sampler col2im slice_scatter "
    "index index_select".split()
)
_MOST_AVERAGED = 4  # along an axis; a mean over more is a summary


@dataclass
class Region:
    """What lies between the entries and the exits of an hourglass's lowest scale."""

    scale: int
    nodes: set[fx.Node]
    entries: set[fx.Node]
    exits: set[fx.Node]
    raised: set[fx.Node]
    """The finer maps that are made from the exits."""


def find_regions(
    traced: Traced,
    maps: Mapping[fx.Node, Map],
    scales: Mapping[fx.Node, int],
    dims: int,
    *,
    written_out: bool = False,
) -> list[Region]:
    """The regions of all hourglasses, in the order in which they are run.

    Args:
        traced: the traced model.
        maps: its maps.
        scales: the scale of every map.
        dims: the spatial dimensions of the maps.
        written_out: whether any code counts as a reduction or an up-sampling that makes a map of
            another scale, and of nothing else than such maps.
    """
    kind = _LooseFinder if written_out else _Finder
    finder = kind(traced, dict(maps), dict(scales), dims)
    found: list[Region] = []
    doubtful: list[Region] = []
    for scale in sorted(set(scales.values())):
        for region in finder.regions(scale):
            if not finder.has_layers(region):
                doubtful.append(region)
                finder.through |= region.nodes
            elif finder.is_gate(region):
                doubtful.append(region)
            elif not found and finder.is_in_pyramid(region):
                finder.through |= region.nodes
            elif not found or scale == found[0].scale or finder.is_apart(region, found):
                found.append(region)
    if not found and not written_out:
        found = [region for region in doubtful if region.scale == doubtful[0].scale]
    order = {node: i for i, node in enumerate(traced.exported.graph.nodes)}
    return sorted(found, key=lambda region: min(order[node] for node in region.nodes))


class _Finder:
    def __init__(
        self, traced: Traced, maps: dict[fx.Node, Map], scales: dict[fx.Node, int], dims: int
    ) -> None:
        self.traced = traced
        self.maps = maps
        self.scales = scales
        self.dims = dims
        self.through: set[fx.Node] = set()
        """What lies at a lower scale, but has no layers or no grid: no bottleneck of its own."""

    def regions(self, scale: int) -> list[Region]:
        """What lies between the entries and the exits at this scale, one item a region."""
        found: list[Region] = []
        for entry in (n for n in self.maps if self._is_entry(n, scale)):
            reached = self._reach(entry, scale)
            raised = self._all_raised(reached, scale)
            if not raised:
                continue
            region = Region(scale, reached, {entry}, set(raised), set().union(*raised.values()))
            for other in [r for r in found if r.nodes & reached]:
                found.remove(other)
                region.nodes |= other.nodes
                region.entries |= other.entries
                region.exits |= other.exits
                region.raised |= other.raised
            found.append(region)
        good: list[Region] = []
        for region in found:
            self._complete(region)
            if self._has_grid(region):
                good.append(region)
            else:  # the steps of a recurrence: part of the region around it
                self.through |= region.nodes
        return good

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
        return () if product or _takes_apart(node) else sources(node)

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

    def _all_raised(self, reached: set[fx.Node], scale: int) -> dict[fx.Node, set[fx.Node]]:
        """The maps among these that finer ones are made from, with those."""
        maps = (node for node in reached if node in self.maps)
        return {node: up for node in maps if (up := self._raised(node, scale))}

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
            elif scale > 1 and (moves_data(user) or op_name(user) == "slice_scatter"):
                pending.extend(users(user))
        return found

    def _reach(self, start: fx.Node, scale: int) -> set[fx.Node]:
        reached, pending = {start}, [start]
        while pending:
            for user in users(pending.pop()):
                here = user in self.through or self.scales.get(user, scale) == scale
                if here and user not in reached:
                    reached.add(user)
                    pending.append(user)
        return reached

    def _has_grid(self, region: Region) -> bool:
        """Whether the positions of its maps are known: a row of vectors has none."""
        at_scale = (node for node in region.nodes if self.scales.get(node) == region.scale)
        return any(grid_of(node, self.maps, self.dims) is not None for node in at_scale)

    def _complete(self, region: Region) -> None:
        """All that lies on a way from an entry to an exit, whatever its resolution.

        A classifier that hangs on the bottleneck leads to no exit, and does not count.
        """
        behind = closure(region.entries, users)
        ends = {s for node in region.raised for s in sources(node)} | region.exits
        region.nodes = behind & closure(ends & behind, sources)

    def has_layers(self, region: Region) -> bool:
        """Whether layers with weights work there; a pooling that is undone at once has none."""
        return bool((region.nodes | region.raised) & set(self.traced.resolution.layers))

    def is_gate(self, region: Region) -> bool:
        """Whether all that comes from the region only weighs other maps, as attention does."""
        seen, pending = set(region.raised), list(region.raised)
        while pending:
            node = pending.pop()
            if is_gate(node) or (node in region.raised and was_gate(node)):
                continue
            if node in self.traced.exported.outputs:
                return False
            for user in users(node):
                if user not in seen:
                    seen.add(user)
                    pending.append(user)
        return True

    def is_in_pyramid(self, region: Region) -> bool:
        """Whether it is a branch of a pyramid pooling that has a bottleneck around it.

        One map is reduced by several factors, and all that comes of it is brought back to its size
        and joined.
        """
        above = {
            source
            for entry in region.entries
            for source in nearest(entry, self._reduced, self.maps)
            if self.scales[source] > region.scale
        }
        if len(above) != 1:
            return False
        base = above.pop()
        joined = self._joined(region.raised, base)
        branches = [
            reached
            for other in set(nearest(base, users, self.maps))
            if region.scale != self.scales[other] < self.scales[base]
            and (reached := self._branch(other, base, joined))
        ]
        if not joined or not branches:
            return False
        before = set(self.through)
        self.through |= region.nodes.union(*branches)
        around = [r for r in self.regions(self.scales[base]) if base in r.nodes]
        if any(self.has_layers(r) and not self.is_gate(r) for r in around):
            return True
        self.through = before
        return False

    def _branch(self, start: fx.Node, base: fx.Node, joined: set[fx.Node]) -> set[fx.Node]:
        """What lies on a branch that is not reduced again and joins the others; empty if none."""
        scale = self.scales[start]
        if not self._is_entry(start, scale):
            return set()
        reached = self._reach(start, scale)
        maps = [node for node in reached if self.scales.get(node) == scale]
        below = (n for node in maps for n in nearest(node, users, self.maps))
        if any(self.scales[n] < scale and self._is_entry(n, self.scales[n]) for n in below):
            return set()
        raised = self._all_raised(reached, scale)
        others = self._joined(set[fx.Node]().union(*raised.values()), base)
        return reached if joined & others else set()

    def _joined(self, raised: set[fx.Node], base: fx.Node) -> set[fx.Node]:
        """What finer maps lead to at the scale of another map; empty if theirs is another."""
        scale = self.scales[base]
        if any(self.scales[node] != scale for node in raised):
            return set()
        return set[fx.Node]().union(*(self._reach(node, scale) for node in raised))

    def is_apart(self, region: Region, others: list[Region]) -> bool:
        """Whether a region is the bottom of an hourglass beside those of lower scale."""
        below = [other for other in others if other.scale < region.scale]
        if any(region.nodes & other.nodes for other in others):
            return False
        if any(self._is_joined_by(region, other) for other in below):
            return False
        return all(self._comes_alone(region, o) or self._comes_alone(o, region) for o in below)

    def _is_joined_by(self, region: Region, other: Region) -> bool:
        """Whether what comes up from another hourglass meets there what does not come from it.

        So does a decoder meet a pooled image. A later hourglass is entered with what came up.
        """
        behind = closure(other.raised, users)
        return bool(region.nodes & behind) and not region.entries & behind

    def _comes_alone(self, region: Region, other: Region) -> bool:
        """Whether reductions of its own lead to a region from the finest scale of the two."""
        top = min(self._top(region), self._top(other))
        shared = closure(other.entries, sources) | other.nodes
        seen, pending = set(region.entries), list(region.entries - shared)
        while pending:
            for source in sources(pending.pop()):
                scale = self.scales.get(source, region.scale)
                if scale >= top > region.scale:
                    return True
                if source not in seen | shared and scale >= region.scale:
                    seen.add(source)
                    pending.append(source)
        return False

    def _top(self, region: Region) -> int:
        """The finest scale of its hourglass: what is reached both before it and behind it."""
        around = (closure(region.entries, sources), closure(region.raised, users))
        return min(max(self.scales.get(node, 0) for node in nodes) for nodes in around)


class _LooseFinder(_Finder):
    """Takes any code for a reduction or an up-sampling that makes a map of another scale.

    What makes a finer map must make it of coarse maps alone: so neither attention nor what is
    spread over a finer map is one. A mean that leaves one position along an axis is a summary.
    """

    def __init__(
        self, traced: Traced, maps: dict[fx.Node, Map], scales: dict[fx.Node, int], dims: int
    ) -> None:
        super().__init__(traced, maps, scales, dims)
        self.given = closure(traced.exported.inputs, users)
        """What depends on the model's inputs."""

    def _is_entry(self, node: fx.Node, scale: int) -> bool:
        if self.scales[node] != scale or scale == 1 or _takes_apart(node):
            return False
        above = [s for s in nearest(node, self._reduced, self.maps) if self.scales[s] > scale]
        return any(self._keeps_axes(node, source) for source in above)

    def _keeps_axes(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether all axes keep several positions, and a fourth of them behind a mean."""
        sizes = [grid_of(n, self.maps, self.dims) for n in (node, source)]
        if sizes[0] is None or sizes[1] is None:
            return False
        most = _MOST_AVERAGED if any(g in op_name(node) for g in _GLOBAL) else math.inf
        pairs = zip(*sizes, strict=True)
        return all(a == b or (a > 1 and b <= most * a) for a, b in pairs)

    def _reduced(self, node: fx.Node) -> Iterable[fx.Node]:
        """As before, but a product with numbers that the code has is a reduction too."""
        product = op_name(node) in PRODUCTS and len(self.given & set(sources(node))) > 1
        return () if product or _takes_apart(node) else sources(node)

    def _all_raised(self, reached: set[fx.Node], scale: int) -> dict[fx.Node, set[fx.Node]]:
        made_of: dict[fx.Node, set[fx.Node]] = {}
        """What is made of coarse maps alone, with those that it is made of."""
        found: dict[fx.Node, set[fx.Node]] = defaultdict(set)
        for node in self.traced.exported.graph.nodes:
            given = self.given & set(sources(node))
            if self.scales.get(node) == scale:
                made_of[node] = {node} & reached
            elif given and all(made_of.get(source) for source in given):
                coarse = set[fx.Node]().union(*(made_of[source] for source in given))
                if node not in self.maps:
                    made_of[node] = coarse
                elif self.scales[node] > scale:
                    for one in coarse:
                        found[one].add(node)
        return found


def _samples(node: fx.Node, scale: int) -> bool:
    """Whether the operation can make more positions of its input, other than by broadcasting."""
    name = op_name(node)
    if name == "convolution":
        return bool(node.args[6])
    if "upsample" in name or name in _RAISING or name == "pixel_shuffle":
        return True
    return scale > 1 and moves_data(node)


def closure(start: Iterable[fx.Node], step: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """All that is reached from some nodes by steps, they included."""
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
