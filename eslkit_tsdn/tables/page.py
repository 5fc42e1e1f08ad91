"""The tables as a page: Markdown that a terminal, an editor and the documentation can show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from eslkit_tsdn.tables.claims import findings
from eslkit_tsdn.tables.paper import PRINTED, Printed
from eslkit_tsdn.tables.results import Cell, Results, RowResult, TableResult

__all__ = ["markdown", "table_lines"]

STAND_IN = (
    "**Stand-in data.** Not the paper's SID pictures: {pictures}. Noise is drawn from the "
    "calibrated model of a Sony A7S II. That shows whether methods differ at this scale, in which "
    "direction, and whether by more than chance; it cannot show the paper's numbers (other "
    "pictures, networks of other size, trainings of other length), nor how a network does on real "
    "noise. Of each picture the same part is measured at each ratio; training and test pictures "
    "are disjoint."
)
SMOKE = (
    "**Nothing here is trained to the end.** The preset `smoke` shows that everything runs; its "
    "figures and verdicts mean nothing."
)
REAL = "**SID's own pictures**: {pictures}."

MEASURES = ("psnr", "ssim")


def markdown(results: Results) -> str:
    """The whole page.

    Args:
        results: of `collect`, with what they were measured on.

    Returns:
        Text in Markdown.
    """
    return "\n".join(_lines(results)) + "\n"


def _lines(results: Results) -> Iterator[str]:
    yield f"# Tables of the paper, preset `{results.scale.preset.name}`"
    yield ""
    yield (REAL if results.real else STAND_IN).format(pictures=results.pictures)
    yield ""
    if results.scale.preset.name == "smoke":
        yield SMOKE
        yield ""
    yield from _how(results)
    for table in results.tables:
        yield ""
        yield f"## {table.title}"
        yield ""
        yield from table_lines(table, noisy=results.noisy)
    yield ""
    yield "## The paper's claims, here"
    yield ""
    yield "| claim | here | PSNR, mean over the ratios; ± is the spread over seeds |"
    yield "|---|---|---|"
    for finding in findings(results.tables):
        yield f"| {finding.claim} | **{finding.verdict}** | {finding.evidence} |"


def _how(results: Results) -> Iterator[str]:
    scale, preset = results.scale, results.scale.preset
    length = f"{preset.epochs} epochs" if preset.epochs else f"{preset.iterations} iterations"
    yield (
        f"Small TSDN of {'-'.join(map(str, preset.widths))} channels, all other networks in the "
        f"paper's proportions; {length} a training, batches of {preset.batch_size} crops of "
        f"{preset.crop}x{preset.crop} packed pixels, learning rate {preset.lr:g} at the start. "
        f"Seeds: {scale.seeds} where the spread counts, {scale.other_seeds} elsewhere."
    )
    yield ""
    yield f"    {results.command}"
    yield ""
    machine = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    yield f"Finished {results.finished}; {machine}."


def table_lines(table: TableResult, *, noisy: dict[str, float]) -> Iterator[str]:
    """One table, with the paper's figures under ours where they are on record."""
    if table.name == "table6":
        yield from _noise_lines(table)
        return
    names = [name for name in noisy if name.partition("_x")[0] in MEASURES]
    heads = [_head(name) for name in names]
    yield _line(["", *heads, "MB", "GFLOPs", "trainings", "TFLOP of training", "runs"])
    yield _line(["---", *("---:" for _ in heads), "---:", "---:", "---:", "---:", "---"])
    yield _line(["noisy input", *(_number(name, noisy[name]) for name in names), *[""] * 5])
    for row in table.rows:
        yield _line([f"**{row.name}**: {row.what}", *_cells(row, names), *_costs(row)])
        printed = PRINTED.get((table.name, row.name))
        if printed is not None:
            yield _line(["*paper*", *_printed(printed, names), "", "", ""])
    yield ""
    yield (
        "± is the standard deviation over seeds; *paper* only where the figure is on record here. "
        "MB are 4 bytes a parameter, GFLOPs those of 1x4x512x512, every call counted."
    )


def _noise_lines(table: TableResult) -> Iterator[str]:
    """Table VI: what is left of the noise, along the network."""
    for row in table.rows:
        ratios = [n.rpartition("_")[2] for n in row.metrics if n.startswith("noise_std_output_")]
        yield _line([row.name, *(f"{what} {r}" for r in ratios for what in ("mean", "std"))])
        yield _line(["---", *("---:" for _ in ratios for _ in range(2))])
        for place in ("input", "middle", "output"):
            names = [f"noise_{what}_{place}_{r}" for r in ratios for what in ("mean", "std")]
            cells = [row.metrics.get(name) for name in names]
            yield _line([place, *("" if c is None else f"{c.mean:.5f}" for c in cells)])
    yield ""
    yield "Output minus clean picture, in units of the white level; means over the pictures."


def _cells(row: RowResult, names: Sequence[str]) -> list[str]:
    if not (row.runs or row.missing):  # nothing to be measured here
        return [""] * len(names)
    return [_cell(name, row.metrics.get(name)) for name in names]


def _cell(name: str, cell: Cell | None) -> str:
    if cell is None:
        return "not finished"
    spread = "" if cell.spread is None else f" ± {_number(name, cell.spread)}"
    return f"{_number(name, cell.mean)}{spread}"


def _costs(row: RowResult) -> list[str]:
    size = "" if row.parameters is None else f"{4 * row.parameters / 1e6:.3f}"
    cost = "" if row.macs is None else f"{2 * row.macs / 1e9:.3f}"
    missing = f", {row.missing} missing" if row.missing else ""
    runs = " ".join(f"`{run}`" for run in row.runs)
    if not row.trainings:
        return [size, cost, "", "", runs + missing]
    return [size, cost, str(row.trainings), f"{row.training_flops / 1e12:.4g}", runs + missing]


def _printed(printed: Printed, names: Sequence[str]) -> list[str]:
    cells: list[str] = []
    for name in names:
        measure, _, ratio = name.partition("_x")
        values = printed.psnr if measure == "psnr" else printed.ssim
        places = {"100": 0, "250": 1, "300": 2}
        known = values is not None and ratio in places
        cells.append(_number(name, values[places[ratio]]) if known and values else "")
    size = "" if printed.megabytes is None else f"{printed.megabytes}"
    return [*cells, size, "" if printed.gflops is None else f"{printed.gflops}"]


def _head(name: str) -> str:
    measure, _, ratio = name.partition("_x")
    return f"{measure.upper()} x{ratio}"


def _number(name: str, value: float) -> str:
    return f"{value:.2f}" if name.startswith("psnr") else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
