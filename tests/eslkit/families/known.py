"""Laws that a family is known to break, and why: every one is a promise to mend it."""

from __future__ import annotations

__all__ = ["BROKEN", "KNOWN"]

_BROKEN: dict[str, tuple[str, str]] = {
    "involution": (
        "found halved undone untouched used",
        "channels viewed in groups beside a kernel that is predicted for each",
    ),
}
"""Family -> laws, reason."""

KNOWN = {(law, name): reason for name, (laws, reason) in _BROKEN.items() for law in laws.split()}

BROKEN = frozenset(_BROKEN)
"""Families that are not drawn in networks of several."""
