"""Resolution levels: at how many positions a layer works, against the finest of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch import fx

from eslkit.graph.export import Exported
from eslkit.graph.labels import Labels
from eslkit.graph.values import Value, flat, support

__all__ = ["Resolution", "resolution_of"]

_GLOBAL = ("mean", "adaptive", "amax", "sum")
_MATRIX = {"mm", "addmm", "bmm", "baddbmm"}


class Resolution:
    """Levels of the layers of a traced model."""

    def __init__(self, exported: Exported, labels: Labels) -> None:
        self._exported = exported
        self._labels = labels
        self.layers: dict[fx.Node, tuple[int, int]] = {}
        """Operation with a weight -> positions that it reads, positions that it writes."""
        self._pairs = set[fx.Node]()
        convolutions = {node for node in exported.graph.nodes if self._convolves(node)}
        self.dims = self._spatial_dims(convolutions)
        for node in exported.graph.nodes:
            found = self._positions(node, convolutions)
            if found:
                self.layers[node] = found
        self.finest = max((max(pair) for pair in self.layers.values()), default=1)
        self.num_levels = 1 + max((self.level(node) for node in self.layers), default=0)

    def _spatial_dims(self, convolutions: set[fx.Node]) -> int:
        """Of the convolutions with the most: sound may first be brought into a plane by one."""
        if convolutions:
            return max(1, *(len(self._axes_of_positions(node)) for node in convolutions))
        ranks = [len(self._exported.shape(node)) for node in self._exported.inputs]
        return max(1, ranks[0] - 2) if ranks else 1

    def _convolves(self, node: fx.Node) -> bool:
        """Whether a node is a convolution with a weight of the model."""
        if _name(node) != "convolution" or node in self._exported.dead:
            return False
        kernel = node.args[1]
        return isinstance(kernel, fx.Node) and self._is_learnt(kernel)

    def _axes_of_positions(self, node: fx.Node) -> list[int]:
        """Axes over which a convolution slides, but for those that are channels of others."""
        value = self._labels.values[node]
        parts = value.parts if isinstance(value, Value) else ()
        channels = frozenset[int]().union(*(support(part) for part in parts))
        return [axis for axis in range(2, len(self._exported.shape(node))) if axis not in channels]

    def _positions(self, node: fx.Node, convolutions: set[fx.Node]) -> tuple[int, int] | None:
        if node.op != "call_function" or not hasattr(node.target, "overloadpacket"):
            return None
        if node in self._exported.dead:
            return None
        tensors = [arg for arg in node.args if isinstance(arg, fx.Node)]
        if node in convolutions:
            axes = self._axes_of_positions(node)
            slides = len(axes) < len(self._exported.shape(node)) - 2
            power = self.dims / len(axes) if slides and axes else 1  # as many as on a whole map
            read, written = (
                round(math.prod(self._exported.shape(n)[axis] for axis in axes) ** power)
                for n in (tensors[0], node)
            )
            return (
                (read, written)
                if (rows := self._paired(node, tensors[0], read)) is None
                else (rows, rows)
            )
        values = [self._labels.values[arg] for arg in tensors]
        if _name(node) in _MATRIX and any(isinstance(v, Value) and v.weight for v in values[-2:]):
            if all(v.weight for v in values):
                return None
            batch = self._batch()
            rows = math.prod(self._exported.shape(node)[:-1]) // batch
            source = next(arg for arg, v in zip(tensors, values, strict=True) if not v.weight)
            rows = max(1, self._paired(node, source, rows) or rows)
            return rows, rows
        return None

    def _paired(self, layer: fx.Node, source: fx.Node, positions: int) -> int | None:
        """Positions on one side of a map of attention, which has all pairs of them; else None."""
        pending, seen = [source], {source}
        while pending:
            node = pending.pop()
            if node in self._pairs or not (node in self.layers or _name(node) in _MATRIX):
                fresh = [n for n in node.all_input_nodes if n not in seen]
                pending += fresh
                seen.update(fresh)
            elif self._pairs_positions(node) == positions:
                self._pairs.add(layer)
                return self._exported.shape(node)[-2]
        return None

    def _pairs_positions(self, node: fx.Node) -> int | None:
        """Pairs of positions in a product of two activations that is summed over channels."""
        values = [self._labels.values[arg] for arg in node.all_input_nodes[-2:]]
        made = self._labels.values[node].parts
        if any(value.weight for value in values) or any(support(p) & {1, 2} for p in made):
            return None
        return math.prod(self._exported.shape(node)[-2:])

    def _is_learnt(self, kernel: fx.Node) -> bool:
        """Whether a kernel is made of a weight, not of what another convolution gave."""
        seen, pending = {kernel}, [kernel]
        while pending:
            node = pending.pop()
            if node.op == "get_attr":
                return True
            if node in self._exported.parameters and len(self._exported.shape(node)) > 1:
                return True
            sources = () if _name(node) == "convolution" else node.all_input_nodes
            pending += [source for source in sources if source not in seen]
            seen.update(sources)
        return False

    def _batch(self) -> int:
        shapes = [self._exported.shape(node) for node in self._exported.inputs]
        return next((shape[0] for shape in shapes if shape), 1) or 1

    def of_positions(self, positions: int) -> int:
        """Level of a map with so many positions."""
        return max(0, round(math.log2(self.finest / max(1, positions)) / self.dims))

    def level(self, node: fx.Node) -> int:
        """Level of a layer: of the coarser of the maps that it reads and writes.

        So a strided convolution belongs to the level below, and a transposed one to the level
        from which it comes (the paper's blocks, Fig. 3).
        """
        positions = min(self.layers[node])
        if positions == 1 < self.finest and self._is_gate(node):
            return self._level_served(node)
        return self.of_positions(positions)

    def _is_gate(self, node: fx.Node) -> bool:
        """Whether a layer of one position works on a vector, not on a map halved that often.

        Embeddings and global means are vectors.
        """
        pending, seen = list(node.all_input_nodes), set[fx.Node]()
        while pending:
            source = pending.pop(0)
            if source in seen:
                continue
            seen.add(source)
            name = _name(source)
            if any(word in name for word in _GLOBAL):
                return True
            if source in self.layers and max(self.layers[source]) > 1:
                return False
            pending.extend(source.all_input_nodes)
        return True

    def _level_served(self, node: fx.Node) -> int:
        """Level of the next layer with positions: gates and embeddings have none themselves."""
        pending, seen = list(node.users), set[fx.Node]()
        while pending:
            user = pending.pop(0)
            if user in seen:
                continue
            seen.add(user)
            if user in self.layers and min(self.layers[user]) > 1:
                return self.of_positions(min(self.layers[user]))
            pending.extend(user.users)
        return self.of_positions(1)


def _name(node: fx.Node) -> str:
    return getattr(getattr(node.target, "overloadpacket", None), "__name__", "")


def resolution_of(exported: Exported, labels: Labels) -> Resolution:
    """Levels of all layers of a traced model."""
    return Resolution(exported, labels)


def group_levels(
    resolution: Resolution, labels: Labels, owner: Mapping[int, int]
) -> dict[int, int]:
    """Group number -> level: the finest among the layers that produce its channels.

    Args:
        resolution: the model's levels.
        labels: the labels of every node.
        owner: representative atom -> group number.
    """
    levels: dict[int, int] = {}
    for node in resolution.layers:
        value = labels.values[node]
        if not isinstance(value, Value):
            continue
        level = resolution.level(node)
        for part in value.parts:
            for root in np.unique(labels.atoms.find(flat(part))).tolist():
                number = owner.get(root)
                if number is not None:
                    levels[number] = min(level, levels.get(number, level))
    return levels
