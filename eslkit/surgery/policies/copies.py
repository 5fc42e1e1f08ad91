"""Channels repeated, their consumers sharing the copies; and the way back."""

from __future__ import annotations

import torch
from torch import Tensor

from eslkit.errors import ResizeError
from eslkit.surgery.policies.change import GroupChange, Maps, select

__all__ = ["merge", "preserve", "split"]

_UNEVEN = 0.5
"""How far, at most, a copy's share in `split` lies from the even one, relative to it."""


def preserve(change: GroupChange) -> Maps:
    """Function-preserving widening (Net2WiderNet, Chen et al., ICLR 2016, section 2.3).

    Channels are repeated side by side, so that blocks of a norm stay together; what consumes them
    is divided by the number of copies. Copies get equal gradients and stay equal in training
    until something tells them apart (dropout, noise); `split` does.

    Raises:
        ResizeError: narrowing.
    """
    source, copies = _repeats(change, "preserve")
    chosen = select(source, change.old).producer
    return Maps(chosen, chosen / copies[source].unsqueeze(1))


def split(change: GroupChange) -> Maps:
    """As `preserve`, but copies have unequal shares, so that they part in training.

    Net2Net adds noise to the copies, and then the function is only nearly preserved. Here the
    consumers' shares of the copies of one channel differ, between half and one and a half times
    the even share; they add up to 1, so the function is preserved, and gradients differ from the
    first step on.

    Raises:
        ResizeError: narrowing.
    """
    source, copies = _repeats(change, "split")
    chosen = select(source, change.old).producer
    start = copies.cumsum(0) - copies
    place = torch.arange(change.new) - start[source]
    most = (copies[source] - 1).clamp(min=1)
    tilt = torch.where(copies[source] > 1, 1 + _UNEVEN * (1 - 2 * place / most), 1.0)
    share = tilt.to(torch.float64) / copies[source]
    return Maps(chosen, chosen * share.unsqueeze(1))


def merge(change: GroupChange) -> Maps:
    """Neighbours become one channel: the mean of those who make them, the sum of what reads them.

    The way back from `preserve` and `split`: copies that have not parted become the channel that
    they are copies of. After such an expansion `first` would keep both copies of the first half of
    the channels, and none of the second. When the group gets wider, as `preserve`.
    """
    if change.new >= change.old:
        return preserve(change)
    goal = torch.arange(change.old) * change.new // change.old
    together = select(goal, change.new).producer.T
    return Maps(together / together.sum(dim=1, keepdim=True), together)


def _repeats(change: GroupChange, name: str) -> tuple[Tensor, Tensor]:
    """Old channel of each new one, and the number of copies of each old one."""
    if change.new < change.old:
        raise ResizeError(
            f"init={name!r} cannot narrow group {change.group.name} from {change.old} to "
            f"{change.new} channels; use it to widen"
        )
    source = torch.arange(change.new) * change.old // change.new
    return source, torch.bincount(source, minlength=change.old)
