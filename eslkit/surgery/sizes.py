"""New widths -> new sizes: of every parameter axis, and of every tensor in the forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from eslkit.errors import InputError, ResizeError
from eslkit.graph.atoms import IntArray
from eslkit.graph.channels import ChannelGraph, ChannelGroup, ChannelSpan
from eslkit.graph.trace import Traced
from eslkit.graph.values import Value, flat, support

__all__ = ["Sizes", "check_widths", "scaled_widths"]


def scaled_widths(graph: ChannelGraph, factor: float) -> dict[str, int]:
    """Every resizable group's width times `factor`, rounded, at least 1; unchanged ones left out.

    Raises:
        InputError: the factor is not positive.
    """
    if not factor > 0:
        raise InputError(f"width={factor} must be a positive factor, such as 2 or 0.5")
    wanted = {name: max(1, round(width * factor)) for name, width in graph.widths.items()}
    return {name: new for name, new in wanted.items() if new != graph.widths[name]}


def check_widths(graph: ChannelGraph, widths: Mapping[str, int]) -> None:
    """Raise unless these widths can be.

    Raises:
        InputError: a group that is not there, or a width that is not a positive integer.
        ResizeError: a protected group, a broken tie, or a sum that a norm cannot divide.
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
    _check_divisors(graph, widths)


def _check_tie(graph: ChannelGraph, group: ChannelGroup, widths: Mapping[str, int]) -> None:
    new = widths[group.name]
    for other in group.tied:
        old = graph.group(other).width
        if widths.get(other, old) * group.width != new * old:
            want = new * old / group.width
            raise ResizeError(
                f"groups {group.name} ({group.width} channels) and {other} ({old}) lie in equal "
                f"parts of one axis: with {group.name} at {new}, {other} must be at {want:g}, "
                f"not {widths.get(other, old)}"
            )


def _check_divisors(graph: ChannelGraph, widths: Mapping[str, int]) -> None:
    full = {**graph.widths, **widths}
    for constraint in graph.constraints:
        if not any(name in widths for name in constraint.counts):
            continue
        total, old = constraint.total(full), constraint.total(graph.widths)
        if total % constraint.divisor and not _regroup(old, total, constraint.divisor):
            low = total // constraint.divisor * constraint.divisor
            names = ", ".join(constraint.counts)
            raise ResizeError(
                f"{constraint.where} divides {total} channels of {names} into "
                f"{constraint.divisor} groups; the nearest totals that it can are "
                f"{max(low, constraint.divisor)} and {low + constraint.divisor}"
            )


def _regroup(old: int, new: int, groups: int) -> int | None:
    """Groups for `new` channels when the present number does not divide them: same group size."""
    size = old // groups
    return new // size if size and new % size == 0 else None


@dataclass(frozen=True)
class Change:
    """One group's change of width."""

    group: ChannelGroup
    new: int


class Sizes:
    """Sizes of parameters and tensors once some groups have other widths."""

    def __init__(self, traced: Traced, widths: Mapping[str, int]) -> None:
        self.traced = traced
        self.changes = tuple(
            Change(group, widths[group.name])
            for group in traced.graph.resizable
            if group.name in widths and widths[group.name] != group.width
        )
        self.spans: dict[tuple[str, int], list[tuple[ChannelSpan, Change]]] = {}
        """(parameter, axis) -> the spans that change, in order."""
        for change in self.changes:
            for span in change.group.spans:
                self.spans.setdefault((span.parameter, span.axis), []).append((span, change))
        for spans in self.spans.values():
            spans.sort(key=lambda item: item[0].start)
        self._ratio = self._ratios()

    def _ratios(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        atoms = self.traced.labels.atoms
        ratio = np.ones(len(atoms.parent))
        first = {(axis.name, axis.axis): axis.first for axis in self.traced.labels.axes}
        for change in self.changes:
            span = change.group.spans[0]
            start = first[span.parameter, span.axis] + span.start
            members: IntArray = start + np.arange(change.group.width) * span.inner
            ratio[atoms.find(members)] = change.new / change.group.width
        return ratio

    def parameter(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """New shape of a parameter or buffer."""
        sizes = list(shape)
        for axis in range(len(sizes)):
            for span, change in self.spans.get((name, axis), ()):
                sizes[axis] += (change.new - change.group.width) * span.inner
        return tuple(sizes)

    def tensor(self, value: Value) -> tuple[int | None, ...]:
        """New shape of a tensor of the forward pass; None for an axis that cannot be told."""
        sizes: list[int | None] = list(value.shape)
        atoms = self.traced.labels.atoms
        for part in value.parts:
            labels = atoms.find(flat(part))
            ratio = np.where(labels >= 0, self._ratio[labels], 1.0)
            if (ratio == 1.0).all():
                continue
            axes = support(part)
            for axis in axes:
                sizes[axis] = round(float(ratio.sum())) if len(axes) == 1 else None
        return tuple(sizes)
