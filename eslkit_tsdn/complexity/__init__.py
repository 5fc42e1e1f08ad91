"""Sizes and costs: the paper's Table I beside ours, counted in two ways, and measured."""

from __future__ import annotations

from eslkit_tsdn.complexity.counting import file_bytes, paper_flops, true_flops
from eslkit_tsdn.complexity.measuring import Measurement, measure
from eslkit_tsdn.complexity.networks import NETWORKS, Listed
from eslkit_tsdn.complexity.table import ComplexityRow, complexity_notes, complexity_rows

__all__ = [
    "NETWORKS",
    "ComplexityRow",
    "Listed",
    "Measurement",
    "complexity_notes",
    "complexity_rows",
    "file_bytes",
    "measure",
    "paper_flops",
    "true_flops",
]
