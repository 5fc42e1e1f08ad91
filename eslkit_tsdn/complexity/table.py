"""The paper's columns beside ours, and where they say less than they seem to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from pydantic import BaseModel, ConfigDict

from eslkit_tsdn.complexity.counting import PACKED, file_bytes, paper_flops, true_flops
from eslkit_tsdn.complexity.networks import NETWORKS, Listed

__all__ = ["COUNTINGS", "ComplexityRow", "complexity_notes", "complexity_rows"]

_MIB = 2**20

COUNTINGS: Mapping[str, str] = {
    "true": "true cost: 2 for every multiply-accumulate of convolutions and matrix products, "
    "every call counted",
    "paper": "as the paper counted: every module once, its last call alone, by torchstat's "
    "conventions (ReLU and pooling modules count, functions do not)",
}
"""What the two columns of GFLOPs are, a sentence each."""


class ComplexityRow(BaseModel):
    """One network's size and cost, the paper's and ours."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    network: str
    """As the paper calls it."""
    paper_size: float | None
    """The paper's model size in MB (it means MiB); None where it gives none."""
    paper_gflops: float | None
    """The paper's GFLOPs; None where it gives none."""
    parameters: int
    """Of the network, also those that are never used."""
    file_bytes: int
    """Of a saved state_dict in single precision."""
    counted_as_paper: float
    """GFLOPs by the paper's counting, for a packed input of 512x512."""
    gflops: float
    """GFLOPs of one forward pass of a packed input of 512x512, every call counted."""


def complexity_rows(networks: Sequence[Listed] = NETWORKS) -> tuple[ComplexityRow, ...]:
    """Count all networks in full size; nothing is computed or kept in memory.

    Args:
        networks: those of the paper's Table I if left out.

    Returns:
        A row for each, in their order.
    """
    return tuple(map(_row, networks))


def _row(listed: Listed) -> ComplexityRow:
    with torch.device("meta"):
        model = listed.build()
    counted = paper_flops(model, shape=listed.counted_at) / 1e9
    if listed.counted_at != PACKED:
        times = math.prod(PACKED) // math.prod(listed.counted_at)
        counted = times * round(counted, 2)
    return ComplexityRow(
        network=listed.name,
        paper_size=listed.size,
        paper_gflops=listed.gflops,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        file_bytes=file_bytes(model),
        counted_as_paper=counted,
        gflops=true_flops(model) / 1e9,
    )


def complexity_notes(rows: Sequence[ComplexityRow]) -> tuple[str, ...]:
    """Where the paper's figures hide cost or fit no file, from the rows' own numbers.

    Args:
        rows: of `complexity_rows`; a note needs the rows that it is about.
    """
    by_name = {row.network: row for row in rows}
    notes: list[str] = []
    if (row := by_name.get("DeamNet")) is not None:
        notes.append(
            f"DeamNet applies one U-Net four times; the paper's {row.paper_gflops:.2f} GFLOPs "
            f"count it once. The true cost is {row.gflops:,.2f}."
        )
    released, drawn = by_name.get("NBNet"), by_name.get("NBNet as drawn")
    if released is not None and drawn is not None:
        notes.append(
            f"NBNet's row in the paper mixes two networks: the size, {released.paper_size}, is "
            f"that of the released one, which costs {released.gflops:,.2f} GFLOPs; the cost, "
            f"{drawn.paper_gflops}, is four times that of the one in its paper's figure at "
            f"256x256, without the projection."
        )
    if (row := by_name.get("TSDN")) is not None:
        plain = 4 * row.parameters
        notes.append(
            f"TSDN's {row.paper_size} MB fit no file: its parameters are {plain / _MIB:.2f} MiB "
            f"or {plain / 1e6:.2f} MB, and a saved state_dict is {row.file_bytes / _MIB:.2f} MiB."
        )
    return tuple(notes)
