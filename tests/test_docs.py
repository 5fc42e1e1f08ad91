"""The Python of README.md and docs/ runs, as a reader would run it: page by page, from the top.

Every block stands below a comment that the reader does not see: `<!-- runnable -->`, or
`<!-- not run: why -->`. The blocks of a page share their names, as in one session.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^([ \t]*)```python[^\n]*\n(.*?)\n\1```", re.DOTALL | re.MULTILINE)
NOT_RUN = re.compile(r"<!-- not run: \S.* -->")


@dataclass(frozen=True)
class Block:
    """A block of Python on a page: the line of its first statement, its marker and its text."""

    line: int
    marker: str
    code: str


def blocks_of(text: str) -> list[Block]:
    """All blocks of Python on a page, in order."""
    blocks = []
    for match in BLOCK.finditer(text):
        above = text[: match.start()].rstrip().rpartition("\n")[2].strip()
        blocks.append(
            Block(
                line=text.count("\n", 0, match.start(2)) + 1,
                marker=above if above.startswith("<!--") else "",
                code=re.sub(f"(?m)^{match[1]}", "", match[2]),
            )
        )
    return blocks


def id_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_every_block_says_whether_it_runs(page: Path) -> None:
    unmarked = [
        block.line - 1
        for block in blocks_of(page.read_text("utf-8"))
        if block.marker != "<!-- runnable -->" and not NOT_RUN.fullmatch(block.marker)
    ]
    assert not unmarked, (
        f"{id_of(page)}, lines {unmarked}: put <!-- runnable --> above the block, "
        "or <!-- not run: why -->"
    )


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "<!-- runnable -->" in page.read_text("utf-8")],
    ids=id_of,
)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {"__name__": "__main__"}
    ran = 0
    for block in blocks_of(page.read_text("utf-8")):
        if block.marker != "<!-- runnable -->":
            continue
        # Empty lines in front, so that a traceback names the line of the page.
        source = "\n" * (block.line - 1) + block.code
        exec(compile(source, str(page), "exec"), session)
        ran += 1
    assert ran, "the page promises a block that runs, and has none"


def test_blocks_are_found_as_written() -> None:
    page = (
        "Text\n\n<!-- runnable -->\n```python\nx = 1\n```\n\n"
        "- item\n\n  <!-- not run: needs a camera -->\n"
        "  ```python\n  y = 2\n  if y:\n      y = 3\n  ```\n\n"
        "```text\nnot python\n```\n\n```python\nz = 4\n```\n"
    )
    assert blocks_of(page) == [
        Block(5, "<!-- runnable -->", "x = 1"),
        Block(12, "<!-- not run: needs a camera -->", "y = 2\nif y:\n    y = 3"),
        Block(22, "", "z = 4"),
    ]
