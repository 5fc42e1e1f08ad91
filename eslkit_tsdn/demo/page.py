"""The demo's page: pictures, numbers, and what they say, in one self-contained file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from eslkit.draw import draw_plan
from eslkit.report import Section, Series, curve_svg, picture_row, report, table_html
from eslkit_tsdn.data.pairs import TestPair
from eslkit_tsdn.demo.runs import Runs, at_table_size
from eslkit_tsdn.demo.settings import LINEAR, LONG, SCRATCH, DemoResults
from eslkit_tsdn.demo.table import row_cells
from eslkit_tsdn.demo.verdict import verdict
from eslkit_tsdn.evaluation import restore
from eslkit_tsdn.metrics import eld_protocol, psnr
from eslkit_tsdn.raw import render

__all__ = ["write_page"]

CROP, ENLARGED = (112, 144), 3  # packed pixels of a picture, and its enlargement


def write_page(results: DemoResults, runs: Runs, *, pairs: Sequence[TestPair], out: Path) -> None:
    """Write the page.

    Args:
        results: the table.
        runs: the networks whose pictures are shown.
        pairs: test pictures; those of the highest ratio are shown.
        out: the HTML file.

    Raises:
        StoreError: it cannot be written.
    """
    sections = (
        Section("What came out", verdict_html(results)),
        Section("Look for yourself", pictures_html(runs, pairs)),
        Section("Quality, step by step", curves_html(results)),
        Section("All numbers", numbers_html(results)),
        Section("The schedule", draw_plan(at_table_size(runs.plan))),
        Section("How it was measured", method_html(results)),
    )
    report(None, title="Expand-Shrink-Learning on a small denoiser", sections=sections, out=out)


def verdict_html(results: DemoResults) -> str:
    """The sentences."""
    return "".join(f"<p>{escape(sentence)}</p>" for sentence in verdict(results))


def pictures_html(runs: Runs, pairs: Sequence[TestPair]) -> str:
    """For every test photograph: noisy, (a), (b), expanded, (c), (d), clean."""
    highest = max(pair.ratio for pair in pairs)
    rows = [
        f"<h3>{escape(pair.name)}, exposed {highest} times too short</h3>"
        + picture_row(images_of(runs, pair))
        for pair in pairs
        if pair.ratio == highest
    ]
    return "\n".join(rows)


def images_of(runs: Runs, pair: TestPair) -> list[tuple[str, NDArray[np.uint8]]]:
    """The same part of one picture, seven times, with captions and the whole picture's PSNR."""
    images = [(f"noisy, {psnr(pair.noisy, pair.clean).item():.1f} dB", shown(pair, pair.noisy))]
    networks = {
        "(a) from scratch": runs.scratch,
        "(b) from scratch, as long as (c)": runs.long,
        "the expanded network on the way to (c)": runs.expanded,
        "(c) Expand-Shrink-Learning": runs.esl,
        "(d) as (b), layers larger inside": runs.linear,
    }
    for name, network in networks.items():
        restored = restore(network, pair.noisy)
        quality = eld_protocol(restored, pair.clean)["psnr"].item()
        images.append((f"{name}, {quality:.1f} dB", shown(pair, restored.clamp(0, 1))))
    return [*images, ("clean", shown(pair, pair.clean))]


def shown(pair: TestPair, packed: Tensor) -> NDArray[np.uint8]:
    """The centre of (1, 4, h, w) as an sRGB picture, enlarged without smoothing."""
    height, width = packed.shape[2:]
    rows, columns = min(CROP[0], height), min(CROP[1], width)
    top, left = (height - rows) // 2, (width - columns) // 2
    picture = render(
        packed[0, :, top : top + rows, left : left + columns],
        white_balance=pair.white_balance,
        color_matrix=pair.color_matrix,
    )
    return picture.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)


def curves_html(results: DemoResults) -> str:
    """PSNR after every step of (c), with (a), (b) and (d) as level lines."""
    names = [row.name for row in results.steps]
    levels = {
        "(a) from scratch": results.row(SCRATCH),
        "(b) as long as (c)": results.row(LONG),
        "(d) larger inside": results.row(LINEAR),
    }
    drawn: list[str] = []
    for ratio in results.ratios:
        key = f"psnr_x{ratio}"
        series = [
            Series("(c) after every step", [row.metrics[key] for row in results.steps]),
            *(
                Series(name, [row.metrics[key]] * len(names), reference=True)
                for name, row in levels.items()
            ),
        ]
        drawn.append(curve_svg(series, labels=names, title=f"PSNR in dB at x{ratio}"))
    return "\n".join(drawn)


def numbers_html(results: DemoResults) -> str:
    """The table that the terminal shows too."""
    head = ["network", "parameters", "GFLOPs", "iterations", "seconds"]
    head += [f"x{ratio}: PSNR / SSIM" for ratio in results.ratios]
    return table_html(head, [[row.what, *row_cells(row, results.ratios)] for row in results.rows])


def method_html(results: DemoResults) -> str:
    """What was trained and tested on, how, on which machine."""
    settings = results.settings
    gain = "drawn for every crop" if settings.gain is None else f"K = {settings.gain:g} DN/e"
    source = "the camera files in " + settings.raw if settings.raw else "photographs, unprocessed"
    lines = [
        f"Pictures: {source}; trained on {', '.join(results.train)}; tested on "
        f"{', '.join(results.test)}, which are never trained on.",
        "Noise: the calibrated model of the Sony A7S II (shot, Tukey-lambda read, row and "
        f"quantisation noise, colour bias), system gain {gain}; exposure ratios 100 to 300 in "
        "training, drawn for every crop; the same noise in every test.",
        f"Training: L1 on the image of every stage, Adam, learning rate {settings.lr:g}, halved "
        "after half of a training and a tenth in its last sixth; "
        f"{settings.batch_size} crops of {settings.crop}x{settings.crop} packed pixels an "
        f"iteration; seed {settings.seed}.",
        "Measures: PSNR and SSIM by ELD's protocol (one factor corrects the brightness of the "
        "output), means over the test pictures; GFLOPs for one picture of 4x512x512 packed pixels.",
        "Computed on "
        + ", ".join(f"{name} {what}" for name, what in results.machine.items())
        + f"; finished {results.finished}.",
    ]
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
