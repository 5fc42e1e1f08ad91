"""Labels, groups and levels -> the `ChannelGraph`: names, roles, what mixes, what joined axes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from eslkit.graph.atoms import IntArray
from eslkit.graph.channels import ChannelGraph, ChannelGroup, ChannelSpan, Constraint, Join
from eslkit.graph.export import Exported
from eslkit.graph.grouping import Grouping, RawGroup
from eslkit.graph.labels import Labels
from eslkit.graph.levels import Resolution, group_levels
from eslkit.graph.scaling import Divided
from eslkit.graph.skips import find_skips

__all__ = ["assemble"]

_NOT_CHANNELS = ("positions of a kernel", "an axis of size 1")


def assemble(
    model: str,
    exported: Exported,
    labels: Labels,
    grouping: Grouping,
    resolution: Resolution,
    divided: Divided,
) -> ChannelGraph:
    """The channel graph of a model.

    Args:
        model: class of the model.
        exported: its operations.
        labels: what running them on labels has found.
        grouping: the channels, in groups.
        resolution: the levels.
        divided: what makes up for copies in products of activations.
    """
    roles = _roles(labels)
    use = _first_use(exported)
    owner = {int(root): number for number, raw in enumerate(grouping.groups) for root in raw.roots}
    levels = group_levels(resolution, labels, owner)
    mixed, counting, joins = *_mixed(labels, owner, divided), _joins(labels, owner)
    positions: dict[tuple[str, int], str] = {}
    made: dict[int, ChannelGroup] = {}
    for number, raw in enumerate(grouping.groups):
        if raw.reason in _NOT_CHANNELS:
            positions.update({(s.axis.name, s.axis.axis): raw.reason for s in raw.spans})
            continue
        group = _group(raw, roles, levels.get(number, 0), use, divided)
        made[number] = replace(
            group,
            mixed=mixed.get(number, ()),
            counting=counting.get(number, ()),
            joins=joins.get(number, ()),
        )
    numbers = sorted(made, key=lambda n: _rank(made[n], use))
    names = _names([made[n] for n in numbers])
    named = dict(zip(numbers, names, strict=True))
    groups: list[ChannelGroup] = []
    for number in numbers:
        tie = next((t for t in grouping.ties if number in t), ())
        tied = tuple(named[other] for other in tie if other != number)
        groups.append(replace(made[number], name=named[number], tied=tied))
    by_root = {root: named[number] for root, number in owner.items() if number in named}
    return ChannelGraph(
        model,
        tuple(groups),
        resolution.num_levels,
        positions,
        tuple(_constraints(labels, owner, named, grouping)),
        find_skips(exported, labels, resolution, by_root),
    )


def _role_flags(labels: Labels) -> dict[str, npt.NDArray[np.bool_]]:
    """Which atoms are producers and consumers; weights that are added up share their roles."""
    size = len(labels.atoms.parent)
    flags = {role: np.zeros(size, bool) for role in ("producer", "consumer")}
    for role, flag in flags.items():
        for part in labels.atoms.roles.get(role, []):
            flag[part] = True
        for first, second in reversed(labels.atoms.twins):
            known = (first >= 0) & (second >= 0)
            flag[second[known][flag[first[known]]]] = True
    for part in labels.atoms.roles.get("maker", []):
        flags["producer"][part[~flags["consumer"][part]]] = True
    return flags


def _roles(labels: Labels) -> dict[tuple[str, int], str]:
    """(parameter, axis) -> producer or consumer."""
    found: dict[tuple[str, int], str] = {}
    for role, flag in _role_flags(labels).items():
        for axis in labels.axes:
            if flag[axis.first : axis.first + axis.size].any():
                found[axis.name, axis.axis] = role
    return found


def _first_use(exported: Exported) -> dict[str, int]:
    """Parameter -> index of the first operation that uses it."""
    order = {node: i for i, node in enumerate(exported.graph.nodes)}
    return {
        name: min((order[user] for user in node.users), default=len(order))
        for node, name in exported.parameters.items()
    }


def _rank(group: ChannelGroup, use: Mapping[str, int]) -> tuple[int, int]:
    makers = [s for s in group.spans if s.role == "producer"] or list(group.spans)
    first = min(makers, key=lambda s: (use.get(s.parameter, 0), s.start))
    return use.get(first.parameter, 0), first.start


def _group(
    raw: RawGroup,
    roles: Mapping[tuple[str, int], str],
    level: int,
    use: Mapping[str, int],
    divided: Divided,
) -> ChannelGroup:
    spans = tuple(
        ChannelSpan(
            s.axis.name,
            s.axis.axis,
            s.start,
            s.inner,
            s.step,
            roles.get((s.axis.name, s.axis.axis), "follows"),
            bool(divided.atoms[s.axis.first + s.start]),
        )
        for s in raw.spans
    )

    def layers(role: str) -> tuple[str, ...]:
        chosen = sorted((s for s in spans if s.role == role), key=lambda s: use[s.parameter])
        return tuple(dict.fromkeys(s.layer or s.parameter for s in chosen))

    return ChannelGroup(
        name="",
        width=len(raw.roots),
        level=level,
        producers=layers("producer"),
        consumers=layers("consumer"),
        protected=raw.reason or None,
        spans=spans,
    )


def _names(groups: Iterable[ChannelGroup]) -> list[str]:
    """The first producing layer, or the first parameter; numbered where several groups share it."""
    plain = [
        group.producers[0] if group.producers else group.spans[0].parameter for group in groups
    ]
    seen: dict[str, int] = {}
    names: list[str] = []
    for name in plain:
        count = seen.get(name, 0)
        seen[name] = count + 1
        names.append(f"{name}[{count}]" if plain.count(name) > 1 else name)
    return names


def _mixed(
    labels: Labels, owner: Mapping[int, int], divided: Divided
) -> tuple[dict[int, tuple[str, ...]], dict[int, tuple[str, ...]]]:
    """Group number -> what mixes its channels; and what among that counts them."""
    notes = [(mixer.labels, mixer.where, mixer.counts) for mixer in labels.atoms.mixers]
    for product in divided.unmended:
        members = np.concatenate(product.sides)
        where = f"a product of two activations, {product.where}"
        notes.append((members[members >= 0], where, True))
    flags = _role_flags(labels)
    for axis in labels.axes:
        own = slice(axis.first, axis.first + axis.size)
        both = axis.atoms[flags["producer"][own] & flags["consumer"][own]]
        if both.size:
            notes.append((both, f"{axis.name}, which both reads and makes these channels", True))
    mixed: dict[int, dict[str, None]] = {}
    counting: dict[int, dict[str, None]] = {}
    for members, where, counts in notes:
        for number in {owner.get(int(r)) for r in np.unique(labels.atoms.find(members))}:
            if number is not None:
                mixed.setdefault(number, {})[where] = None
                if counts:
                    counting.setdefault(number, {})[where] = None
    return (
        {number: tuple(where) for number, where in mixed.items()},
        {number: tuple(where) for number, where in counting.items()},
    )


def _joins(labels: Labels, owner: Mapping[int, int]) -> dict[int, tuple[Join, ...]]:
    """Group number -> the operations that coupled its axes, in the order of the forward pass."""
    atoms, axes = labels.atoms, labels.axes
    if not atoms.joins or not axes:
        return {}
    first = np.concatenate([left for _, left, _ in atoms.joins])
    second = np.concatenate([right for _, _, right in atoms.joins])
    sizes = [left.size for _, left, _ in atoms.joins]
    where = np.repeat(np.arange(len(sizes)), sizes)
    group = np.full(len(atoms.parent), -1)
    group[list(owner)] = list(owner.values())
    starts = np.array([axis.first for axis in axes])
    ends = np.array([axis.first + axis.size for axis in axes])

    def axis_of(members: IntArray) -> IntArray:
        found = np.searchsorted(starts, members, side="right") - 1
        return np.where(members < ends[found], found, len(axes))

    rows = np.stack([group[atoms.find(first)], where, axis_of(first), axis_of(second)])
    base = len(axes) + 1
    keys = ((rows[0] * len(sizes) + rows[1]) * base + rows[2]) * base + rows[3]
    _, chosen = np.unique(keys[rows[0] >= 0], return_index=True)
    names = [f"{axis.name}:{axis.axis}" for axis in axes] + ["a tensor of fixed size"]
    found: dict[int, list[Join]] = {}
    for number, operation, left, right in rows[:, rows[0] >= 0][:, chosen].T.tolist():
        join = Join(names[left], names[right], atoms.joins[operation][0])
        found.setdefault(number, []).append(join)
    return {number: tuple(joins) for number, joins in found.items()}


def _constraints(
    labels: Labels, owner: Mapping[int, int], names: Mapping[int, str], grouping: Grouping
) -> Iterator[Constraint]:
    for divisor in labels.atoms.divisors:
        roots: IntArray = labels.atoms.find(divisor.labels)
        counts: dict[str, int] = {}
        fixed = 0
        for number, count in zip(
            *np.unique([owner.get(int(r), -1) for r in roots], return_counts=True), strict=True
        ):
            group = grouping.groups[int(number)]
            if number < 0 or group.reason:
                fixed += int(count)
            else:
                counts[names[int(number)]] = int(count) // len(group.roots)
        if counts:
            yield Constraint(counts, fixed, divisor.number, divisor.where)
