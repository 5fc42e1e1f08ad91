"""What each shrinking step changes: the order of the paper, or the user's own list.

Everything here works on a channel graph and the widths to come back to; no network is touched.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from eslkit.errors import InputError, PlanError
from eslkit.graph.channels import ChannelGraph, ChannelGroup
from eslkit.surgery.widths import fitting_widths

__all__ = [
    "Move",
    "Order",
    "StepEntry",
    "StepList",
    "check_larger",
    "count_layers",
    "find_groups",
    "portions",
    "reached",
    "table_widths",
]

StepEntry = str | Sequence[str] | Mapping[str, int | float]
StepList = Sequence[StepEntry]
"""The user's own steps: each a name, several names, or a table of widths."""

Order = Literal["outwards", "inwards"]
"""From the bottleneck to full resolution, or the other way."""

_LEVEL = re.compile(r"level (\d+)")


@dataclass(frozen=True)
class Move:
    """What one shrinking step changes."""

    widths: Mapping[str, int] = field(default_factory=dict[str, int])
    """Group -> width after the step."""
    parts: int = 0
    """Parts of the inserted levels that the step takes out."""
    layers: tuple[str, ...] = ()
    """Layers of the large model itself that the step takes out."""
    refused: Literal["raise", "wait", "skip"] = "raise"
    """What to do where the network cannot be resized so: say it, try again together with the next
    step, or go on without."""
    told: str = ""
    """What the user called it, for errors."""


def count_layers(groups: Iterable[ChannelGroup]) -> int:
    """Layers that produce the channels of these groups."""
    return len({producer for group in groups for producer in group.producers})


def portions(
    graph: ChannelGraph,
    names: Iterable[str],
    *,
    room: int | None = None,
    whole: bool = False,
    inwards: bool = False,
) -> list[list[str]]:
    """The groups of each channel step: the bottleneck first, groups that are tied together.

    Args:
        graph: the graph of the network that is narrowed.
        names: the groups that are not yet as wide as they are to be.
        room: layers a step; None takes a level at a time, as the paper does.
        whole: one step for all.
        inwards: full resolution first.
    """
    wanted = set(names)
    made: list[list[str]] = []
    level: int | None = None
    left = 0
    for unit in _units(graph, wanted, inwards=inwards):
        size = count_layers(unit)
        if whole:
            new = not made
        elif room is None:
            new = unit[0].level != level
        else:
            new = not made or left < size
        if new:
            made.append([])
            left = room or 0
        level = unit[0].level
        left -= size
        made[-1].extend(member.name for member in unit)
    return made


def _units(
    graph: ChannelGraph, wanted: set[str], *, inwards: bool = False
) -> list[list[ChannelGroup]]:
    """Groups that can only change together, those of the lowest resolution first, or last."""
    sign = 1 if inwards else -1
    ordered = sorted((g for g in graph.resizable if g.name in wanted), key=lambda g: sign * g.level)
    units: list[list[ChannelGroup]] = []
    placed: set[str] = set()
    for group in ordered:
        if group.name not in placed:
            unit = [group, *(graph.group(name) for name in group.tied if name in wanted)]
            placed |= {member.name for member in unit}
            units.append(unit)
    return units


def reached(
    graph: ChannelGraph, names: Sequence[str], targets: Mapping[str, int], factor: float | None
) -> dict[str, int]:
    """The widths after a step over these groups: their targets, or a part of the way there.

    Args:
        graph: the graph of the network that is narrowed.
        names: the groups of the step.
        targets: the widths to come back to.
        factor: the least part of its width that a group keeps in one step; None for any.
    """
    goal = {name: targets[name] for name in names}
    if factor is None:
        return goal
    wanted = {n: max(goal[n], graph.group(n).width * factor) for n in names}
    near = {**graph.widths, **fitting_widths(graph, wanted)}
    between = {n: goal[n] <= near[n] < graph.group(n).width for n in names}
    return {
        name: near[name]
        if all(between.get(n, True) for n in (name, *graph.group(name).tied))
        else goal[name]
        for name in names
    }


def find_groups(graph: ChannelGraph, name: str) -> tuple[ChannelGroup, ...]:
    """The resizable groups that a name stands for.

    Args:
        graph: the graph to look in.
        name: a group, a layer or a module that makes the channels, a pattern such as `decoder.*`,
            or a level such as `level 3`.

    Raises:
        InputError: there is none.
    """
    level = _LEVEL.fullmatch(name)
    if level is not None:
        found = tuple(group for group in graph.resizable if group.level == int(level[1]))
    else:
        found = tuple(group for group in graph.resizable if _matches(group, name))
    if not found:
        raise InputError(
            f"{graph.model} has no channel group, layer or level {name!r} that can be resized; "
            "print(eslkit.trace(model)) lists the groups, with why some are protected."
        )
    return found


def _matches(group: ChannelGroup, pattern: str) -> bool:
    if group.name == pattern:
        return True
    for layer in group.producers:
        parents = (layer[:i] for i, letter in enumerate(layer) if letter == ".")
        if any(fnmatch.fnmatchcase(name, pattern) for name in (layer, *parents)):
            return True
    return False


def table_widths(graph: ChannelGraph, table: Mapping[str, int | float]) -> dict[str, int]:
    """Group -> width, from a table by name or pattern; the last one that matches counts.

    Args:
        graph: the graph to look in.
        table: a name as for `find_groups` -> a whole number of channels, or a float: the multiplier
            of the present width.

    Raises:
        InputError: a name that is not there, or a number that cannot be.
    """
    asked: dict[str, int | float] = {}
    for name, value in table.items():
        if isinstance(value, bool) or not value > 0:
            raise InputError(
                f"width {value!r} of {name!r}: expected a positive number of channels (96), or a "
                "multiplier (0.75)."
            )
        asked.update(dict.fromkeys((group.name for group in find_groups(graph, name)), value))
    wanted = {n: graph.group(n).width * v for n, v in asked.items() if not isinstance(v, int)}
    exact = {n: v for n, v in asked.items() if isinstance(v, int)}
    for name, new in tuple(exact.items()):
        group = graph.group(name)
        for other in (graph.group(tied) for tied in group.tied):
            exact.setdefault(other.name, round(other.width * new / group.width))
    widths = {**fitting_widths(graph, wanted), **exact}
    return {name: new for name, new in widths.items() if new != graph.group(name).width}


def check_larger(graph: ChannelGraph, targets: Mapping[str, int]) -> None:
    """Refuse to come down from a network that is narrower than the target.

    Args:
        graph: the network to come down from.
        targets: group -> the width to come down to, of the groups that have another one.

    Raises:
        PlanError: every one of them is to become wider.
    """
    if targets and all(new > graph.widths[name] for name, new in targets.items()):
        name, new = next(iter(targets.items()))
        raise PlanError(
            f"The source is the smaller of the two: {name} has {graph.widths[name]} channels there "
            f"and {new} in the target. Pass the larger model first, the smaller one as target=; to "
            "carry weights into a larger model use eslkit.inherit(target, source)."
        )
