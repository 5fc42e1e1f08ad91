"""Which channel groups a failed resize is due to."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from eslkit.graph.trace import Traced
from eslkit.graph.values import Value, flat
from eslkit.surgery.proof import Failure
from eslkit.surgery.sizes import Sizes

__all__ = ["blamed"]


def blamed(sizes: Sizes, failure: Failure, *, narrowly: bool) -> set[str]:
    """Changed groups whose channels meet where it failed, and what is tied to them.

    Args:
        sizes: the resize that failed.
        failure: where, and how.
        narrowly: whether the operation that failed is enough, if it tells any group; else all
            operations of the module count.
    """
    traced = sizes.traced
    owner = _owners(sizes)
    found: set[str] = set()
    if narrowly and failure.node is not None:
        found = _met(traced, owner, [failure.node])
    for path in reversed(failure.stack):
        if found:
            break
        own = [node for node, place in traced.exported.owners.items() if place == path]
        found = _met(traced, owner, own)
    for name in tuple(found):
        found |= set(traced.graph.group(name).tied)
    return found


def _owners(sizes: Sizes) -> dict[int, str]:
    """Representative atom -> the changed group that it belongs to."""
    atoms = sizes.traced.labels.atoms
    owner: dict[int, str] = {}
    for change in sizes.changes:
        members = sizes.members(change.group.spans[0], change.group.width)
        owner.update(dict.fromkeys(atoms.parent[members].tolist(), change.group.name))
    return owner


def _met(traced: Traced, owner: dict[int, str], nodes: Iterable[fx.Node]) -> set[str]:
    """The groups in what operations read and make."""
    found: set[str] = set()
    for node in nodes:
        for source in (node, *node.all_input_nodes):
            value = traced.labels.values.get(source)
            for part in value.parts if isinstance(value, Value) else ():
                roots = set(traced.labels.atoms.find(flat(part)).tolist())
                found.update(owner[root] for root in roots & owner.keys())
    return found
