"""Fills the tables of the study into the pages about it."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.pays.tables import TABLES

__all__ = ["PAGES", "filled"]

_EXPLANATION = Path(__file__).parents[2] / "docs" / "explanation"
PAGES = tuple(_EXPLANATION / f"{name}.md" for name in ("does-it-pay", "what-knobs-are-worth"))
_REGION = re.compile(
    r"(<!-- table: (?P<name>[^>]+?)(?:; (?P<only>[^>]+?))? -->\n).*?(<!-- end -->)", re.DOTALL
)


def filled(text: str) -> str:
    """A page whose tables are those of the records.

    A table stands between `<!-- table: NAME -->` and `<!-- end -->`; behind a semicolon, such as
    `<!-- table: knobs; denoise -->`, which of its parts: those whose first line has that word.
    """
    return _REGION.sub(_table, text)


def _table(match: re.Match[str]) -> str:
    name, only = match["name"], match["only"]
    if name not in TABLES:
        raise SystemExit(f"There is no table {name!r}; there are {', '.join(TABLES)}.")
    part, make = TABLES[name]
    tables = make(part).split("\n\n")
    if only:
        tables = [table for table in tables if only in table.splitlines()[0]]
    body = "\n\n".join(table.strip("\n") for table in tables)
    return f"{match[1]}\n{body}\n\n{match[4]}"
