"""The literal reading of the paper's Eq. 9, for the ablation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eslkit.errors import InputError
from eslkit.graph.channels import ChannelGroup
from eslkit.surgery.policies.change import AxisChange, GroupChange, Maps, Policy
from eslkit.surgery.policies.corners import combined, first, last

__all__ = ["Literal", "literal"]

_PLAIN = {"first": first, "last": last, "combined": combined}


def literal(base: str | Policy = "first") -> Literal:
    """A policy that cuts the input of a layer behind a concat as if it were one group.

    Eq. 9 of the paper keeps "the first N input channels" of a filter. Behind a concat, [up, skip],
    the aligned reading (what every policy here does by itself) takes the first ones of each
    segment, so that weights stay with the channels that they were trained on. The literal reading
    takes the first ones of the whole axis: of 512 = [256 | 256] that become 384 = [128 | 256],
    positions 0 to 383, weights of `up` for channels of `skip`. The paper does not say which it
    means.

    Args:
        base: "first", "last" or "combined".

    Raises:
        InputError: another policy; scores of one group say nothing about a whole axis.
    """
    for name, policy in _PLAIN.items():
        if base in (name, policy):
            return Literal(policy, f"literal_{name}")
    raise InputError(
        f"literal({base!r}): the literal reading of Eq. 9 is there for "
        f"{', '.join(map(repr, _PLAIN))}; other policies choose channels of a group, not positions"
    )


@dataclass(frozen=True)
class Literal:
    """The policy that `literal` makes."""

    base: Policy
    __name__: str

    def __call__(self, change: GroupChange) -> Maps:
        """The maps of the policy underneath."""
        return self.base(change)

    def map_axis(self, change: AxisChange) -> Tensor:
        """The map of the policy underneath, for all positions of the axis."""
        name = f"{change.parameter}, axis {change.axis}"
        group = ChannelGroup(name, change.old, 0, (), (), None, ())
        return self.base(GroupChange(group, change.old, change.new, {})).consumer.to(torch.float64)
