"""Of which axis the channels come and go where code sums over one of the two that it cut them into.

`x.view(batch, groups, channels, ...).mean(2)` is a group norm written by hand: the groups stay, and
each keeps the same of its channels. `x.view(batch, channels, 2, ...).amax(2)` is a maxout: the two
stay, and the result has channels. The line itself does not tell the two apart; what reads the
result does. So the graph is run on labels both ways, and the way that leaves more to resize counts.
"""

from __future__ import annotations

from torch import fx

from eslkit.graph.export import Exported, source_line
from eslkit.graph.grouping import group_atoms
from eslkit.graph.labels import Labels, run_on_labels

__all__ = ["labelled"]

_MOST = 8
"""How many lines of code are tried both ways."""


def labelled(exported: Exported) -> Labels:
    """The graph run on labels, with what each sum over part of an axis should leave decided."""
    best = run_on_labels(exported)
    lines: dict[str, list[fx.Node]] = {}
    for node in best.atoms.reductions:
        if isinstance(node, fx.Node):
            lines.setdefault(source_line(node), []).append(node)
    if not lines or len(lines) > _MOST:
        return best
    most = _free(run_on_labels(exported))
    held = frozenset[fx.Node]()
    for nodes in lines.values():
        tried = held.union(nodes)
        free = _free(run_on_labels(exported, holding=tried))
        if free > most:
            most, held = free, tried
    return run_on_labels(exported, holding=held) if held else best


def _free(labels: Labels) -> int:
    """Positions of parameters that can be resized."""
    return sum(
        len(group.roots) * span.inner
        for group in group_atoms(labels).groups
        if not group.reason
        for span in group.spans
    )
