"""Gates: maps between 0 and 1 that only weigh other maps, as attention does."""

from __future__ import annotations

from torch import fx

from eslkit.graph.maps import moves_data, op_name, users

__all__ = ["is_gate", "was_gate"]

_MOST_MOVES = 8
_GATES = {"sigmoid", "hardsigmoid", "_softmax"}


def is_gate(node: fx.Node) -> bool:
    """Whether the result, between 0 and 1, is multiplied with something it does not come from."""
    return op_name(node) in _GATES and _weighs(node, node.all_input_nodes[0])


def was_gate(node: fx.Node) -> bool:
    """The same of what an up-sampling makes of such a result."""
    here = node
    for _ in range(_MOST_MOVES):
        here = here.all_input_nodes[0]
        if op_name(here) in _GATES:
            return _weighs(node, here.all_input_nodes[0])
        if not moves_data(here):
            return False
    return False


def _weighs(node: fx.Node, given: fx.Node) -> bool:
    """Whether all that is done with a map is to multiply others with it."""
    pending = list(users(node))
    products: list[fx.Node] = []
    while pending:
        user = pending.pop()
        if moves_data(user):
            pending.extend(users(user))
        else:
            products.append(user)
    return bool(products) and all(
        op_name(user) == "mul" and given not in user.all_input_nodes for user in products
    )
