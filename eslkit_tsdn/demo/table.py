"""The table that the demo ends with."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from eslkit_tsdn.demo.settings import LONG, DemoResults, Row, label

__all__ = ["results_table", "row_cells"]


def results_table(results: DemoResults) -> Table:
    """The table for a terminal of 80 columns: PSNR in dB and SSIM at every ratio."""
    table = Table(
        box=box.SIMPLE_HEAD,
        title="PSNR in dB and SSIM, mean over the test photographs",
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("network", no_wrap=True)
    for head in ("parameters", "GFLOPs", "iter.", "s"):
        table.add_column(head, justify="right", no_wrap=True)
    for ratio in results.ratios:
        table.add_column(f"x{ratio}", justify="right", no_wrap=True)
    ends = {"noisy", LONG, results.steps[-1].name}
    for row in results.rows:
        cells = row_cells(row, results.ratios)
        table.add_row(label(row.name), *cells, end_section=row.name in ends)
    return table


def row_cells(row: Row, ratios: Sequence[int]) -> list[str]:
    """Parameters, GFLOPs, iterations, seconds and quality of a row as text."""
    counts = [row.parameters, row.iterations]
    parameters, iterations = ("" if count is None else f"{count:,}" for count in counts)
    flops = "" if row.flops is None else f"{row.flops / 1e9:.2f}"
    seconds = "" if row.seconds is None else f"{row.seconds:.0f}"
    quality = [
        f"{row.metrics[f'psnr_x{ratio}']:.2f} {row.metrics[f'ssim_x{ratio}']:.3f}".replace(
            " 0.", " ."
        )
        for ratio in ratios
    ]
    return [parameters, flops, iterations, seconds, *quality]
