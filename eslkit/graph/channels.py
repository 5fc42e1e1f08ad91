"""ChannelGraph: which channels of a model are coupled. Frozen values; reading and printing."""

from __future__ import annotations

import fnmatch
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from eslkit.errors import InputError
from eslkit.graph.atoms import IntArray

if TYPE_CHECKING:
    import networkx

__all__ = ["ChannelGraph", "ChannelGroup", "ChannelSpan", "Constraint", "Join", "Skip", "matches"]


@dataclass(frozen=True)
class ChannelSpan:
    """The part of one parameter axis that a group owns.

    Channel i lies at `start + i*step`, `inner` positions long.
    """

    parameter: str
    """Qualified name of the parameter or buffer."""
    axis: int
    start: int
    inner: int
    """Consecutive positions for each channel."""
    step: int
    """Positions from one channel to the next: `inner`, or more where channels of other groups, or
    other positions of these, lie in between."""
    role: str
    """`producer`, `consumer`, or `follows` (biases, norms, statistics, per-channel scales)."""
    divided: bool = False
    """Whether it makes one side of a product of two activations (keys, say): then copies of the
    channels are divided here, as they are where channels are consumed."""

    @property
    def layer(self) -> str:
        """Qualified name of the module that holds the parameter."""
        return self.parameter.rpartition(".")[0]

    def positions(self, width: int) -> IntArray:
        """The positions of the first `width` channels, one row for each: (width, inner)."""
        return self.start + np.arange(width)[:, None] * self.step + np.arange(self.inner)


@dataclass(frozen=True)
class Join:
    """An operation that couples two axes: their channels meet in it."""

    first: str
    """Parameter and axis, as `encoder.0.weight:0`."""
    second: str
    through: str
    """The operation, the module that called it, and the line of the model's code."""


@dataclass(frozen=True)
class Skip:
    """A skip connection: a map that goes round the coarser levels to where it is joined again."""

    kind: str
    """`concat` or `add`."""
    level: int
    source: str
    """The module that made the map."""
    target: str
    """The module in which it is joined with what comes from below."""
    groups: tuple[str, ...]
    """The channel groups that the map carries."""


@dataclass(frozen=True)
class ChannelGroup:
    """Axes that must be resized together."""

    name: str
    """The layer that produces the channels first."""
    width: int
    """Number of channels."""
    level: int
    """Resolution level of the layers that produce them; 0 is full resolution."""
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    protected: str | None
    """Why the group is fixed; None where it can be resized."""
    spans: tuple[ChannelSpan, ...]
    tied: tuple[str, ...] = ()
    """Groups that must change by the same factor, because code cuts an axis into equal parts."""
    mixed: tuple[str, ...] = ()
    """Operations that norm, reduce or take a softmax over these channels, or multiply them with
    channels of the same group: where there are any, a narrowed network is not the masked one."""
    counting: tuple[str, ...] = ()
    """Those among them for which it matters how many channels there are (sums, softmax): they do
    not let a widened network with equal copies of its channels keep its output."""
    joins: tuple[Join, ...] = ()
    """How the axes come to be coupled, in the order of the forward pass."""


@dataclass(frozen=True)
class Constraint:
    """The channels of one axis together must stay divisible by `divisor`."""

    counts: Mapping[str, int]
    """Group name -> positions for each channel."""
    fixed: int
    """Positions on the axis that stay."""
    divisor: int
    where: str

    def total(self, widths: Mapping[str, int]) -> int:
        """Length of the axis at these widths."""
        return self.fixed + sum(widths[name] * count for name, count in self.counts.items())


@dataclass(frozen=True)
class ChannelGraph:
    """Which channels of a model are coupled, at which level, and what cannot be resized."""

    model: str
    """Class of the model."""
    groups: tuple[ChannelGroup, ...]
    """All groups in the order of the forward pass, the protected ones too."""
    num_levels: int
    positions: Mapping[tuple[str, int], str]
    """(parameter, axis) that holds no channels -> why (kernel positions, size 1 ...)."""
    constraints: tuple[Constraint, ...] = ()
    skips: tuple[Skip, ...] = ()
    """Skip connections, in the order in which they are joined."""

    @property
    def resizable(self) -> tuple[ChannelGroup, ...]:
        """The groups that can be resized."""
        return tuple(group for group in self.groups if group.protected is None)

    @property
    def widths(self) -> dict[str, int]:
        """Group name -> number of channels, for every group that can be resized."""
        return {group.name: group.width for group in self.resizable}

    @property
    def levels(self) -> tuple[tuple[ChannelGroup, ...], ...]:
        """The groups of each level, from full resolution down."""
        return tuple(
            tuple(group for group in self.groups if group.level == level)
            for level in range(self.num_levels)
        )

    def group(self, name: str) -> ChannelGroup:
        """The group of that name.

        Raises:
            InputError: there is none.
        """
        found = next((group for group in self.groups if group.name == name), None)
        if found is None:
            raise InputError(
                f"{self.model} has no channel group {name!r}; print(eslkit.trace(model)) lists them"
            )
        return found

    def of_layer(self, name: str) -> tuple[ChannelGroup, ...]:
        """The groups that a layer (name or pattern) takes part in."""
        return tuple(
            group
            for group in self.groups
            if any(
                matches(span.layer, name) or matches(span.parameter, name) for span in group.spans
            )
        )

    def protect(self, reasons: Mapping[str, str]) -> ChannelGraph:
        """This graph with some groups protected: group name -> why."""
        groups = tuple(
            replace(group, protected=reasons[group.name]) if group.name in reasons else group
            for group in self.groups
        )
        constraints = tuple(
            replace(
                constraint,
                counts={n: count for n, count in constraint.counts.items() if n not in reasons},
                fixed=constraint.fixed
                + sum(
                    self.group(n).width * count
                    for n, count in constraint.counts.items()
                    if n in reasons
                ),
            )
            for constraint in self.constraints
        )
        held = tuple(constraint for constraint in constraints if constraint.counts)
        return replace(self, groups=groups, constraints=held)

    def note(self, mixed: Mapping[str, tuple[str, ...]]) -> ChannelGraph:
        """This graph with more that keeps a narrowed network from being the masked one."""
        groups = tuple(
            replace(group, mixed=group.mixed + mixed.get(group.name, ())) for group in self.groups
        )
        return replace(self, groups=groups)

    def explain(self, name: str) -> str:
        """What is coupled with a group or a layer, through which operations, why it may be fixed.

        Args:
            name: a group's name, a layer's qualified name, or a pattern such as `encoder.*`.

        Raises:
            InputError: no group and no layer has that name.
        """
        groups = tuple(g for g in self.groups if g.name == name) or self.of_layer(name)
        if not groups:
            raise InputError(
                f"{self.model} has no channel group or layer {name!r} with parameters that the "
                "forward pass uses; print(eslkit.trace(model)) lists the groups"
            )
        return "\n\n".join(self._explain(group) for group in groups)

    def _explain(self, group: ChannelGroup) -> str:
        lines = [f"{group.name}: {group.width} channels at level {group.level}"]
        if group.protected is not None:
            lines.append(f"  protected: {group.protected}")
        for role, title in (
            ("producer", "produced by"),
            ("follows", "carried by"),
            ("consumer", "consumed by"),
        ):
            for span in group.spans:
                if span.role == role:
                    last = int(span.positions(group.width)[-1, -1])
                    each = f", {span.inner} for each channel" if span.inner > 1 else ""
                    each += f", each {span.step} behind the last" if span.step > span.inner else ""
                    lines.append(
                        f"  {title} {span.parameter}, axis {span.axis}, positions {span.start} to "
                        f"{last}{each}"
                    )
        lines.extend(
            f"  {join.first} meets {join.second} in {join.through}" for join in group.joins
        )
        if group.tied:
            lines.append(f"  must keep its ratio to: {', '.join(group.tied)}")
        lines.extend(f"  mixed by {where}" for where in group.mixed)
        return "\n".join(lines)

    def to_networkx(self) -> networkx.DiGraph[str]:
        """Groups as edges between layers: producer -> consumer, with `group` and `width`."""
        import networkx

        graph: networkx.DiGraph[str] = networkx.DiGraph()
        for group in self.groups:
            for producer in group.producers:
                graph.add_node(producer, level=group.level)
                for consumer in group.consumers:
                    graph.add_edge(producer, consumer, group=group.name, width=group.width)
        return graph

    def __str__(self) -> str:
        table = Table(title=f"{self.model}: {len(self.resizable)} groups can be resized")
        for title in ("group", "width", "level", "producers", "consumers", "protected because"):
            table.add_column(title, overflow="fold")
        for group in self.groups:
            table.add_row(
                group.name,
                str(group.width),
                str(group.level),
                _some(group.producers),
                _some(group.consumers),
                group.protected or "",
            )
        out = io.StringIO()
        console = Console(file=out, width=140)
        console.print(table)
        for level in range(self.num_levels):
            skips = [skip for skip in self.skips if skip.level == level]
            lines = [f"{s.source or 'the model'} -> {s.target} ({s.kind})" for s in skips]
            counts = len(self.levels[level])
            joined = "; ".join(lines) or "none"
            console.print(f"level {level}: {counts} groups; skip connections: {joined}")
        return out.getvalue()


def matches(name: str, pattern: str) -> bool:
    """Whether a qualified name is the pattern itself, or fits it (`encoder.*`)."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
