"""The paper's claims, each held against what was measured here.

Rows of one seed start from the same numbers, so two rows are compared seed by seed. A difference
counts when its mean is larger than its standard deviation over the seeds; with one seed nothing
can be said about chance, and the verdict says so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from eslkit_tsdn.tables.results import RowResult, TableResult, at_ratios, over_ratios

__all__ = ["CLAIMS", "Finding", "findings"]

Verdict = Literal[
    "holds",
    "holds, one seed",
    "within the spread",
    "does not hold, one seed",
    "does not hold",
    "not measured",
]


@dataclass(frozen=True)
class Finding:
    """A claim, and what was found."""

    claim: str
    """In the paper's words or close to them."""
    verdict: Verdict
    evidence: str
    """The figures, in words."""


@dataclass(frozen=True)
class _Better:
    """The claim that each row is better than the next."""

    claim: str
    table: str
    rows: tuple[str, ...]
    ratios: tuple[int, ...] = ()
    """Which exposure ratios count; all where empty."""

    def find(self, tables: Mapping[str, TableResult]) -> Finding:
        found = [_differences(tables, self.table, pair, self.ratios) for pair in _pairs(self.rows)]
        if not all(found):
            return Finding(self.claim, "not measured", "a row is missing")
        verdicts: list[Verdict] = [_sign(differences) for differences in found]
        said = [_said(pair, d) for pair, d in zip(_pairs(self.rows), found, strict=True)]
        return Finding(self.claim, _weakest(verdicts), "; ".join(said))


@dataclass(frozen=True)
class _Alike:
    """The claim that rows do not differ by more than chance."""

    claim: str
    table: str
    rows: tuple[str, ...]

    def find(self, tables: Mapping[str, TableResult]) -> Finding:
        pairs = [(a, b) for i, a in enumerate(self.rows) for b in self.rows[i + 1 :]]
        found = [_differences(tables, self.table, pair, ()) for pair in pairs]
        if not all(found):
            return Finding(self.claim, "not measured", "a row is missing")
        said = "; ".join(_said(pair, d) for pair, d in zip(pairs, found, strict=True))
        if any(len(differences) < 2 for differences in found):
            return Finding(self.claim, "not measured", f"{said}: one seed tells no spread")
        alike = all(_sign(differences) == "within the spread" for differences in found)
        return Finding(self.claim, "holds" if alike else "does not hold", said)


@dataclass(frozen=True)
class _NoBetter:
    """The claim that the first row is not better than the second."""

    claim: str
    table: str
    rows: tuple[str, str]

    def find(self, tables: Mapping[str, TableResult]) -> Finding:
        differences = _differences(tables, self.table, self.rows, ())
        if not differences:
            return Finding(self.claim, "not measured", "a row is missing")
        return Finding(self.claim, _REFUTED[_sign(differences)], _said(self.rows, differences))


_REFUTED: dict[Verdict, Verdict] = {
    "holds": "does not hold",
    "holds, one seed": "does not hold, one seed",
    "within the spread": "holds",
    "does not hold, one seed": "holds, one seed",
    "does not hold": "holds",
}
"""What "is better" says of "is not better"."""


@dataclass(frozen=True)
class _Falls:
    """The claim that the noise falls along TSDN."""

    claim: str
    table: str = "table6"
    row: str = "TSDN"

    def find(self, tables: Mapping[str, TableResult]) -> Finding:
        row = _row(tables, self.table, self.row)
        metrics = {} if row is None else row.metrics
        names = [name for name in metrics if name.startswith("noise_std_output_")]
        if not names:
            return Finding(self.claim, "not measured", "a row is missing")
        said: list[str] = []
        falls = True
        for name in names:
            ratio = name.rpartition("_")[2]
            places = [f"noise_std_{place}_{ratio}" for place in ("input", "middle", "output")]
            levels = [metrics[place].mean for place in places]
            falls &= levels[0] > levels[1] > levels[2]
            said.append(f"{ratio}: " + " → ".join(f"{level:.4f}" for level in levels))
        return Finding(self.claim, "holds" if falls else "does not hold", "; ".join(said))


CLAIMS: tuple[_Better | _Alike | _NoBetter | _Falls, ...] = (
    _Better("Two stages beat one.", "table2", ("TSDN4", "TSDN1")),
    _Better("Two losses beat one loss.", "table2", ("TSDN4", "TSDN2")),
    _NoBetter("Three stages add nothing.", "table2", ("ThSDN", "TSDN4")),
    _Alike("First, Last and Combined are alike.", "table3", ("First", "Last", "Combined")),
    _Better("Channels level by level beat all at once.", "table4", ("TSDN_CSL2", "TSDN_CSL1")),
    _Better("Finer shrinking is better.", "table4", ("TSDN_ESL3", "TSDN_ESL2", "TSDN_ESL1")),
    _Better("ESL beats training from scratch.", "table4", ("TSDN_ESL3", "TSDN_ESL4")),
    _Better("ESL beats going straight to the end.", "table4", ("TSDN_ESL3", "TSDN_ESL5")),
    _Better("U-Net gains by ESL.", "table5", ("U-Net-ESL", "U-Net")),
    _Better(
        "ESL beats collaborative distillation, which beats scratch.",
        "table5",
        ("SU-Net-ESL", "SU-Net-CD", "SU-Net"),
    ),
    _Better(
        "TSDN beats U-Net at x250 and x300 with an eighth of its size.",
        "table1",
        ("TSDN", "U-Net"),
        (250, 300),
    ),
    _Falls("Noise falls from input to middle to output."),
    _Better(
        "Not in the paper: ESL beats scratch with as many iterations in all.",
        "controls",
        ("TSDN", "scratch, equal iterations"),
    ),
    _Better(
        "Not in the paper: ESL beats scratch with as much computation in all.",
        "controls",
        ("TSDN", "scratch, equal FLOPs"),
    ),
    _Better(
        "Not in the paper: ESL beats pruning and finetuning at the same budget.",
        "controls",
        ("TSDN", "prune and finetune"),
    ),
    _Better(
        "Not in the paper: ESL beats plain distillation at the same budget.",
        "controls",
        ("TSDN", "distillation"),
    ),
)
"""Every claim, in the order of the tables."""


def findings(tables: Sequence[TableResult]) -> tuple[Finding, ...]:
    """Every claim whose table is among these, with its verdict."""
    by_name = {table.name: table for table in tables}
    return tuple(claim.find(by_name) for claim in CLAIMS if claim.table in by_name)


def _row(tables: Mapping[str, TableResult], table: str, name: str) -> RowResult | None:
    rows = {row.name: row for row in tables[table].rows}
    row = rows.get(name)
    return row if row is not None and row.metrics else None


def _pairs(rows: Sequence[str]) -> list[tuple[str, str]]:
    return list(pairwise(rows))


def _differences(
    tables: Mapping[str, TableResult], table: str, pair: Sequence[str], ratios: tuple[int, ...]
) -> tuple[float, ...]:
    """PSNR of the first row above the second, seed by seed; empty where one is missing."""
    first, second = (_row(tables, table, name) for name in pair)
    if first is None or second is None:
        return ()
    values: Callable[[RowResult], tuple[float, ...]] = (
        at_ratios(*ratios) if ratios else lambda row: over_ratios(row.metrics)
    )
    return tuple(a - b for a, b in zip(values(first), values(second), strict=False))


def _sign(differences: Sequence[float]) -> Verdict:
    if len(differences) < 2:
        return "holds, one seed" if differences[0] > 0 else "does not hold, one seed"
    mean = math.fsum(differences) / len(differences)
    if abs(mean) <= statistics.stdev(differences):
        return "within the spread"
    return "holds" if mean > 0 else "does not hold"


def _weakest(verdicts: Sequence[Verdict]) -> Verdict:
    order: tuple[Verdict, ...] = (
        "does not hold",
        "does not hold, one seed",
        "within the spread",
        "holds, one seed",
        "holds",
    )
    return next(verdict for verdict in order if verdict in verdicts)


def _said(pair: Sequence[str], differences: Sequence[float]) -> str:
    mean = math.fsum(differences) / len(differences)
    spread = f" ± {statistics.stdev(differences):.2f}" if len(differences) > 1 else ", one seed"
    return f"{pair[0]} above {pair[1]}: {mean:+.2f} dB{spread}"
