from __future__ import annotations

import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from eslkit.errors import InputError, StoreError
from eslkit.manifest import StepRecord
from eslkit.report import Section, Series, curve_svg, picture_row, png_bytes, report, table_html
from eslkit.schedule import Result
from tests.eslkit.paper_plan import paper_plan


@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))
    | arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)))
)
def test_a_png_holds_the_very_pixels(image: NDArray[np.uint8]) -> None:
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(image)))), image)


@pytest.mark.parametrize("image", [np.zeros((2, 2, 3)), np.zeros((2, 2, 4), np.uint8)])
def test_what_is_no_picture_is_refused(image: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match=r"A picture is .* of shape .*expected uint8"):
        picture_row([("caption", image)])


finite = st.floats(-1e6, 1e6)


@given(st.lists(st.lists(finite | st.none(), min_size=5, max_size=5), max_size=4))
def test_curves_stay_inside_their_frame(values: list[list[float | None]]) -> None:
    series = [Series(f"<{index}>", each) for index, each in enumerate(values)]
    svg = curve_svg(series, labels=list("abcde"), title="a & b")
    root = ElementTree.fromstring(svg)
    height = float(root.get("viewBox", "").split()[-1])
    for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
        assert 0 <= float(circle.get("cy", "-1")) <= height
    num_points = sum(value is not None for each in values for value in each)
    assert svg.count("<circle") == num_points


def test_curves_say_what_does_not_fit() -> None:
    with pytest.raises(InputError, match="'a' has 2 values for 3 labels"):
        curve_svg([Series("a", [1, 2])], labels=["x", "y", "z"])
    with pytest.raises(InputError, match="'a' holds nan"):
        curve_svg([Series("a", [float("nan")])], labels=["x"])


def test_references_are_level_lines_without_numbers() -> None:
    svg = curve_svg([Series("base", [2.0, 2.0], reference=True)], labels=["x", "y"])
    assert "<circle" not in svg
    assert "base" in svg


def test_tables_escape_and_count_their_cells() -> None:
    html = table_html(["a", "b"], [["<script>", 1]], caption="c & d")
    assert "&lt;script&gt;" in html
    assert "c &amp; d" in html
    with pytest.raises(InputError, match="A row has 1 cells for 2 columns"):
        table_html(["a", "b"], [["x"]])


def page(tmp_path: Path) -> str:
    plan = paper_plan()
    records = tuple(
        StepRecord(name=s.name, index=s.index, metrics={"psnr": 28.0 + s.index}, seconds=60.0)
        for s in plan.steps[:5]
    )
    image = np.full((4, 6, 3), 128, np.uint8)
    sections = [Section("Look <here>", picture_row([("a <caption>", image)]))]
    out = tmp_path / "sub" / "report.html"
    result = Result(nn.Identity(), records, plan)
    assert report(result, title="T & T", sections=sections, out=out) == out
    return out.read_text()


def test_a_page_needs_nothing_else(tmp_path: Path) -> None:
    html = page(tmp_path)
    assert "<h1>T &amp; T</h1>" in html
    assert "Look &lt;here&gt;" in html
    assert "a &lt;caption&gt;" in html
    outside = re.findall(r"""(?:src|href)=(?!["'](?:data:|#))|url\((?!#)|@import""", html)
    assert outside == []
    assert html.count("not yet") == 3
    assert "15,520,968" in html
    assert "prefers-color-scheme:dark" in html


def test_a_page_of_sections_alone(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    report(None, title="Only this", sections=[Section("One", "<p>x</p>")], out=out)
    html = out.read_text()
    assert "<p>x</p>" in html
    assert "The steps" not in html


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="a file is in the way"):
        report(None, title="x", out=tmp_path / "file" / "page.html")
