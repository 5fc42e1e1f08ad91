"""The picture of a plan: the U of the network in every step (the paper's Fig. 3).

SVG that needs nothing else: no script, no font, no style sheet. It is legible on a light and
on a dark background, and says what each block is when the pointer rests on it.
"""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from eslkit.layout import LABEL, Block, Drawing, Mark, compare, lay_out
from eslkit.plan import LayerInfo, Plan, Step
from eslkit.words import describe, picture_before

__all__ = ["draw_network", "draw_plan"]

_CAPTION = 176.0
_MARGIN = 18.0
_LINE = 15.0
_FONT = "font-family:system-ui,'Segoe UI',Helvetica,Arial,sans-serif"

_STYLE = """
.esl text{fill:#1c2733}
.esl .bg{fill:#ffffff}
.esl .soft,.esl text.soft{fill:#5d6b7a}
.esl .rule{stroke:#dfe4ea}
.esl .wire{fill:none;stroke:#8b98a7}
.esl .skip{fill:none;stroke:#8b98a7;stroke-dasharray:4 3}
.esl .tip{fill:#8b98a7}
.esl .same{fill:#cfd8e3;stroke:#7f8ea0}
.esl .changed{fill:#f5a83c;stroke:#a86400}
.esl .new{fill:#58b38a;stroke:#1f6f4c}
.esl .removed{fill:url(#esl-hatch);stroke:#c0392b;stroke-dasharray:3 2}
.esl .hatch{stroke:#c0392b}
.esl text.changed{fill:#8f5500;stroke:none}
.esl text.new{fill:#1f6f4c;stroke:none}
.esl text.removed{fill:#c0392b;stroke:none}
.esl text.same{fill:#1c2733;stroke:none}
@media (prefers-color-scheme:dark){
.esl text,.esl text.same{fill:#e6eaf0}
.esl .bg{fill:#12171d}
.esl .soft,.esl text.soft{fill:#9aa7b5}
.esl .rule{stroke:#2b343e}
.esl .same{fill:#3d4a59;stroke:#8393a5}
.esl .changed{fill:#d98a1b;stroke:#ffd08a}
.esl .new{fill:#2f8a62;stroke:#8fe0bb}
.esl .removed{stroke:#ff8373}
.esl .hatch{stroke:#ff8373}
.esl text.changed{fill:#ffbf66}
.esl text.new{fill:#7fdab0}
.esl text.removed{fill:#ff8373}
}
"""


def draw_plan(plan: Plan) -> str:
    """The U of the small model and of the network of every step, one below the other.

    Args:
        plan: a plan whose steps have pictures.

    Returns:
        An SVG document.
    """
    widest = _widest([picture_before(plan.steps[0], plan), *(s.picture for s in plan.steps)])
    rows: list[tuple[list[str], Drawing]] = []
    origin = picture_before(plan.steps[0], plan)
    start = ["the small model", *_figures(plan.base_parameters, plan.base_macs)]
    if plan.source is not None:
        start = ["the large model", *_figures(plan.source.parameters, plan.source.macs)]
    rows.append((start, lay_out(compare((), origin), widest=widest)))
    for step in plan.steps:
        marked = compare(picture_before(step, plan), step.picture)
        words = re.sub(r"(\d) (l)", "\\1\N{NO-BREAK SPACE}\\2", describe(step, plan))
        text = textwrap.wrap(words, 26)
        caption = [step.name, *text, *_figures(step.parameters, step.macs)]
        rows.append((caption, lay_out(marked, widest=widest)))
    return _page(rows, title=plan.model.rsplit(".", 1)[-1])


def draw_network(step: Step) -> str:
    """The U of the network of one step.

    Args:
        step: a step that has a picture.

    Returns:
        An SVG document.
    """
    drawing = lay_out(compare((), step.picture), widest=_widest([step.picture]))
    return _page([([step.name, *_figures(step.parameters, step.macs)], drawing)], title=step.name)


def _figures(parameters: int, macs: int) -> list[str]:
    count = f"{parameters / 1e6:.2f} M" if parameters >= 1e6 else f"{parameters / 1e3:.1f} k"
    cost = f"{2 * macs / 1e9:#.3g}".rstrip(".") if macs < 5e11 else f"{2 * macs / 1e9:.0f}"
    return [f"{count} parameters", f"{cost} GFLOPs"]


def _widest(pictures: Sequence[Sequence[LayerInfo]]) -> int:
    return max((layer.width for picture in pictures for layer in picture), default=1)


def _page(rows: Sequence[tuple[list[str], Drawing]], *, title: str) -> str:
    parts: list[str] = []
    y = _MARGIN
    width = 2 * _MARGIN + _CAPTION + max(drawing.width for _, drawing in rows)
    width = max(width, _MARGIN + _legend_width())
    for number, (caption, drawing) in enumerate(rows):
        if number:
            parts.append(f'<path class="rule" d="M{_MARGIN} {y:.1f}H{width - _MARGIN:.1f}"/>')
            y += 14
        parts += _caption(caption, y)
        named = len(drawing.stages) > 1
        parts += _network(drawing, _MARGIN + _CAPTION, y + (_LINE if named else 0), named=named)
        y += max(drawing.height + (_LINE if named else 0), _LINE * len(caption) + 12)
    parts += _legend(y + 12)
    height = y + 12 + 24
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    label = quoteattr(f"The steps of {title}: the layers of each network, level by level")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="esl" role="img" aria-label={label} '
        f'{size} style="max-width:100%;height:auto;{_FONT}">'
        f"<style>{_STYLE}</style>"
        '<defs><pattern id="esl-hatch" width="5" height="5" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><path class="hatch" d="M0 0V5" stroke-width="1.6"/>'
        "</pattern></defs>"
        '<rect class="bg" width="100%" height="100%"/>' + "\n".join(parts) + "</svg>\n"
    )


def _caption(lines: Sequence[str], y: float) -> list[str]:
    first, *rest = lines
    parts = [_text(first, _MARGIN, y + 14, size=15, weight=600)]
    for number, line in enumerate(rest, start=1):
        parts.append(_text(line, _MARGIN, y + 15 + number * _LINE, size=12, kind="soft"))
    return parts


def _text(
    text: str,
    x: float,
    y: float,
    *,
    size: float,
    kind: str = "",
    weight: int = 400,
    middle: bool = False,
) -> str:
    anchor = ' text-anchor="middle"' if middle else ""
    style = f'class="{kind}" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}{anchor}>{escape(text)}</text>'


def _network(drawing: Drawing, x: float, y: float, *, named: bool) -> list[str]:
    parts = [f'<g transform="translate({x:.1f} {y:.1f})">']
    if named:
        parts += [_text(name, at, -4, size=11, kind="soft") for name, at in drawing.stages]
    for blocks in drawing.blocks:
        parts += [_wire(a, b) for a, b in itertools.pairwise(blocks)]
    for first, second in zip(drawing.blocks, drawing.blocks[1:], strict=False):
        parts.append(_wire(first[-1], second[0]))
    for skip in drawing.skips:
        parts.append(_skip(skip.start, skip.end))
    parts += [_block(block) for blocks in drawing.blocks for block in blocks]
    for label in drawing.labels:
        parts.append(_text(label.text, label.x, label.y, size=LABEL, kind=label.mark, middle=True))
    return [*parts, "</g>"]


def _wire(start: Block, end: Block) -> str:
    """From one layer to the next; it bends in the gap before the next one."""
    y1, y2 = start.y + start.height * 0.62, end.y + end.height * 0.62
    if abs(y1 - y2) < 0.1:
        return f'<path class="wire" d="M{start.right:.1f} {y1:.1f}H{end.x:.1f}"/>'
    turn = start.right + 5 if end.y > start.y else end.x - 5
    path = f"M{start.right:.1f} {y1:.1f}H{turn:.1f}V{y2:.1f}H{end.x:.1f}"
    return f'<path class="wire" d="{path}"/>'


def _skip(start: Block, end: Block) -> str:
    y1, y2 = start.y + start.height * 0.3, end.y + end.height * 0.3
    tip = f"M{end.x - 1:.1f} {y2:.1f}l-6 -3.2v6.4z"
    path = f"M{start.right:.1f} {y1:.1f}H{end.x - 12:.1f}V{y2:.1f}H{end.x - 6:.1f}"
    if end.layer.level < start.layer.level:  # up first: beside it there may be other blocks
        path = f"M{(start.x + start.right) / 2:.1f} {start.y:.1f}V{y2:.1f}H{end.x - 6:.1f}"
    return f'<path class="skip" d="{path}"/><path class="tip" d="{tip}"/>'


def _block(block: Block) -> str:
    x, y, right, low = block.x, block.y, block.right, block.y + block.height
    inset = block.height * 0.22
    left_in = inset if block.layer.kind == "up" else 0.0
    right_in = inset if block.layer.kind == "down" else 0.0
    points = (
        f"{x:.1f},{y + left_in:.1f} {right:.1f},{y + right_in:.1f} "
        f"{right:.1f},{low - right_in:.1f} {x:.1f},{low - left_in:.1f}"
    )
    many = f", {block.count} of them" if block.count > 1 else ""
    tip = escape(
        f"{block.layer.name}: {block.layer.width} channels, level {block.layer.level}{many}"
    )
    words = "" if block.mark == "same" else f" ({block.mark})"
    return f'<polygon class="{block.mark}" points="{points}"><title>{tip}{words}</title></polygon>'


_LEGEND: tuple[tuple[Mark, str, str], ...] = (
    ("same", "conv", "as before"),
    ("changed", "conv", "other width"),
    ("new", "conv", "new"),
    ("removed", "conv", "removed"),
    ("same", "up", "up-sampling"),
)


_LEGEND_END = "skip; height: resolution, breadth and number: channels"


def _legend_width() -> float:
    return sum(34 + 6.9 * len(words) for _, _, words in _LEGEND) + 28 + 6.9 * len(_LEGEND_END)


def _legend(y: float) -> list[str]:
    parts: list[str] = []
    x = _MARGIN
    for mark, kind, words in _LEGEND:
        layer = LayerInfo.model_validate({"name": words, "kind": kind, "level": 0, "width": 1})
        parts.append(_block(Block(layer, mark, x, y - 2, 11, 14)))
        parts.append(_text(words, x + 17, y + 9, size=12, kind="soft"))
        x += 34 + 6.9 * len(words)
    parts.append(f'<path class="skip" d="M{x:.1f} {y + 5:.1f}h22"/>')
    return [*parts, _text(_LEGEND_END, x + 28, y + 9, size=12, kind="soft")]
