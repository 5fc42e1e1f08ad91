"""The paper's three policies, and none at all: First, Last, Combined, random."""

from __future__ import annotations

import torch

from eslkit.surgery.policies.change import GroupChange, Maps

__all__ = ["combined", "first", "last", "random"]


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
