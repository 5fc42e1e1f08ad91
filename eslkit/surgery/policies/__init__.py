"""Init policies: how a network's weights come from the network before (the paper's INIT1).

A policy answers one question for one group that goes from n to m channels: the producer map P
and the consumer map Q, both m x n. Every axis that makes or carries the channels becomes P W,
every axis that consumes them W Qᵀ. So one mechanism serves expand, shrink and transfer.

A row of zeros takes nothing over: that channel keeps what a fresh initialisation drew.

| policy | keeps |
|---|---|
| `first`, `last`, `combined` | the first or last channels, or the mean of both (the paper's) |
| `l1`, `l2` | the channels whose filters have the largest norm |
| `bn_scale` | the channels with the largest scales of batch norms |
| `taylor(batches, loss)` | the channels without which the loss would change most |
| `least_squares(batches)` | a selection, and consumers solved so that features match |
| `preserve`, `split` | widening: the function, by copies |
| `merge` | neighbours as one channel: the way back from copies |
| `random` | nothing |
| `literal(base)` | as `base`, with the paper's Eq. 9 to the letter behind a concat |

Example: a policy of one's own, the channels with the largest weights.
    >>> import torch
    >>> from eslkit.surgery.policies import GroupChange, Maps, keep_largest
    >>> def largest(change: GroupChange) -> Maps:
    ...     score = torch.zeros(change.old)
    ...     for span in change.spans("producer"):
    ...         score += change.channels(span).abs().amax(dim=1)
    ...     return keep_largest(score, change)
"""

from __future__ import annotations

from eslkit.surgery.policies.change import (
    AxisChange,
    GroupChange,
    Maps,
    MapsWholeAxes,
    NeedsModel,
    Policy,
    RefinesWeights,
    keep_largest,
    select,
)
from eslkit.surgery.policies.copies import merge, preserve, split
from eslkit.surgery.policies.corners import combined, first, last, random
from eslkit.surgery.policies.least_squares import LeastSquares, least_squares
from eslkit.surgery.policies.literal import Literal, literal
from eslkit.surgery.policies.named import NAMES, planned, policy_of
from eslkit.surgery.policies.norms import bn_scale, l1, l2, norm_scores
from eslkit.surgery.policies.taylor import Taylor, taylor

__all__ = [
    "NAMES",
    "AxisChange",
    "GroupChange",
    "LeastSquares",
    "Literal",
    "Maps",
    "MapsWholeAxes",
    "NeedsModel",
    "Policy",
    "RefinesWeights",
    "Taylor",
    "bn_scale",
    "combined",
    "first",
    "keep_largest",
    "l1",
    "l2",
    "last",
    "least_squares",
    "literal",
    "merge",
    "norm_scores",
    "planned",
    "policy_of",
    "preserve",
    "random",
    "select",
    "split",
    "taylor",
]
