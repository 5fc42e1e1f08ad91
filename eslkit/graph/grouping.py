"""Atoms -> groups of channels: what lives on the same axes, in a layout that can be resized.

A connected component of atoms is a channel. Channels that stand on the same axes, equally often,
and that no slice tells apart form a group. On every axis a group must lie in spans: all its
channels in order, each repeated `inner` times, or in lanes: at equal distances, with the channels
of other groups of the same width in between, to which it is then tied. Where a view interleaves
them otherwise, the view's leading axes are tied together (the same channels stay in each of its
blocks), and where that does not help the channels are protected.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eslkit.graph.atoms import Atoms, IntArray
from eslkit.graph.labels import Axis, Labels
from eslkit.graph.values import compact, flat, pin, support

__all__ = ["Grouping", "RawGroup", "RawSpan", "group_atoms"]

_ROUNDS = 8


@dataclass(frozen=True)
class RawSpan:
    """Where a group lies on one axis: channel i at `start + i*step`, `inner` positions long."""

    axis: Axis
    start: int
    inner: int
    step: int


@dataclass(frozen=True)
class RawGroup:
    """Channels that are resized together, or that must stay together."""

    roots: IntArray
    """Representative atom of each channel, in order."""
    spans: tuple[RawSpan, ...]
    reason: str
    """Why it is protected; empty where it is not."""


@dataclass(frozen=True)
class Grouping:
    """All groups, and which of them must keep one ratio."""

    groups: tuple[RawGroup, ...]
    ties: tuple[tuple[int, ...], ...]
    """Indices of groups whose widths must change by the same factor."""


def group_atoms(labels: Labels) -> Grouping:
    """Form groups; loosen layouts that cannot be resized until all can, or are protected."""
    atoms = labels.atoms
    _fix_unproduced(labels)
    _fix_unheld(labels)
    _fix_unread(labels)
    for round_ in range(_ROUNDS):
        groups, broken = _form(labels)
        blocks, apart = _lanes(groups)
        broken += apart
        ties, stuck = _ties(atoms, groups, blocks)
        if not broken and not stuck:
            return Grouping(tuple(groups), tuple(ties))
        for members in stuck:
            atoms.fix(members, "cut into equal parts of which another has a fixed size")
        if broken and (round_ >= _ROUNDS // 2 or not _collapse_splits(atoms, broken)):
            for roots, where in broken:
                atoms.fix(roots, f"its channels are interleaved on {where}")
    raise AssertionError("grouping did not settle")


def _fix_unproduced(labels: Labels) -> None:
    """Channels that nothing makes (dead parameters, inputs made by code) cannot be resized."""
    atoms = labels.atoms
    roots = atoms.find(np.arange(len(atoms.parent)))
    consumers = [atoms.find(part) for part in atoms.roles.get("consumer", [])]
    consumed = np.concatenate(consumers) if consumers else np.zeros(0, np.int64)
    only = np.zeros(len(roots), bool)
    only[consumed] = True
    role = np.concatenate(atoms.roles.get("consumer", [np.zeros(0, np.int64)]))
    is_consumer = np.zeros(len(roots), bool)
    is_consumer[role] = True
    made = np.zeros(len(roots), bool)
    made[roots[~is_consumer]] = True
    atoms.fix(np.flatnonzero(only & ~made), "nothing with parameters produces these channels")


def _fix_unread(labels: Labels) -> None:
    """Channels that are made but that nothing reads: a head whose result is thrown away."""
    atoms = labels.atoms
    read = [*atoms.roles.get("consumer", []), *atoms.plain]
    read += [mixer.labels for mixer in atoms.mixers]
    read += [side for product in atoms.products for side in product.sides]
    unread = np.zeros(len(atoms.parent), bool)
    for part in atoms.roles.get("producer", []):
        unread[atoms.find(part)] = True
    for part in read:
        unread[atoms.find(part[part >= 0])] = False
    atoms.fix(np.flatnonzero(unread), "computed, but nothing reads it")


def _fix_unheld(labels: Labels) -> None:
    """Channels that only buffers have are constants of the model."""
    atoms = labels.atoms
    held = np.zeros(len(atoms.parent), bool)
    for axis in labels.axes:
        if axis.trainable:
            held[atoms.find(axis.atoms)] = True
    roots = np.unique(atoms.find(np.arange(len(atoms.parent))))
    atoms.fix(roots[~held[roots]], "only buffers have these channels")


def _form(labels: Labels) -> tuple[list[RawGroup], list[tuple[IntArray, str]]]:
    atoms = labels.atoms
    roots = atoms.find(np.arange(len(atoms.parent)))
    reason = np.zeros(len(roots), np.int64)
    np.maximum.at(reason, roots, atoms.reason_of)
    mark = np.zeros(len(roots), np.uint64)
    with np.errstate(over="ignore"):
        np.add.at(mark, roots, atoms.mark)
    buckets = _buckets(labels.axes, roots, reason, mark)
    groups: list[RawGroup] = []
    broken: list[tuple[IntArray, str]] = []
    number = np.full(len(roots), -1)
    for members, axes in buckets:
        text = atoms.reasons[int(reason[members[0]])]
        group, trouble = _lay_out(roots, members, axes, text, number)
        groups.append(group)
        if trouble:
            broken.append((group.roots, trouble))
    return groups, broken


def _buckets(
    axes: Sequence[Axis], roots: IntArray, reason: IntArray, mark: npt.NDArray[np.uint64]
) -> list[tuple[IntArray, list[Axis]]]:
    """Channels of the same reason and mark that stand on the same axes, equally often; the axes.

    They begin as one class, and each axis tells apart those that stand on it by how often. New
    classes have higher numbers than all before, so the classes of two axes are never the same.
    """
    kind, last = np.zeros(len(roots), np.int64), 0
    standing: list[IntArray] = []
    for axis in axes:
        found, counts = np.unique(roots[axis.first : axis.first + axis.size], return_counts=True)
        kind[found], last = _renumbered(kind[found], counts, last)
        standing.append(found)
    everything = np.concatenate(standing) if standing else np.zeros(0, np.int64)
    members, at = np.unique(everything, return_index=True)
    members = members[np.argsort(at)]  # in the order in which they are met
    for apart in (reason, np.where(reason == 0, mark, np.uint64(0)).view(np.int64)):
        kind[members], last = _renumbered(kind[members], apart[members], last)
    number = {each: i for i, each in enumerate(dict.fromkeys(kind[members].tolist()))}
    held: list[list[Axis]] = [[] for _ in number]
    for axis, found in zip(axes, standing, strict=True):
        for each in np.unique(kind[found]).tolist():
            held[number[each]].append(axis)
    place = np.array([number[each] for each in kind[members].tolist()], np.int64)
    order = np.argsort(place, kind="stable")
    parts = np.split(members[order], np.flatnonzero(np.diff(place[order])) + 1)
    return list(zip(parts, held, strict=True)) if number else []


def _renumbered(kinds: IntArray, values: IntArray, last: int) -> tuple[IntArray, int]:
    """New classes of what had these classes and has these values; the highest of their numbers."""
    if (kinds == kinds[:1]).all() and (values == values[:1]).all():
        return np.full_like(kinds, last + 1), last + 1
    order = np.lexsort((values, kinds))
    differ = (np.diff(kinds[order]) != 0) | (np.diff(values[order]) != 0)
    made = np.empty_like(kinds)
    made[order] = last + 1 + np.concatenate([np.zeros(1, np.int64), np.cumsum(differ)])
    return made, int(made.max())


def _lay_out(
    roots: IntArray, members: IntArray, axes: Sequence[Axis], reason: str, number: IntArray
) -> tuple[RawGroup, str]:
    """A group with its spans, and where they do not fit; `number` is -1 everywhere, and left so."""
    number[members] = 0
    first = roots[axes[0].first : axes[0].first + axes[0].size]
    order, where = np.unique(first[number[first] == 0], return_index=True)
    members = order[np.argsort(where)]
    number[members] = np.arange(len(members))
    spans: list[RawSpan] = []
    trouble = ""
    for axis in axes:
        here = roots[axis.first : axis.first + axis.size]
        places = np.flatnonzero(number[here] >= 0)
        found = list(_spans(axis, places, number[here[places]], len(members)))
        found = found or list(_steps(axis, places, number[here[places]], len(members)))
        if not found and not reason:
            trouble = trouble or f"axis {axis.axis} of {axis.name}"
        spans.extend(found or [RawSpan(axis, int(places[0]), 1, 1)])
    number[members] = -1
    return RawGroup(
        members, tuple(spans), reason or ("one channel" if len(members) == 1 else "")
    ), trouble


def _spans(axis: Axis, places: IntArray, numbers: IntArray, width: int) -> Iterator[RawSpan]:
    """Spans that cover the places exactly; nothing where the order does not allow it."""
    changes = np.flatnonzero(np.diff(numbers) != 0)
    inner = int(changes[0]) + 1 if changes.size else len(numbers)
    if width == 1:
        inner = (
            int(np.flatnonzero(np.diff(places) != 1)[0]) + 1
            if (np.diff(places) != 1).any()
            else len(places)
        )
    block = width * inner
    if len(places) % block:
        return
    tiles = numbers.reshape(-1, block)
    starts = places.reshape(-1, block)
    pattern = np.repeat(np.arange(width), inner)
    if (tiles != pattern).any() or (starts - starts[:, :1] != np.arange(block)).any():
        return
    for start in starts[:, 0]:
        yield RawSpan(axis, int(start), inner, inner)


def _steps(axis: Axis, places: IntArray, numbers: IntArray, width: int) -> Iterator[RawSpan]:
    """The same where a channel lies at a constant distance from the one before it."""
    count, rest = divmod(len(places), width)
    order = np.lexsort((places, numbers))
    if width == 1 or rest or (numbers[order] != np.repeat(np.arange(width), count)).any():
        return
    table = places[order].reshape(width, count)
    starts, steps = table[0], table[1] - table[0]
    if (steps < 1).any() or (np.diff(table, axis=0) != steps).any():
        return
    at = 0
    while at < count:
        step = int(steps[at])
        run = slice(at, at + step)
        whole = (steps[run] == step).all() and (np.diff(starts[run]) == 1).all()
        whole = whole and at + step <= count
        yield RawSpan(axis, int(starts[at]), step if whole else 1, step)
        at += step if whole else 1


def _lanes(groups: list[RawGroup]) -> tuple[list[set[int]], list[tuple[IntArray, str]]]:
    """Groups that lie between each other's channels; and those between which something else lies.

    A block of lanes is complete: as many of one width as a step is long, side by side.
    """
    held: dict[int, list[tuple[RawSpan, int]]] = {}
    for number, group in enumerate(groups):
        for span in group.spans:
            if span.step > span.inner:
                held.setdefault(span.axis.first, []).append((span, number))
    blocks: list[set[int]] = []
    broken: list[tuple[IntArray, str]] = []
    for lanes in held.values():
        lanes.sort(key=lambda lane: lane[0].start)
        while lanes:
            first, number = lanes[0]
            width, starts = len(groups[number].roots), range(first.start, first.start + first.step)
            block, lanes = lanes[: first.step], lanes[first.step :]
            alike = all(s.step == first.step and len(groups[n].roots) == width for s, n in block)
            if alike and [span.start for span, _ in block] == list(starts):
                blocks.append({n for _, n in block})
                continue
            where = f"axis {first.axis.axis} of {first.axis.name}"
            members = {n for _, n in (*block, *lanes)}
            broken += [(groups[n].roots, where) for n in members if not groups[n].reason]
            break
    return blocks, broken


def _collapse_splits(atoms: Atoms, broken: Iterable[tuple[IntArray, str]]) -> bool:
    """Tie the leading axes of views that touch broken groups; whether anything changed."""
    hit = np.concatenate([roots for roots, _ in broken])
    changed = False
    for split in atoms.splits:
        part = compact(atoms, split)
        axes = sorted(support(part))
        if len(axes) < 2 or not np.isin(flat(part), hit).any():
            continue
        changed = True
        for axis in axes[:-1]:
            smaller = pin(atoms, part, axis, "a view cuts its channels in two ways")
            if smaller is None:
                break
            part = smaller
    return changed


def _ties(
    atoms: Atoms, groups: list[RawGroup], blocks: list[set[int]]
) -> tuple[list[tuple[int, ...]], list[IntArray]]:
    """Groups that lie in equal parts of one axis; channels stuck beside a fixed part."""
    owner = np.full(len(atoms.parent), -1)
    for number, group in enumerate(groups):
        owner[group.roots] = -1 if group.reason else number
    tied: list[set[int]] = []
    stuck: list[IntArray] = []
    members_of = [{-1 if groups[n].reason else n for n in block} for block in blocks]
    for rows in atoms.partitions:
        owners = np.where(rows >= 0, owner[atoms.find(rows)], -1)
        contents = {tuple(np.unique(row, return_counts=True)[0].tolist()) for row in owners}
        if len(contents) > 1:
            members_of.append({int(number) for number in np.unique(owners)})
    for members in members_of:
        if len(members) == 1:
            continue
        if -1 in members:
            stuck.extend(groups[number].roots for number in members - {-1})
            continue
        joined = [other for other in tied if other & members]
        tied = [other for other in tied if not other & members]
        tied.append(members.union(*joined))
    return [tuple(sorted(tie)) for tie in tied], stuck
