"""Which widths can be: those that ties, norms and the user's divisor allow, and the nearest ones.

Groups that lie in equal parts of one axis are tied: they change by one factor, as whole multiples
of the smallest widths in their ratio. A norm with a fixed number of groups must be able to divide
the channels on its axis, or keep the size of its groups.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from eslkit.errors import InputError, ResizeError
from eslkit.graph.channels import ChannelGraph, ChannelGroup, ChannelSpan, Constraint

__all__ = ["check_widths", "fitting_widths", "norm_groups", "scaled_widths", "widths_towards"]

_REACH = 512
"""How far from a wanted width the nearest possible one is searched."""


def scaled_widths(graph: ChannelGraph, factor: float, *, divisor: int = 1) -> dict[str, int]:
    """Every resizable group's width times `factor`, as near as can be; unchanged ones left out.

    Raises:
        InputError: the factor is not positive, or the divisor no positive integer.
    """
    if not factor > 0:
        raise InputError(f"width={factor} must be a positive factor, such as 2 or 0.5")
    wanted = {name: width * factor for name, width in graph.widths.items()}
    return fitting_widths(graph, wanted, divisor=divisor)


def fitting_widths(
    graph: ChannelGraph, wanted: Mapping[str, float], *, divisor: int = 1
) -> dict[str, int]:
    """The widths nearest to the wanted ones that can be; those that do not change are left out.

    Args:
        graph: the channel graph.
        wanted: group name -> width, not rounded. Groups left out keep theirs.
        divisor: every resized axis gets a multiple of so many positions.

    Raises:
        InputError: no such group, or the divisor is no positive integer.
    """
    if divisor < 1:
        raise InputError(f"divisor={divisor} must be a positive integer, such as 8")
    classes = list(_classes(graph, wanted, divisor))
    multiples = {c: c.nearest(wanted[c.names[0]] / c.units[0]) for c in classes}
    widths = {name: new for c in classes for name, new in c.at(multiples[c]).items()}
    for constraint in graph.constraints:
        if _holds(graph, constraint, widths):
            continue
        taking_part = [c for c in classes if set(c.names) & constraint.counts.keys()]
        found = next(_mended(graph, constraint, taking_part, multiples, widths), None)
        if found is None:  # nothing near can be: they stay as they are
            found = {name: graph.widths[name] for c in taking_part for name in c.names}
        widths.update(found)
    return {name: new for name, new in widths.items() if new != graph.widths[name]}


@dataclass(frozen=True)
class _Class:
    """Groups that change by one factor: width i is `units[i]` times a common multiple."""

    names: tuple[str, ...]
    units: tuple[int, ...]
    step: int
    """The common multiple is a multiple of this."""

    def at(self, multiple: int) -> dict[str, int]:
        return {n: unit * multiple for n, unit in zip(self.names, self.units, strict=True)}

    def nearest(self, multiple: float) -> int:
        return max(1, round(multiple / self.step)) * self.step


def _classes(graph: ChannelGraph, names: Iterable[str], divisor: int) -> Iterator[_Class]:
    seen: set[str] = set()
    for name in names:
        group = graph.group(name)
        if name in seen:
            continue
        tied = tuple(dict.fromkeys((name, *group.tied)))
        seen.update(tied)
        widths = [graph.group(other).width for other in tied]
        units = tuple(width // math.gcd(*widths) for width in widths)
        lengths = (
            unit * _positions(graph.group(other)) for unit, other in zip(units, tied, strict=True)
        )
        step = math.lcm(*(divisor // math.gcd(divisor, length) for length in lengths))
        yield _Class(tied, units, step)


def _positions(group: ChannelGroup) -> int:
    """Positions for each channel on the axis that makes them."""
    first = next((s for s in group.spans if s.role == "producer"), group.spans[0])
    return sum(
        s.inner for s in group.spans if (s.parameter, s.axis) == (first.parameter, first.axis)
    )


def _mended(
    graph: ChannelGraph,
    constraint: Constraint,
    classes: list[_Class],
    multiples: Mapping[_Class, int],
    widths: Mapping[str, int],
) -> Iterator[dict[str, int]]:
    """Changes of one class that make a constraint hold, nearest first, all constraints holding."""
    for distance, c in itertools.product(range(1, _REACH), classes):
        for sign in (1, -1):
            multiple = multiples[c] + sign * distance * c.step
            trial = {**widths, **c.at(multiple)}
            touched = [k for k in graph.constraints if k.counts.keys() & set(c.names)]
            if multiple > 0 and all(_holds(graph, k, trial) for k in (constraint, *touched)):
                yield c.at(multiple)


def norm_groups(old: int, new: int, groups: int) -> int | None:
    """Groups of a norm over `new` channels that had `groups` over `old`.

    As many as before, else groups of the same size; None where neither is possible.
    """
    if new % groups == 0:
        return groups
    size = old // groups
    return new // size if size and new % size == 0 else None


def _holds(graph: ChannelGraph, constraint: Constraint, widths: Mapping[str, int]) -> bool:
    old = constraint.total(graph.widths)
    new = constraint.total({**graph.widths, **widths})
    return norm_groups(old, new, constraint.divisor) is not None


def check_widths(graph: ChannelGraph, widths: Mapping[str, int]) -> None:
    """Raise unless these widths can be.

    Raises:
        InputError: a group that is not there, or a width that is not a positive integer.
        ResizeError: a protected group, a broken tie, or a sum that a norm cannot divide; the
            message names the nearest widths that can be.
    """
    for name, new in widths.items():
        group = graph.group(name)
        whole = isinstance(new, int) and not isinstance(new, bool)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not whole or new < 1:
            raise InputError(f"width {new!r} of group {name} must be a positive integer")
        if group.protected is not None and new != group.width:
            raise ResizeError(
                f"group {name} has {group.width} channels and cannot get {new}: {group.protected}"
            )
        _check_tie(graph, group, widths)
    for constraint in graph.constraints:
        if any(name in widths for name in constraint.counts):
            _check_constraint(graph, constraint, widths)


def _check_tie(graph: ChannelGraph, group: ChannelGroup, widths: Mapping[str, int]) -> None:
    new = widths[group.name]
    for name in group.tied:
        old = graph.group(name).width
        if widths.get(name, old) * group.width == new * old:
            continue
        common = math.gcd(old, group.width)
        unit, other = group.width // common, old // common
        multiple = max(1, round(new / unit))
        pairs = " or ".join(
            f"{group.name}={unit * k}, {name}={other * k}"
            for k in sorted({multiple, max(1, multiple + (1 if unit * multiple < new else -1))})
        )
        raise ResizeError(
            f"groups {group.name} ({group.width} channels) and {name} ({old}) lie in equal parts "
            f"of one axis and must keep their ratio: {group.name}={new} with "
            f"{name}={widths.get(name, old)} cannot be; the nearest that can: {pairs}"
        )


def _check_constraint(
    graph: ChannelGraph, constraint: Constraint, widths: Mapping[str, int]
) -> None:
    if _holds(graph, constraint, widths):
        return
    full = {**graph.widths, **widths}
    total, each = constraint.total(full), constraint.divisor
    low = max(each, total // each * each)
    near = f"the nearest totals that it can are {low} and {max(low, total // each * each) + each}"
    if len(constraint.counts) == 1:
        (name,) = constraint.counts
        lower = [w for w in range(full[name], 0, -1) if _holds(graph, constraint, {name: w})]
        upper = [
            w
            for w in range(full[name], full[name] + _REACH)
            if _holds(graph, constraint, {name: w})
        ]
        can = " and ".join(str(w) for w in (*lower[:1], *upper[:1]))
        near = f"the nearest widths of {name} that it can are {can}" if can else near
    names = ", ".join(f"{name}={full[name]}" for name in constraint.counts)
    raise ResizeError(
        f"{constraint.where} cannot divide {total} channels ({names}) into {each} groups; {near}"
    )


def widths_towards(
    graph: ChannelGraph, target: Mapping[str, Tensor], source: Mapping[str, Tensor]
) -> dict[str, int]:
    """The widths that make one model of another of the same form.

    Args:
        graph: the source's channel graph.
        target: the target's parameters and buffers by qualified name.
        source: the source's.

    Returns:
        Group name -> width in the target, for the groups where they differ.

    Raises:
        ResizeError: the two are not of one form; the message names the first difference.
    """
    odd = sorted(target.keys() ^ source.keys())
    if odd:
        side = "target" if odd[0] in target else "source"
        raise ResizeError(
            f"target and source are not of one form: {odd[0]} is only in the {side}; take "
            "inserted levels out first, or expand the target in the same way"
        )
    widths: dict[str, int] = {}
    unknown = [group for group in graph.resizable if not _read(group, target, source, widths)]
    while unknown:  # groups that share every axis: what is left when the others are known
        left = [g for g in unknown if not _read(g, target, source, widths, graph)]
        if len(left) == len(unknown):  # only their sum can be told: as zeros before and behind
            _share(left[0], target, source, widths, graph)
            left = left[1:]
        unknown = left
    return {name: new for name, new in widths.items() if new != graph.widths[name]}


def _read(
    group: ChannelGroup,
    target: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    widths: dict[str, int],
    graph: ChannelGraph | None = None,
) -> bool:
    """Read a group's width off an axis on which nothing else is unknown; whether it could."""
    for span in group.spans:
        want, have = (tensors[span.parameter].shape[span.axis] for tensors in (target, source))
        count = sum(s.inner for s in group.spans if _place(s) == _place(span))
        others = [(g, s) for g, s in _on(span, graph) if g is not group] if graph else []
        if not graph and have != group.width * count:
            continue
        if any(g.name not in widths for g, _ in others):
            continue
        change = sum((widths[g.name] - g.width) * s.inner for g, s in others)
        grown = want - have - change
        if grown % count or group.width + grown // count < 1:
            raise ResizeError(_no_width(group, target, source))
        widths[group.name] = group.width + grown // count
        return True
    if not any(_differs(span, target, source) for span in group.spans):
        widths[group.name] = group.width
        return True
    return False


def _differs(span: ChannelSpan, target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> bool:
    """Whether the axis of a span is longer or shorter in the target."""
    return target[span.parameter].shape[span.axis] != source[span.parameter].shape[span.axis]


def _place(span: ChannelSpan) -> tuple[str, int]:
    return span.parameter, span.axis


def _on(span: ChannelSpan, graph: ChannelGraph) -> list[tuple[ChannelGroup, ChannelSpan]]:
    """All that lies on the axis of a span."""
    return [(g, s) for g in graph.resizable for s in g.spans if _place(s) == _place(span)]


def _share(
    group: ChannelGroup,
    target: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    widths: dict[str, int],
    graph: ChannelGraph,
) -> None:
    """Give a group its part of what the unknown groups of an axis have together."""
    span = next(span for span in group.spans if _differs(span, target, source))
    want, have = (tensors[span.parameter].shape[span.axis] for tensors in (target, source))
    change, together = want - have, 0
    for other, part in _on(span, graph):
        if other.name in widths:
            change -= (widths[other.name] - other.width) * part.inner
        else:
            together += other.width * part.inner
    new = round(group.width * (together + change) / together)
    if new < 1:
        raise ResizeError(_no_width(group, target, source))
    widths[group.name] = new


def _no_width(
    group: ChannelGroup, target: Mapping[str, Tensor], source: Mapping[str, Tensor]
) -> str:
    name = group.spans[0].parameter
    return (
        f"{name} has shape {tuple(target[name].shape)} in the target and "
        f"{tuple(source[name].shape)} in the source; no width of group {group.name} makes one from "
        "the other"
    )
