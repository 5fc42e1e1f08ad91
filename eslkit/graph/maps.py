"""Maps: which tensors of a graph have positions, how they lie in memory, and at which scale.

A map holds channels at positions. Its positions stand behind the channels (convolutions), before
them (linear layers, layer norms), or folded into one axis (the tokens of a transformer).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx

from eslkit.graph.moves import MOVES
from eslkit.graph.trace import Traced
from eslkit.graph.values import Value

__all__ = [
    "PRODUCTS",
    "Layout",
    "Map",
    "find_maps",
    "grid_of",
    "moves_data",
    "nearest",
    "op_name",
    "scales_of",
    "sources",
    "users",
]

Layout = Literal["first", "last", "tokens"]

PRODUCTS = ("bmm", "baddbmm", "mm")
"""Operations that multiply matrices; without a weight among them they mix positions freely."""

_LOCATED = {
    *(f"max_pool{dims}d_with_indices" for dims in (2, 3)),
    *(f"adaptive_max_pool{dims}d" for dims in (1, 2, 3)),
    *(f"fractional_max_pool{dims}d" for dims in (2, 3)),
}
_TURNS = ("permute", "transpose", "t")
_MADE = ("new_", "empty", "zeros", "ones", "full", "rand")


@dataclass(frozen=True)
class Map:
    """A tensor with channels at positions."""

    layout: Layout
    """Channels on axis 1 ("first"), on the last axis ("last"), or tokens (batch, n, channels)."""
    width: int
    sizes: tuple[int, ...]
    """Positions along each spatial axis; a single number for tokens."""
    positions: int
    """All positions of one example, folded into the batch axis or not."""


def op_name(node: fx.Node) -> str:
    """The ATen operation's name, empty for what is no operation."""
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if node.op == "call_function" and packet is not None else ""


def moves_data(node: fx.Node) -> bool:
    """Whether the operation only moves what it is given."""
    return op_name(node) in MOVES or getattr(node.target, "__name__", "") == "getitem"


def find_maps(traced: Traced, dims: int) -> dict[fx.Node, Map]:
    """The maps of so many dimensions among the results of a graph's operations."""
    rank = dims + 2
    nodes = [n for n in traced.exported.graph.nodes if n.op == "call_function"]
    convolved = [traced.exported.shape(n) for n in nodes if op_name(n) == "convolution"]
    batch = min((s[0] for s in convolved if len(s) == rank and s[0]), default=1)
    found: dict[fx.Node, Map] = {}
    for node in (*traced.exported.inputs, *nodes):
        value = traced.labels.values.get(node)
        held = node.meta.get("val")
        if not isinstance(held, Tensor) or not isinstance(value, Value) or value.weight:
            continue
        axes = {axis for axis in range(len(value.shape)) if value.part_on(axis) is not None}
        like = _stays(node, found)
        if like is None and value.given and op_name(node) not in _TURNS:
            like = "first"
        if not axes and like is None:
            continue  # nothing tells where the channels went
        made = None
        if not op_name(node).startswith(_MADE):
            made = _map(node, value.shape, axes or _channel_axis(like, rank), rank, batch)
        if made is not None:
            found[node] = made
    for node in _moved_for_products(traced, found):
        found.pop(node, None)
    found |= {node: made for node in nodes if (made := _convolved(node, found, rank, batch))}
    found = {node: found[node] for node in traced.exported.graph.nodes if node in found}
    finest = max((m.positions for m in found.values() if m.layout != "tokens"), default=0)
    return {
        node: made
        for node, made in found.items()
        if made.layout != "tokens" or (made.positions > 1 and finest % made.positions == 0)
    }


def _convolved(node: fx.Node, maps: dict[fx.Node, Map], rank: int, batch: int) -> Map | None:
    """As a map what a convolution reads, whatever its channels went through before."""
    if node in maps or not any(
        op_name(u) == "convolution" and u.args[0] is node for u in node.users
    ):
        return None
    shape = tuple(node.meta["val"].shape)
    if len(shape) != rank or 0 in shape or shape[0] % batch:
        return None
    return Map("first", shape[1], shape[2:], shape[0] // batch * math.prod(shape[2:]))


def _stays(node: fx.Node, maps: dict[fx.Node, Map]) -> Layout | None:
    """Where the channels are, if the axes are those of a map that the operation is given."""
    known = [maps[s] for source in node.all_input_nodes if (s := _map_behind(source)) in maps]
    if op_name(node) in ("view", "_unsafe_view", "reshape"):
        shape = tuple(node.meta["val"].shape)
        known = [own for own in known if shape[1:] == (own.width, *own.sizes)]
    return known[0].layout if known and op_name(node) not in _TURNS else None


def _channel_axis(layout: Layout | None, rank: int) -> set[int]:
    """The axis of the channels where no label is left on it, as behind a norm of them."""
    return {rank - 1} if layout == "last" else set()


def _map_behind(node: fx.Node) -> fx.Node:
    """The operation itself, or what it splits or tells the indices of."""
    while getattr(node.target, "__name__", "") == "getitem" or _returns_several(node):
        node = node.all_input_nodes[0]
    return node


def _returns_several(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.meta.get("val"), (list, tuple))


def _map(
    node: fx.Node, shape: tuple[int, ...], axes: set[int], rank: int, batch: int
) -> Map | None:
    """A value as a map; None where channels stand on several axes, as the heads of attention do.

    What a sub-pixel operation made is a map, though its channels also lie along all positions.
    """
    if len(shape) not in (3, rank) or 0 in shape or shape[0] % batch:
        return None
    folded, last = shape[0] // batch, len(shape) - 1
    given = axes | {1} if op_name(node) == "pixel_shuffle" else axes
    shuffled = rank > 3 and given == set(range(1, rank))
    if len(shape) == rank and (axes <= {1} or shuffled):
        return Map("first", shape[1], shape[2:], folded * math.prod(shape[2:]))
    if len(shape) == rank and axes == {last}:
        return Map("last", shape[-1], shape[1:-1], folded * math.prod(shape[1:-1]))
    if len(shape) == 3 and axes == {2} and folded == 1:
        return Map("tokens", shape[2], shape[1:2], shape[1])
    return None


def _moved_for_products(traced: Traced, maps: dict[fx.Node, Map]) -> set[fx.Node]:
    """What was only moved and scaled for a product of activations, or moved back behind it.

    Attention cuts tokens into heads for it: no map, whatever its axes look like.
    """
    weights = traced.resolution.layers
    products = [
        n for n in traced.exported.graph.nodes if op_name(n) in PRODUCTS and n not in weights
    ]
    found = set(products)
    for step in (sources, users):
        pending = [other for product in products for other in step(product)]
        seen = set[fx.Node]()
        while pending:
            node = pending.pop()
            alone = len(node.all_input_nodes) == 1 or step is users  # gates weigh what heads give
            scaled = op_name(node) in ("mul", "div", "_softmax") and alone
            moved = moves_data(node) or scaled
            if node in seen or node in weights or not (moved or node not in maps):
                continue
            seen.add(node)
            if moved:
                found.add(node)
            if moved or step is sources:
                pending.extend(step(node))
    return found


def grid_of(node: fx.Node, maps: dict[fx.Node, Map], dims: int) -> tuple[int, ...] | None:
    """Positions along each spatial axis, for tokens too; None where they cannot be known.

    Tokens have the grid of the map that they were made from, or a square one.
    """
    own = maps[node]
    if own.layout != "tokens":
        return own.sizes
    seen, pending = {node}, list(node.all_input_nodes)
    while pending:
        here = pending.pop(0)
        if here in seen:
            continue
        seen.add(here)
        if here in maps and maps[here].layout != "tokens":
            if maps[here].positions == own.positions == math.prod(maps[here].sizes):
                return maps[here].sizes
            continue
        pending.extend(here.all_input_nodes)
    side = round(own.positions ** (1 / dims))
    return (side,) * dims if side**dims == own.positions else None


def scales_of(maps: dict[fx.Node, Map], dims: int) -> dict[fx.Node, int]:
    """Every map's scale: the positions it has, or would have without padding and cropping.

    A convolution without padding makes a map smaller, but it is no reduction: what it makes has
    the scale of what it was given. Nor is it one where several maps of an example are folded into
    the batch axis, or taken out of it; nor an up-sampling where they are laid side by side.
    """
    scales: dict[fx.Node, int] = {}
    for node, own in maps.items():
        scales[node] = own.positions
        known = [s for s in nearest(node, sources, maps) if s in scales]
        same = [s for s in known if maps[s].positions == own.positions]
        same = same or [s for s in known if math.prod(maps[s].sizes) == math.prod(own.sizes)]
        if same:
            scales[node] = max(scales[s] for s in same)
        elif known and _keeps(node, own, maps[known[0]], dims):
            scales[node] = scales[known[0]]
    return scales


def _keeps(node: fx.Node, own: Map, source: Map, dims: int) -> bool:
    name = op_name(node)
    ratio = own.positions / source.positions
    if not 0.5**dims <= ratio <= 2**dims:
        return False
    if name == "convolution":
        return all(step == 1 for step in _numbers(node.args[3]))
    if name == "slice_scatter":
        return bool(len(node.args) < 6 or node.args[5] == 1)
    if name == "slice":
        return bool(len(node.args) < 5 or node.args[4] == 1)
    return "pad" in name or name == "cat"


def _numbers(value: object) -> list[int]:
    return [int(v) for v in value if isinstance(v, int)] if isinstance(value, (list, tuple)) else []


def nearest(
    node: fx.Node,
    neighbours: Callable[[fx.Node], Iterable[fx.Node]],
    maps: dict[fx.Node, Map],
) -> Iterator[fx.Node]:
    """The nearest maps in one direction: what made a node, or is made from it."""
    seen, pending = set[fx.Node](), list(neighbours(node))
    while pending:
        here = pending.pop()
        if here in seen:
            continue
        seen.add(here)
        if here in maps:
            yield here
        else:
            pending.extend(neighbours(here))


def sources(node: fx.Node) -> Iterable[fx.Node]:
    """What a node's values are made from."""
    return (source for source in node.all_input_nodes if _is_made_from(node, source))


def users(node: fx.Node) -> Iterable[fx.Node]:
    """What is made from a node's values, probes left out."""
    return (
        user
        for user in node.users
        if user.op != "output" and op_name(user) != "probe" and _is_made_from(user, node)
    )


def _is_made_from(node: fx.Node, source: fx.Node) -> bool:
    """Whether features pass: not what is overwritten, nor a mere size, nor where maxima stood."""
    if op_name(node).endswith("_like") or op_name(node).startswith("new_"):
        return False
    if op_name(node) == "copy":
        return source is node.args[1]
    return not (op_name(source) in _LOCATED and _is_index(node))


def _is_index(node: fx.Node) -> bool:
    held = node.meta.get("val")
    return isinstance(held, Tensor) and held.dtype == torch.int64
