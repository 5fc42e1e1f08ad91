"""Every family."""

from __future__ import annotations

from tests.eslkit.families import attention, convolutions, indexed, moves, norms, others, solving
from tests.eslkit.families.family import Family

__all__ = ["FAMILIES", "family"]

FAMILIES: tuple[Family, ...] = (
    *convolutions.FAMILIES,
    *attention.FAMILIES,
    *moves.FAMILIES,
    *indexed.FAMILIES,
    *norms.FAMILIES,
    *others.FAMILIES,
    *solving.FAMILIES,
)


def family(name: str) -> Family:
    """The family of that name."""
    return next(found for found in FAMILIES if found.name == name)
