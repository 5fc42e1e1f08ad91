"""What a recorded operation gives where it hangs on nothing but constants.

Code may ask a question of a tensor that it made from numbers (is a standard deviation zero?).
Tensors without values cannot answer; what led to this one is computed again, on real ones.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.node import map_arg
from torch.utils._mode_utils import no_dispatch

__all__ = ["constant_values"]

_MOST = 1 << 12
"""Positions of the largest tensor that is computed again."""


def constant_values(nodes: Iterable[fx.Node]) -> dict[fx.Node, Any] | None:
    """The values of nodes, and of all that leads to them; None where one is no constant."""
    pending, found = list(nodes), dict[fx.Node, None]()
    while pending:
        node = pending.pop()
        if node in found:
            continue
        if not _may_be_constant(node):
            return None
        found[node] = None
        pending.extend(node.all_input_nodes)
    values: dict[fx.Node, Any] = {}
    with no_dispatch():
        for node in sorted(found):
            if node.op == "get_attr":
                values[node] = node.meta["val"]
            else:
                args = map_arg(node.args, values.__getitem__)
                kwargs = map_arg(node.kwargs, values.__getitem__)
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return values


def _may_be_constant(node: fx.Node) -> bool:
    """Whether it is a real constant, or an operation that gives the same values each time."""
    value: Any = node.meta["val"]
    if isinstance(value, Tensor) and value.numel() > _MOST:
        return False
    if node.op == "get_attr":
        return not isinstance(value, FakeTensor) and not value.is_meta
    if node.target is operator.getitem:
        return True
    tags = getattr(node.target, "tags", ())
    empty = "empty" in str(node.target)  # any values at all
    return (
        node.op == "call_function" and torch.Tag.nondeterministic_seeded not in tags and not empty
    )
