"""Init policies: how a network's weights come from the network before (the paper's INIT1).

A policy answers one question for one group that goes from n to m channels: the producer map P
and the consumer map Q, both m x n. Every axis that makes or carries the channels becomes P W,
every axis that consumes them W Q^T. So one mechanism serves expand, shrink and transfer.

A row of zeros takes nothing over: that channel keeps what a fresh initialisation drew.

Example: a policy of one's own, the channels with the largest weights.
    >>> import torch
    >>> from eslkit.surgery.policies import GroupChange, Maps, select
    >>> def largest(change: GroupChange) -> Maps:
    ...     span = next(s for s in change.group.spans if s.role == "producer")
    ...     weight = change.tensors[span.parameter].movedim(span.axis, 0)
    ...     score = weight[span.start : span.start + change.old].flatten(1).norm(dim=1)
    ...     return select(score.topk(change.new).indices.sort().values, change.old)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from eslkit.errors import InputError, ResizeError
from eslkit.graph.channels import ChannelGroup

__all__ = [
    "GroupChange",
    "Maps",
    "Policy",
    "combined",
    "first",
    "last",
    "policy_of",
    "preserve",
    "random",
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


@dataclass(frozen=True)
class Maps:
    """Producer and consumer map, both of shape (new, old), float64."""

    producer: Tensor
    consumer: Tensor


Policy = Callable[[GroupChange], Maps]


def select(indices: Tensor, old: int) -> Maps:
    """Maps that keep the channels `indices` (of `old`), in that order."""
    chosen = torch.zeros(len(indices), old, dtype=torch.float64)
    chosen[torch.arange(len(indices)), indices] = 1.0
    return Maps(chosen, chosen)


def first(change: GroupChange) -> Maps:
    """The first channels (the paper's First): P = Q = [I 0]; new channels are fresh."""
    return _corner(change, 0, 0)


def last(change: GroupChange) -> Maps:
    """The last channels (the paper's Last): P = Q = [0 I]; when widening, the old go last."""
    gap = abs(change.old - change.new)
    return _corner(change, gap, 0) if change.new < change.old else _corner(change, 0, gap)


def combined(change: GroupChange) -> Maps:
    """Averages of First and Last (the paper's Combined); as First when widening."""
    if change.new >= change.old:
        return first(change)
    mean = 0.5 * (first(change).producer + last(change).producer)
    return Maps(mean, mean)


def _corner(change: GroupChange, column: int, row: int) -> Maps:
    eye = torch.zeros(change.new, change.old, dtype=torch.float64)
    count = min(change.new, change.old)
    eye[torch.arange(row, row + count), torch.arange(column, column + count)] = 1.0
    return Maps(eye, eye)


def random(change: GroupChange) -> Maps:
    """Nothing is taken over: every channel is fresh."""
    nothing = torch.zeros(change.new, change.old, dtype=torch.float64)
    return Maps(nothing, nothing)


def preserve(change: GroupChange) -> Maps:
    """Function-preserving widening (Net2Wider, Chen et al., ICLR 2016).

    Channels are repeated side by side, so that blocks of a norm stay together; what consumes them
    is divided by the number of copies.

    Raises:
        ResizeError: narrowing, or copies in unequal number before a norm over channels.
    """
    if change.new < change.old:
        raise ResizeError(
            f"init='preserve' cannot narrow group {change.group.name} from {change.old} to "
            f"{change.new} channels; use it to widen"
        )
    source = torch.arange(change.new) * change.old // change.new
    copies = torch.bincount(source, minlength=change.old)
    chosen = select(source, change.old).producer
    return Maps(chosen, chosen / copies[source].unsqueeze(1))


_NAMED: dict[str, Policy] = {
    "first": first,
    "last": last,
    "combined": combined,
    "random": random,
    "preserve": preserve,
}


def policy_of(init: str | Policy) -> Policy:
    """The policy of that name, or the callable itself.

    Raises:
        InputError: no policy has that name.
    """
    if callable(init):
        return init
    if init not in _NAMED:
        raise InputError(
            f"init={init!r} is no policy; use one of {', '.join(_NAMED)} or a callable"
        )
    return _NAMED[init]
