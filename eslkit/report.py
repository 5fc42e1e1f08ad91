"""One self-contained HTML page about a run, and the pieces that such pages are made of."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from numpy.typing import NDArray

from eslkit.curves import Series, curve_svg
from eslkit.draw import draw_plan
from eslkit.errors import InputError
from eslkit.files import write_atomically
from eslkit.manifest import StepRecord
from eslkit.plan import Plan
from eslkit.schedule import Result
from eslkit.store import RunStore
from eslkit.words import describe

__all__ = ["Section", "Series", "curve_svg", "picture_row", "png_bytes", "report", "table_html"]

_ENVIRONMENT = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)

_PAGE = _ENVIRONMENT.from_string("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root{--ink:#1c2733;--soft:#5d6b7a;--paper:#fff;--line:#e3e8ee;--shade:#f6f8fa;--accent:#c8660a}
@media (prefers-color-scheme:dark){
:root{--ink:#e6eaf0;--soft:#9aa7b5;--paper:#12171d;--line:#2b343e;--shade:#1a2129;--accent:#ffb259}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:17px/1.55 system-ui,"Segoe UI",Helvetica,Arial,sans-serif}
main{max-width:1240px;margin:0 auto;padding:40px 28px 80px}
h1{font-size:34px;line-height:1.2;letter-spacing:-.01em;margin:0 0 10px}
h2{font-size:23px;margin:56px 0 14px;padding-top:18px;border-top:1px solid var(--line)}
h3{font-size:17px;margin:30px 0 10px}
p,ul{max-width:76ch}
nav{color:var(--soft);font-size:15px;margin-bottom:8px}
nav a{color:inherit;margin-right:18px;text-decoration:none;border-bottom:1px solid var(--line)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:15px;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding-bottom:8px}
th,td{padding:7px 16px 7px 0;text-align:right;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:500;vertical-align:bottom}
th:first-child,td:first-child,.text{text-align:left}
td:first-child{font-weight:600;white-space:nowrap}
tbody tr:hover{background:var(--shade)}
.pictures{display:grid;gap:18px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr))}
figure{margin:0}
figure img{display:block;width:100%;height:auto;background:var(--shade)}
figcaption{color:var(--soft);font-size:15px;padding:6px 0 0}
svg{display:block;margin:10px 0 26px}
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
{% if sections | length > 2 %}
<nav>
{% for section in sections %}<a href="#s{{ loop.index }}">{{ section.title }}</a>
{% endfor %}
</nav>
{% endif %}
{% for section in sections %}
<section>
<h2 id="s{{ loop.index }}">{{ section.title }}</h2>
<div class="scroll">{{ section.html | safe }}</div>
</section>
{% endfor %}
</main>
</body>
</html>
""")

_TABLE = _ENVIRONMENT.from_string("""\
<table>{% if caption %}<caption>{{ caption }}</caption>{% endif %}
<thead><tr>{% for cell in head %}
<th{% if loop.index0 in words %} class="text"{% endif %}>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}<tr>{% for cell in row %}
<td{% if loop.index0 in words %} class="text"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
""")

_PICTURES = _ENVIRONMENT.from_string("""\
<div class="pictures">
{% for caption, data, width, height in pictures %}
<figure><img src="data:image/png;base64,{{ data }}" width="{{ width }}" height="{{ height }}"
alt="{{ caption }}"><figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
</div>
""")


@dataclass(frozen=True)
class Section:
    """A part of a page."""

    title: str
    """Its heading, plain text."""
    html: str
    """Its content, taken as it is: escape what comes from outside."""


def report(
    run: Result | RunStore | None,
    *,
    title: str,
    sections: Sequence[Section] = (),
    out: str | Path,
) -> Path:
    """Write one HTML file that needs nothing else, neither network nor other files.

    Args:
        run: what was run, shown after the sections; None shows only the sections.
        title: the page's heading.
        sections: parts of the page, in order.
        out: the file.

    Returns:
        The path of the file.

    Raises:
        StoreError: the run's folder is damaged, or the file cannot be written.
    """
    parts = list(sections)
    if isinstance(run, RunStore):
        parts += _run_sections(run.plan(), run.records())
    elif run is not None:
        parts += _run_sections(run.plan, run.records)
    page = _PAGE.render(title=title, sections=parts)
    write_atomically(Path(out), page.encode())
    return Path(out)


def table_html(head: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> str:
    """A table; everything in it is escaped, the first column is the rows' name.

    Args:
        head: the columns' names.
        rows: one cell a column; numbers should come formatted.
        caption: a line above the table.

    Raises:
        InputError: a row has another number of cells than there are columns.
    """
    for row in rows:
        if len(row) != len(head):
            raise InputError(f"A row has {len(row)} cells for {len(head)} columns: {list(row)}.")
    cells = [[str(cell) for cell in row] for row in rows]
    words = [
        column
        for column in range(len(head))
        if 2 * sum(row[column][:1].isalpha() for row in cells) > len(cells)
    ]
    return _TABLE.render(head=head, rows=cells, words=words, caption=caption)


def picture_row(images: Sequence[tuple[str, NDArray[np.uint8]]]) -> str:
    """Pictures side by side, as large as the page allows.

    Args:
        images: (caption, array of height x width x 3 or height x width, uint8, sRGB).

    Raises:
        InputError: an array is of another type or shape.
    """
    pictures: list[tuple[str, str, int, int]] = []
    for caption, image in images:
        data = base64.b64encode(png_bytes(image)).decode()
        pictures.append((caption, data, image.shape[1], image.shape[0]))
    return _PICTURES.render(pictures=pictures)


def png_bytes(image: NDArray[np.uint8]) -> bytes:
    """A picture as a PNG file, lossless.

    Args:
        image: height x width x 3 (sRGB) or height x width (grey), uint8.

    Raises:
        InputError: the array is of another type or shape.
    """
    grey = image.ndim == 2
    if image.dtype != np.uint8 or not (grey or (image.ndim == 3 and image.shape[2] == 3)):
        raise InputError(
            f"A picture is {image.dtype} of shape {image.shape}; expected uint8 of height x width "
            "x 3. Scale it to 0..255 and convert it."
        )
    height, width = image.shape[:2]
    above = np.zeros_like(image, shape=(1, *image.shape[1:]))
    # Filter 2: each row as the difference to the row above, which photographs pack well.
    filtered = np.diff(image, axis=0, prepend=above).reshape(height, -1)
    rows = np.concatenate([np.full((height, 1), 2, np.uint8), filtered], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if grey else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _run_sections(plan: Plan, records: Sequence[StepRecord]) -> list[Section]:
    sections = [Section("The steps", _steps_table(plan, records))]
    if records and records[0].metrics:
        sections.append(Section("Metrics, step by step", _metric_curves(records)))
    sections.append(Section("The schedule", draw_plan(plan)))
    if records:
        sections.append(Section("Trained with", _versions(plan, records)))
    return sections


def _steps_table(plan: Plan, records: Sequence[StepRecord]) -> str:
    names = list(dict.fromkeys(name for record in records for name in record.metrics))
    head = ["step", "what changes", "parameters", "GFLOPs", "iterations", "seconds", *names]
    done = {record.index: record for record in records}
    rows: list[list[str]] = []
    for step in plan.steps:
        record = done.get(step.index)
        iterations = "" if step.iterations is None else f"{step.iterations:,}"
        row = [step.name, describe(step, plan), f"{step.parameters:,}", f"{step.flops / 1e9:.3f}"]
        row += [iterations, "not yet" if record is None else f"{record.seconds:,.0f}"]
        row += [_metric(record, name) for name in names]
        rows.append(row)
    return table_html(head, rows, caption=f"{plan.model}, {len(plan.steps)} trainings")


def _metric(record: StepRecord | None, name: str) -> str:
    if record is None or name not in record.metrics:
        return ""
    return f"{record.metrics[name]:#.4g}".rstrip(".")


def _metric_curves(records: Sequence[StepRecord]) -> str:
    labels = [record.name for record in records]
    names = dict.fromkeys(name for record in records for name in record.metrics)
    curves = [
        curve_svg(
            [Series(name, [record.metrics.get(name) for record in records])],
            labels=labels,
            title=name,
        )
        for name in names
    ]
    return "".join(curves)


def _versions(plan: Plan, records: Sequence[StepRecord]) -> str:
    rows: list[list[Any]] = [["model", plan.model], ["inputs", plan.inputs]]
    for name in dict.fromkeys(name for record in records for name in record.versions):
        values = dict.fromkeys(record.versions.get(name, "") for record in records)
        rows.append([name, ", ".join(values)])
    rows.append(["finished", records[-1].finished])
    return table_html(["", ""], rows)
