"""The layers of a network as they are drawn: kind, level, width, stage and skip connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import fx

from eslkit.graph.bottleneck import find_bottlenecks, op_name
from eslkit.graph.trace import Traced
from eslkit.plan import LayerInfo

__all__ = ["picture_of"]


def picture_of(traced: Traced) -> tuple[LayerInfo, ...]:
    """Every layer with a weight, in the order of execution."""
    resolution = traced.resolution
    order = {node: i for i, node in enumerate(resolution.layers)}
    level = {node: resolution.of_positions(after) for node, (_, after) in resolution.layers.items()}
    stages = _stages(traced)
    layers: list[LayerInfo] = []
    seen: set[str] = set()
    names: dict[fx.Node, str] = {}
    for node in resolution.layers:
        name = traced.exported.owners[node]
        names[node] = name
        if name in seen:
            continue
        seen.add(name)
        width = traced.exported.shape(node)[1 if op_name(node) == "convolution" else -1]
        layers.append(
            LayerInfo(
                name=name or type(traced).__name__,
                kind=_kind(traced, node),
                level=level[node],
                width=width,
                stage=next((s for s in stages if name == s or name.startswith(f"{s}.")), ""),
                skip=_skip(traced, node, order, level, names),
            )
        )
    return tuple(layers)


def _kind(traced: Traced, node: fx.Node) -> Literal["conv", "up", "down", "other"]:
    if op_name(node) != "convolution":
        return "other"
    before, after = traced.resolution.layers[node]
    return "conv" if before == after else "up" if after > before else "down"


def _stages(traced: Traced) -> list[str]:
    """Where there are several hourglasses, the modules that hold them."""
    found = find_bottlenecks(traced)
    places = [b.places[0].path.split(".") for b in found if b.places]
    if len(places) < 2:
        return []
    shared = 0
    while all(len(p) > shared + 1 and p[shared] == places[0][shared] for p in places):
        shared += 1
    return list(dict.fromkeys(".".join(p[: shared + 1]) for p in places))


def _skip(
    traced: Traced,
    node: fx.Node,
    order: Mapping[fx.Node, int],
    level: Mapping[fx.Node, int],
    names: Mapping[fx.Node, str],
) -> str:
    """The latest layer whose output joins this one's input around something deeper.

    Deeper than where they join: what a pooling brought down first joins around nothing.
    """
    sources = sorted(_sources(node, order), key=order.__getitem__)
    joined = traced.resolution.of_positions(traced.resolution.layers[node][0])
    for first in (source for source in reversed(sources[:-1]) if level[source] <= joined):
        between: Sequence[fx.Node] = [
            n for n in order if order[first] < order[n] <= order[sources[-1]]
        ]
        if any(level[n] > joined or (op_name(n) == "convolution" and n.args[6]) for n in between):
            return names.get(first, "")
    return ""


def _sources(node: fx.Node, order: Mapping[fx.Node, int]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    pending = list(node.all_input_nodes)
    while pending:
        source = pending.pop()
        if source in seen:
            continue
        seen.add(source)
        if source in order:
            found.add(source)
        else:
            pending.extend(source.all_input_nodes)
    return found
