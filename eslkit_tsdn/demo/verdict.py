"""What a demo's numbers say, in two sentences that hold whichever way they fell."""

from __future__ import annotations

from collections.abc import Sequence

from eslkit_tsdn.demo.settings import LONG, SCRATCH, DemoResults, Row

__all__ = ["against_long", "against_scratch", "gains"]

LEVEL = 0.05  # dB; less is no difference that one seed could show


def gains(results: DemoResults, other: str) -> tuple[float, ...]:
    """PSNR of ESL's last network above another row's, in dB at every ratio."""
    last, row = results.steps[-1], results.row(other)
    return tuple(last.metrics[f"psnr_x{r}"] - row.metrics[f"psnr_x{r}"] for r in results.ratios)


def against_scratch(results: DemoResults) -> str:
    """(c) against (a), the comparison of the paper: equal iterations per training."""
    iterations = results.row(SCRATCH).iterations or 0
    compared = standing(results.ratios, gains(results, SCRATCH))
    return (
        "Against the same network trained from scratch for as long as one step "
        f"({iterations:,} iterations), which is the paper's comparison, Expand-Shrink-Learning "
        f"{compared}."
    )


def against_long(results: DemoResults) -> str:
    """(c) against (b), the comparison that the paper lacks: equal iterations in all."""
    differences = gains(results, LONG)
    iterations = results.row(LONG).iterations or 0
    times = training_macs(results.steps) / training_macs([results.row(LONG)])
    return (
        f"Against the same network trained from scratch for {iterations:,} iterations, as many as "
        f"all {len(results.steps)} steps together, Expand-Shrink-Learning "
        f"{standing(results.ratios, differences)}, at {times:.1f} times the computation: "
        f"{meaning(differences)}."
    )


def standing(ratios: Sequence[int], differences: Sequence[float]) -> str:
    """`is 0.31 dB better at x100 and 0.20 dB better at x250`."""
    parts = [
        f"{abs(d):.2f} dB {'better' if d > 0 else 'worse'} at x{ratio}"
        for ratio, d in zip(ratios, differences, strict=True)
    ]
    return "is " + ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]


def meaning(differences: Sequence[float]) -> str:
    """What (c) against (b) means at this scale, and what it does not."""
    if all(d > LEVEL for d in differences):
        return (
            "here growing and shrinking brought more than the additional iterations alone, "
            "though one seed and minutes of training are no proof that it always does"
        )
    if any(d > LEVEL for d in differences):
        return "that is no clear difference between the steps and plainly training for longer"
    return (
        "where training is as short as here, what the steps bring is mostly iterations, and "
        "whether they bring more in trainings as long as the paper's this demo cannot show"
    )


def training_macs(rows: Sequence[Row]) -> float:
    """Cost of trainings, in MACs of forward passes over one image."""
    return float(sum((row.macs or 0) * (row.iterations or 0) for row in rows))
