"""Curves over the steps of a schedule, as SVG that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from eslkit.errors import InputError

__all__ = ["Series", "curve_svg"]

_WIDTH, _HEIGHT = 860.0, 330.0
_LEFT, _TOP, _BOTTOM = 58.0, 40.0, 46.0
_LABEL = 12.5
_APART = 15.0  # between the names at the right end

_STYLE = """
.esl-c text{fill:#1c2733;font-size:12.5px}
.esl-c .soft{fill:#5d6b7a}
.esl-c .grid{stroke:#e3e8ee}
.esl-c path{fill:none}
.esl-c text.halo{paint-order:stroke;stroke:#fff;stroke-width:3px;stroke-linejoin:round}
.esl-c .l0{stroke:#c8660a}.esl-c .f0,.esl-c text.f0{fill:#c8660a}
.esl-c .l1{stroke:#1f6f9f}.esl-c .f1,.esl-c text.f1{fill:#1f6f9f}
.esl-c .l2{stroke:#1f7a52}.esl-c .f2,.esl-c text.f2{fill:#1f7a52}
.esl-c .l3{stroke:#8a3fa0}.esl-c .f3,.esl-c text.f3{fill:#8a3fa0}
.esl-c .ref{stroke-dasharray:6 4}
@media (prefers-color-scheme:dark){
.esl-c text{fill:#e6eaf0}
.esl-c text.halo{stroke:#12171d}
.esl-c .soft{fill:#9aa7b5}
.esl-c .grid{stroke:#2b343e}
.esl-c .l0{stroke:#ffb259}.esl-c .f0,.esl-c text.f0{fill:#ffb259}
.esl-c .l1{stroke:#76c1ec}.esl-c .f1,.esl-c text.f1{fill:#76c1ec}
.esl-c .l2{stroke:#7fdab0}.esl-c .f2,.esl-c text.f2{fill:#7fdab0}
.esl-c .l3{stroke:#d59be6}.esl-c .f3,.esl-c text.f3{fill:#d59be6}
}
"""


@dataclass(frozen=True)
class Series:
    """One curve."""

    name: str
    """What it is, written at its end."""
    values: Sequence[float | None]
    """One value a label; None leaves a gap."""
    reference: bool = False
    """Drawn as a dashed line without points or numbers: something to compare with."""


@dataclass(frozen=True)
class _Frame:
    """Where values lie on the page."""

    low: float
    high: float
    right: float
    count: int

    def x(self, index: int) -> float:
        span = self.right - _LEFT - 40
        return _LEFT + 20 + (span * index / (self.count - 1) if self.count > 1 else span / 2)

    def y(self, value: float) -> float:
        span = _HEIGHT - _TOP - _BOTTOM
        return _TOP + span * (self.high - value) / (self.high - self.low)


def curve_svg(series: Sequence[Series], *, labels: Sequence[str], title: str = "") -> str:
    """Curves over labelled places, with the numbers written at the points.

    Args:
        series: the curves; each has one value a label.
        labels: names of the places on the horizontal axis, such as the steps.
        title: what is shown, with its unit.

    Returns:
        An SVG element, for a page or a file of its own.

    Raises:
        InputError: a series has another number of values than there are labels, or a
            value is not finite.
    """
    _check(series, labels)
    known = [value for each in series for value in each.values if value is not None]
    ticks = _ticks(min(known, default=0.0), max(known, default=1.0))
    names = max((len(each.name) for each in series), default=0)
    right = _WIDTH - 16 - names * _LABEL * 0.56
    frame = _Frame(ticks[0], ticks[-1], right, len(labels))
    parts = [_text(title, _LEFT - 40, 18, weight=600)]
    parts += _axes(frame, ticks, labels)
    under = sorted(enumerate(series), key=lambda pair: not pair[1].reference)
    for number, each in under:  # references first, so that they cross no number
        parts += _curve(each, number % 4, frame)
    parts += _end_names(series, frame)
    size = f'viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" width="{_WIDTH:.0f}"'
    font = "font-family:system-ui,'Segoe UI',Helvetica,Arial,sans-serif"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="esl-c" role="img" '
        f"aria-label={quoteattr(title or 'curves')} {size} "
        f'style="max-width:100%;height:auto;{font}"><style>{_STYLE}</style>'
        + "\n".join(parts)
        + "</svg>\n"
    )


def _check(series: Sequence[Series], labels: Sequence[str]) -> None:
    for each in series:
        if len(each.values) != len(labels):
            raise InputError(
                f"Series {each.name!r} has {len(each.values)} values for {len(labels)} labels; "
                "give one value a label, None where there is none."
            )
        wrong = [v for v in each.values if v is not None and not math.isfinite(v)]
        if wrong:
            raise InputError(f"Series {each.name!r} holds {wrong[0]}, which cannot be drawn.")


def _ticks(low: float, high: float) -> list[float]:
    """Round values that enclose the data, three to eight of them."""
    span = (high - low) or abs(high) * 0.1 or 1.0
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= rough), 10 * power)
    first, last = math.floor(low / step - 0.15), math.ceil(high / step + 0.15)
    return [step * index for index in range(first, max(last, first + 1) + 1)]


def _decimals(resolution: float) -> int:
    """Decimals that tell values apart which differ by so much."""
    return min(9, max(0, math.ceil(-math.log10(resolution) - 1e-9)))


def _axes(frame: _Frame, ticks: Sequence[float], labels: Sequence[str]) -> list[str]:
    parts: list[str] = []
    step = ticks[1] - ticks[0]
    decimals = next(d for d in range(12) if d == 11 or abs(round(step, d) - step) < step * 1e-6)
    for tick in ticks:
        y = frame.y(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{frame.right:.1f}"/>')
        parts.append(_text(f"{tick:.{decimals}f}", _LEFT - 8, y + 4, kind="soft", anchor="end"))
    every = math.ceil(len(labels) / 14)
    for index, label in enumerate(labels):
        if index % every == 0:
            x = frame.x(index)
            parts.append(_text(label, x, _HEIGHT - _BOTTOM + 22, kind="soft", anchor="middle"))
    return parts


def _curve(series: Series, colour: int, frame: _Frame) -> list[str]:
    if series.reference:
        known = [(i, v) for i, v in enumerate(series.values) if v is not None]
        corners = [(frame.x(i), frame.y(v)) for i, v in known]
        if len(corners) == 1 or len({v for _, v in known}) == 1:
            corners = [(_LEFT, corners[0][1]), (frame.right, corners[0][1])]
        return [f'<path class="l{colour} ref" stroke-width="1.6" d="{_path(corners)}"/>']
    lines: list[str] = []
    points: list[str] = []
    run: list[tuple[float, float]] = []
    decimals = _decimals((frame.high - frame.low) / 99)
    for index, value in [*enumerate(series.values), (0, None)]:
        if value is None:
            lines += (
                [f'<path class="l{colour}" stroke-width="2.2" d="{_path(run)}"/>'] if run else []
            )
            run = []
            continue
        x, y = frame.x(index), frame.y(value)
        run.append((x, y))
        points.append(f'<circle class="f{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.6"/>')
        at = y + 19 if _is_valley(series.values, index) else y - 9
        points.append(_text(f"{value:.{decimals}f}", x, at, kind="halo", anchor="middle"))
    return lines + points


def _is_valley(values: Sequence[float | None], index: int) -> bool:
    """Whether the curve comes from above and goes up again, or starts upwards."""
    here = values[index]
    beside = [values[i] for i in (index - 1, index + 1) if 0 <= i < len(values)]
    known = [value for value in beside if value is not None]
    return here is not None and bool(known) and all(value > here for value in known)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if points else ""


def _end_names(series: Sequence[Series], frame: _Frame) -> list[str]:
    """The names beside the last values, moved apart where they would touch."""
    ends: list[tuple[float, int, str]] = []
    for number, each in enumerate(series):
        last = next((value for value in reversed(each.values) if value is not None), None)
        if last is not None:
            ends.append((frame.y(last), number % 4, each.name))
    ends.sort()
    placed: list[float] = []
    for y, _, _ in ends:
        placed.append(max(y, placed[-1] + _APART) if placed else y)
    over = max(0.0, placed[-1] - (_HEIGHT - _BOTTOM)) if placed else 0.0
    return [
        _text(name, frame.right + 8, y - over + 4, kind=f"f{colour}")
        for y, (_, colour, name) in zip(placed, ends, strict=True)
    ]


def _text(
    text: str, x: float, y: float, *, kind: str = "", anchor: str = "start", weight: int = 400
) -> str:
    style = f'class="{kind}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
