"""What a forward pass costs: parameters, multiply-accumulates, peak activation memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from eslkit.graph.export import Exported, export
from eslkit.graph.trace import example_arguments

__all__ = ["Cost", "cost"]


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass in eval mode."""

    parameters: int
    """Trainable and frozen parameters, tied ones once."""
    macs: int
    """Multiply-accumulates of convolutions and matrix products, every call counted."""
    peak_activation_bytes: int
    """Most bytes of activations alive at once, from the order of the operations; parameters and
    what a backend needs for itself are not in it."""

    @property
    def flops(self) -> int:
        """Two for each multiply-accumulate."""
        return 2 * self.macs


def cost(model: nn.Module, *, example_inputs: Any) -> Cost:
    """Count what `model(*example_inputs)` costs; nothing is computed.

    Args:
        model: any module; it is not touched.
        example_inputs: as for `trace`; batch and size count as they are.

    Raises:
        TraceError: the model did not run on the inputs.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> cost(nn.Conv2d(3, 8, 3, padding=1), example_inputs=torch.zeros(1, 3, 4, 4)).macs
        3456
    """
    inputs, keywords = example_arguments(example_inputs)
    exported = export(model, inputs, keywords, train=False)
    return Cost(
        parameters=sum(parameter.numel() for parameter in nn.Module.parameters(model)),
        macs=round(sum(_macs(exported, n) * n.meta.get("times", 1) for n in exported.graph.nodes)),
        peak_activation_bytes=_peak(exported),
    )


def _macs(exported: Exported, node: fx.Node) -> int:
    name = _name(node)
    tensors = [arg for arg in node.args if isinstance(arg, fx.Node)]
    if name == "convolution":
        weight = exported.shape(tensors[1])
        transposed = bool(node.args[6])
        positions = exported.shape(tensors[0] if transposed else node)
        return positions[0] * math.prod(positions[2:]) * math.prod(weight)
    if name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot"):
        left = exported.shape(tensors[-2])
        return math.prod(exported.shape(node)) * left[-1]
    return 0


def _name(node: fx.Node) -> str:
    target: Any = node.target
    packet = getattr(target, "overloadpacket", None)
    return packet.__name__ if node.op == "call_function" and packet is not None else ""


def _peak(exported: Exported) -> int:
    """Walk the operations in order; a value lives until its last reader has run."""
    kept = set(exported.parameters)
    base: dict[fx.Node, fx.Node] = {}
    last: dict[fx.Node, int] = {}
    nodes = list(exported.graph.nodes)
    for i, node in enumerate(nodes):
        source = _aliased(node)
        base[node] = base.get(source, source) if source is not None else node
        if node.op != "output":
            last[base[node]] = i
        if "probe" not in _name(node):
            readers = exported.outputs if node.op == "output" else node.all_input_nodes
            for read in readers:
                last[base.get(read, read)] = i
    ends: dict[int, list[fx.Node]] = {}
    for node, i in last.items():
        ends.setdefault(i, []).append(node)
    alive = peak = 0
    for i, node in enumerate(nodes):
        if base.get(node) is node and node not in kept:
            alive += _bytes(node)
            peak = max(peak, alive)
        for done in ends.get(i, ()):
            if done not in kept:
                alive -= _bytes(done)
    return peak


def _aliased(node: fx.Node) -> fx.Node | None:
    """The tensor whose memory this one shares: views and items of tuples."""
    target: Any = node.target
    if node.op != "call_function" or not node.all_input_nodes:
        return None
    schema = getattr(target, "_schema", None)
    if schema is None or (schema.arguments and schema.arguments[0].alias_info is not None):
        return node.all_input_nodes[0]
    return None


def _bytes(node: fx.Node) -> int:
    if "probe" in _name(node) or node.op == "output":
        return 0
    value = node.meta.get("val")
    items = value if isinstance(value, (list, tuple)) else [value]
    return sum(x.numel() * x.element_size() for x in items if isinstance(x, Tensor))
