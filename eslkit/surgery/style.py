"""How a model builds its innermost level, read off its graph."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import fx, nn

from eslkit.graph.bottleneck import Bottleneck, Place
from eslkit.graph.maps import Map, find_maps, moves_data, nearest, op_name, sources
from eslkit.graph.trace import Traced
from eslkit.surgery.level import LevelStyle, layer_of

__all__ = ["style_of"]

_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_MOST = 4  # a reduction by more is a patch embedding's, not a level's
_NONNEGATIVE = {"relu", "sigmoid", "hardsigmoid", "_softmax", "exp", "abs", "softplus", "square"}
_AVERAGING = (
    "pool",
    "mean",
    "upsample_nearest",
    "linear1d",
    "bilinear2d",
    "trilinear3d",
    "dropout",
)
_MONOTONE = {"add", "mul", "cat", "stack", "sum", "maximum"}


def style_of(
    traced: Traced, bottleneck: Bottleneck | None, place: Place, model: nn.Module
) -> LevelStyle:
    """Read off the graph how the model builds its innermost level.

    Args:
        traced: the traced model.
        bottleneck: where the level goes; None for a place outside every bottleneck, where the
            layers of the same resolution are looked at.
        place: the edge.
        model: the model that was traced.
    """
    dims = len(place.sizes)
    maps = find_maps(traced, dims)
    around = bottleneck.nodes if bottleneck else _same_resolution(traced, maps, place)
    key, activation = _activation_of(traced, maps, around)
    norm, groups = _norm_of(traced, around, model)
    strides = _strides_of(maps, bottleneck, place)
    below = [-(-size // step) for size, step in zip(place.sizes, strides, strict=True)]
    if norm.startswith("instance") and math.prod(below) == 1:
        norm, groups = "group", 1  # an instance norm over a single position would give zero
    kernel, depthwise = _kernel_of(traced, around)
    convs = [n for n in around if op_name(n) == "convolution"]
    return LevelStyle(
        dims=dims,
        kernel=kernel,
        bias=any(n.args[2] is not None for n in convs) or not convs,
        activation=activation,
        norm=norm,
        norm_groups=groups,
        down=_down_of(bottleneck),
        up=_up_of(bottleneck, dims),
        merge=_merge_of(maps, bottleneck),
        strides=strides,
        depthwise=depthwise,
        ranges=frozenset(_ranges(place.node, key)),
    )


def _same_resolution(traced: Traced, maps: dict[fx.Node, Map], place: Place) -> tuple[fx.Node, ...]:
    positions = maps[place.node].positions
    return tuple(
        node
        for node in traced.exported.graph.nodes
        if node in maps and maps[node].positions == positions
    )


def _kernel_of(traced: Traced, around: Iterable[fx.Node]) -> tuple[int, bool]:
    """Positions a side of the kernels, and whether they work on every channel alone."""
    plain: list[int] = []
    alone: list[int] = []
    for node in around:
        if op_name(node) != "convolution" or node.args[6]:
            continue
        weight = traced.exported.shape(node.all_input_nodes[1])
        side = max(weight[2:])
        if side % 2 == 0 or side == 1:
            continue
        depthwise = node.args[8] == weight[0] and weight[1] == 1 and weight[0] > 1
        (alone if depthwise else plain).append(side)
    depthwise = bool(alone) and not plain
    return max(plain or alone, default=3), depthwise


Key = tuple[str, tuple[float, ...]]


def _activation_of(
    traced: Traced, maps: dict[fx.Node, Map], around: tuple[fx.Node, ...]
) -> tuple[Key, Callable[[], nn.Module]]:
    """The activation that is used most on the maps of the bottleneck, or else in the model."""
    everywhere = tuple(traced.exported.graph.nodes)
    for nodes in ([n for n in around if n in maps], around, everywhere):
        found = Counter(key for node in nodes if (key := _activation_key(node)) is not None)
        if found:
            key = found.most_common(1)[0][0]
            made = layer_of(*key)
            if made is not None:
                return key, made
    return ("relu", ()), nn.ReLU


def _activation_key(node: fx.Node) -> Key | None:
    """The activation that an operation computes: its name and numbers."""
    name = op_name(node)
    args: tuple[Any, ...] = tuple(node.args)
    numbers = tuple(float(a) for a in args if isinstance(a, (int, float)))
    if name == "mul" and len(args) == 2:  # x * sigmoid(x)
        for x, gate in (args, args[::-1]):
            if isinstance(gate, fx.Node) and op_name(gate) == "sigmoid" and gate.args[0] is x:
                return "silu", ()
        return None
    if name == "maximum" and len(args) == 2:  # max(slope * x, x)
        for x, scaled in (args, args[::-1]):
            if isinstance(scaled, fx.Node) and op_name(scaled) == "mul" and x in scaled.args:
                slopes = [float(a) for a in scaled.args if isinstance(a, (int, float))]
                return ("leaky_relu", tuple(slopes)) if slopes else None
        return None
    if name == "clamp_min" and numbers == (0.0,):
        return "relu", ()
    return (name, numbers) if layer_of(name, numbers) is not None else None


def _norm_of(traced: Traced, around: Iterable[fx.Node], model: nn.Module) -> tuple[str, int]:
    for node in around:
        name = op_name(node)
        if "batch_norm" in name:
            owner = model.get_submodule(traced.exported.owners[node])
            if isinstance(owner, _INSTANCE_NORMS) or node.args[3] is None:
                return ("instance" if node.args[1] is None else "instance-affine"), 1
            return "batch", 1
        if name == "native_group_norm":
            groups = node.args[6]
            return "group", groups if isinstance(groups, int) else 1
        if name == "native_layer_norm":
            axes = node.args[1]
            over_channels = isinstance(axes, (list, tuple)) and len(axes) == 1
            return ("channel", 1) if over_channels else ("group", 1)
    return "none", 1


def _strides_of(
    maps: dict[fx.Node, Map], bottleneck: Bottleneck | None, place: Place
) -> tuple[int, ...]:
    """The steps of the model's own last reduction; an axis of one position stays as it is."""
    usual = (2,) * len(place.sizes)
    for node in bottleneck.entries if bottleneck else ():
        own = maps[node].sizes
        for source in nearest(node, sources, maps):
            before = maps[source].sizes
            if maps[source].layout != maps[node].layout or len(before) != len(place.sizes):
                continue
            steps = tuple(max(1, round(b / a)) for a, b in zip(own, before, strict=True))
            if max(steps) in range(2, _MOST + 1):
                usual = steps
                break
    cut = tuple(1 if size == 1 else step for size, step in zip(place.sizes, usual, strict=True))
    if max(cut) > 1:
        return cut
    return tuple(1 if size == 1 else 2 for size in place.sizes)


def _down_of(bottleneck: Bottleneck | None) -> str:
    for node in bottleneck.entries if bottleneck else ():
        while moves_data(node) and node.all_input_nodes:
            node = node.all_input_nodes[0]
        for kind, pool, summary in (("max", "max_pool", "amax"), ("average", "avg_pool", "mean")):
            if pool in op_name(node) or op_name(node) == summary:
                return kind
    return "conv" if bottleneck else "max"


def _up_of(bottleneck: Bottleneck | None, dims: int) -> str:
    for node in bottleneck.raised if bottleneck else ():
        name = op_name(node)
        if name == "convolution":
            return "transposed"
        if "upsample" in name:
            linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[dims]
            return "nearest" if "nearest" in name else linear
        if dims == 2 and (name == "pixel_shuffle" or moves_data(node)):
            return "shuffle"
    return "transposed"


def _merge_of(maps: dict[fx.Node, Map], bottleneck: Bottleneck | None) -> str:
    """How the first skip connection behind the bottleneck is joined."""
    later: set[fx.Node] = set(bottleneck.raised) if bottleneck else set()
    pending = list(later)
    while pending:
        for user in pending.pop().users:
            if user not in later:
                later.add(user)
                pending.append(user)
    joins = (node for node in maps if node in later and op_name(node) in ("cat", "add"))
    for node in joins:
        from_elsewhere = [s for s in node.all_input_nodes if s not in later and s in maps]
        if not from_elsewhere or not any(s in later for s in node.all_input_nodes):
            continue
        same = maps[from_elsewhere[0]].positions == maps[node].positions > 1
        if same:
            return "concat" if op_name(node) == "cat" else "add"
    return "concat"


def _ranges(node: fx.Node, activation: Key) -> Iterator[str]:
    if _nonnegative(node):
        yield "nonnegative"
    if _activated(node, activation):
        yield "activated"


def _activated(node: fx.Node, activation: Key) -> bool:
    """Whether all values are values of the activation, or averages of them."""
    if _activation_key(node) == activation:
        return True
    name = op_name(node)
    if moves_data(node) or any(word in name for word in _AVERAGING):
        return _all(node, lambda source: _activated(source, activation))
    return name == "cat" and _all(node, lambda source: _activated(source, activation))


def _nonnegative(node: fx.Node) -> bool:
    """Whether no value can be below zero."""
    name = op_name(node)
    key = _activation_key(node)
    if name in _NONNEGATIVE or (key is not None and key[0] == "relu"):
        return True
    if key is not None and key[0] == "hardtanh":
        return len(key[1]) == 2 and key[1][0] >= 0
    if name in _MONOTONE or moves_data(node) or any(word in name for word in _AVERAGING):
        plain = all(a >= 0 for a in node.args if isinstance(a, (int, float)) and name in _MONOTONE)
        return plain and _all(node, _nonnegative)
    return False


def _all(node: fx.Node, holds: Callable[[fx.Node], bool]) -> bool:
    return bool(node.all_input_nodes) and all(holds(source) for source in node.all_input_nodes)
