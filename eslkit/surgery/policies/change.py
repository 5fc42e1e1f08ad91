"""What a policy is asked, what it answers, and the few forms that a policy can have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from eslkit.graph.channels import ChannelGroup, ChannelSpan
from eslkit.surgery.axes import AxisMap
from eslkit.surgery.sizes import Sizes

__all__ = [
    "AxisChange",
    "GroupChange",
    "Maps",
    "MapsWholeAxes",
    "NeedsModel",
    "Policy",
    "RefinesWeights",
    "keep_largest",
    "select",
]


@dataclass(frozen=True)
class GroupChange:
    """A group, its old and new number of channels, and the tensors of the network before."""

    group: ChannelGroup
    old: int
    new: int
    tensors: Mapping[str, Tensor]
    """Parameters and buffers by qualified name. Read only."""

    def spans(self, *roles: str) -> tuple[ChannelSpan, ...]:
        """Where the group's channels lie, in these roles: `producer`, `follows`, `consumer`."""
        return tuple(span for span in self.group.spans if span.role in roles)

    def channels(self, span: ChannelSpan) -> Tensor:
        """The weights of a span, one row for each channel: (old, weights a channel)."""
        stretch = self.tensors[span.parameter].detach().movedim(span.axis, 0)
        chosen = torch.from_numpy(span.positions(self.old).ravel()).to(stretch.device)
        return stretch.index_select(0, chosen).reshape(self.old, -1)


@dataclass(frozen=True)
class Maps:
    """Producer and consumer map, both of shape (new, old)."""

    producer: Tensor
    """P: what makes or carries the channels becomes P W."""
    consumer: Tensor
    """Q: what consumes them becomes W Qᵀ."""
    spans: Mapping[ChannelSpan, Tensor] = field(default_factory=dict[ChannelSpan, Tensor])
    """Maps of single spans, where one differs from P or Q of its role."""


Policy = Callable[[GroupChange], Maps]
"""A policy: what is asked about one group -> its maps."""


@dataclass(frozen=True)
class AxisChange:
    """A consumer's whole axis on which channels of several groups lie one behind the other."""

    parameter: str
    axis: int
    old: int
    new: int


@runtime_checkable
class NeedsModel(Protocol):
    """A policy that looks at the whole network before it answers for a group."""

    def bind(self, model: nn.Module) -> Policy:
        """The policy for this one network, which must not be changed."""
        ...


@runtime_checkable
class MapsWholeAxes(Protocol):
    """A policy that maps a consumer's axis as a whole, whatever its segments are."""

    def map_axis(self, change: AxisChange) -> Tensor:
        """The map (new, old) of the axis."""
        ...


@runtime_checkable
class RefinesWeights(Protocol):
    """A policy that goes over the new network once its weights are mapped."""

    def refine(
        self,
        made: nn.Module,
        model: nn.Module,
        sizes: Sizes,
        maps: Mapping[tuple[str, int], AxisMap],
    ) -> None:
        """Change the weights of `made` in place; `model` is the network before, not touched."""
        ...


def select(indices: Tensor, old: int) -> Maps:
    """Maps that keep the channels `indices` (of `old`), in that order."""
    chosen = torch.zeros(len(indices), old, dtype=torch.float64)
    chosen[torch.arange(len(indices)), indices] = 1.0
    return Maps(chosen, chosen)


def keep_largest(scores: Tensor, change: GroupChange) -> Maps:
    """Maps that keep the channels with the largest scores, in their old order.

    Of equal scores the earlier channel stays. When the group gets wider all channels stay, and
    fresh ones come behind them.

    Args:
        scores: one number for each old channel, shape (old,).
        change: what was asked.
    """
    if change.new >= change.old:
        eye = torch.eye(change.new, change.old, dtype=torch.float64)
        return Maps(eye, eye)
    order = scores.detach().to("cpu", torch.float64).sort(descending=True, stable=True).indices
    return select(order[: change.new].sort().values, change.old)
