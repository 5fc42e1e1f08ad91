"""What a demo's numbers say, in sentences that hold whichever way they fell."""

from __future__ import annotations

from collections.abc import Sequence

from eslkit_tsdn.demo.settings import LINEAR, LONG, SCRATCH, DemoResults, Row

__all__ = ["against_long", "against_scratch", "gains", "linear_against", "verdict"]

LEVEL = 0.2  # dB; by as much the same seed ends elsewhere on another kind of processor


def verdict(results: DemoResults) -> tuple[str, ...]:
    """All sentences, in order."""
    return against_scratch(results), against_long(results), linear_against(results)


def gains(results: DemoResults, other: str, *, of: str | None = None) -> tuple[float, ...]:
    """PSNR of a row above another's, in dB at every ratio; of ESL's last network by default."""
    own, row = results.row(of or results.steps[-1].name), results.row(other)
    return tuple(own.metrics[f"psnr_x{r}"] - row.metrics[f"psnr_x{r}"] for r in results.ratios)


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


def linear_against(results: DemoResults) -> str:
    """(d) against (b) and (c): what a budget is spent on by default."""
    row, esl = results.row(LINEAR), results.steps[-1].name
    times = training_macs(results.steps) / training_macs([row])
    long, last = (gains(results, other, of=LINEAR) for other in (LONG, esl))
    return (
        "The same network with layers that are larger inside while it learns (the recipe linear), "
        f"trained for {row.iterations or 0:,} iterations as well, {standing(results.ratios, long)} "
        f"than the longer training, and {standing(results.ratios, last)} than "
        f"Expand-Shrink-Learning, which took {times:.1f} times the computation."
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
