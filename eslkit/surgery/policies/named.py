"""Policies by name, as plans and the command line call them."""

from __future__ import annotations

from eslkit.errors import InputError
from eslkit.surgery.policies.change import NeedsModel, Policy, RefinesWeights
from eslkit.surgery.policies.copies import merge, preserve, split
from eslkit.surgery.policies.corners import combined, first, last, random
from eslkit.surgery.policies.literal import literal
from eslkit.surgery.policies.norms import bn_scale, l1, l2

__all__ = ["NAMES", "planned", "policy_of"]

_NAMED: dict[str, Policy] = {
    "first": first,
    "last": last,
    "combined": combined,
    "random": random,
    "preserve": preserve,
    "split": split,
    "merge": merge,
    "l1": l1,
    "l2": l2,
    "bn_scale": bn_scale,
    "literal_first": literal("first"),
    "literal_last": literal("last"),
    "literal_combined": literal("combined"),
}

NAMES = tuple(_NAMED)
"""The policies that need nothing but the network, and so can be called by name."""


def policy_of(init: str | Policy) -> Policy:
    """The policy of that name, or the callable itself.

    Raises:
        InputError: no policy has that name.
    """
    if callable(init):
        return init
    if init not in _NAMED:
        raise InputError(
            f"init={init!r} is no policy; use one of {', '.join(_NAMED)} or a callable, such as "
            "eslkit.policies.taylor(batches, loss) or eslkit.policies.least_squares(batches)"
        )
    return _NAMED[init]


def planned(init: str | Policy) -> Policy:
    """What stands for a policy where only the form of a network counts, not its weights.

    Policies that look at data would do so for every step of a plan; `first` gives networks of the
    same form at once.
    """
    policy = policy_of(init)
    looks_at_data: bool = isinstance(policy, (NeedsModel, RefinesWeights))
    return first if looks_at_data else policy
