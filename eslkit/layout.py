"""Where the layers of a network stand in its picture: the U, level by level.

Time runs from left to right, resolution from top to bottom. A layer is a block: the finer its
resolution the taller, the more channels the broader. Lengths are in SVG user units (pixels).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal

from eslkit.plan import LayerInfo

__all__ = ["LABEL", "Block", "Drawing", "Mark", "Skip", "compare", "lay_out"]

Mark = Literal["same", "changed", "new", "removed"]

LABEL = 10.5
"""Size of the width labels."""

_TALLEST, _SHRINK, _LOWEST = 36.0, 0.8, 11.0
_BROADEST = 27.0
_BESIDE, _BETWEEN, _BEND, _STAGES = 1.5, 5.0, 10.0, 22.0
_LABEL_ROOM = LABEL + 6
_LETTER = 0.64  # breadth of a digit, in the broadest of the usual fonts
_MANY = 4  # equal layers in a row beyond this are drawn as one block with a count


@dataclass(frozen=True)
class Block:
    """One drawn layer, or a row of equal ones drawn as one."""

    layer: LayerInfo
    mark: Mark
    x: float
    y: float
    breadth: float
    height: float
    others: tuple[LayerInfo, ...] = ()
    """The layers that are drawn with it, where a row of equal ones is one block."""

    @property
    def count(self) -> int:
        """How many layers it stands for."""
        return 1 + len(self.others)

    @property
    def right(self) -> float:
        """The x of its right edge."""
        return self.x + self.breadth


@dataclass(frozen=True)
class Label:
    """The width of one block, or of several equal ones side by side."""

    text: str
    x: float
    y: float
    mark: Mark


@dataclass(frozen=True)
class Skip:
    """A skip connection from one block to a later one."""

    start: Block
    end: Block


@dataclass(frozen=True)
class Drawing:
    """A network laid out."""

    blocks: tuple[tuple[Block, ...], ...]
    """The blocks of each stage, in order of execution."""
    labels: tuple[Label, ...]
    skips: tuple[Skip, ...]
    stages: tuple[tuple[str, float], ...]
    """Names of the stages with the x that each begins at."""
    width: float
    height: float


Marked = tuple[LayerInfo, Mark]


def compare(before: Sequence[LayerInfo], after: Sequence[LayerInfo]) -> tuple[Marked, ...]:
    """The layers of `after`, and between them those that are gone, each with what happened.

    Args:
        before: the picture of the network before the step; empty when it is not known.
        after: the picture of the network after the step.

    Returns:
        (layer, mark) in order of execution.
    """
    if not before:
        return tuple((layer, "same") for layer in after)
    sides = _common_names(before, after)
    if 2 * len(set(sides[0]) & set(sides[1])) < len(after):  # all renamed: by their place
        sides = ([_place(layer) for layer in before], [_place(layer) for layer in after])
    marked: list[Marked] = []
    matcher = difflib.SequenceMatcher(None, *sides, autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            for old, new in zip(before[i1:i2], after[j1:j2], strict=True):
                marked.append((new, "same" if old.width == new.width else "changed"))
        else:
            marked.extend((layer, "removed") for layer in before[i1:i2])
            marked.extend((layer, "new") for layer in after[j1:j2])
    return tuple(marked)


def _common_names(
    before: Sequence[LayerInfo], after: Sequence[LayerInfo]
) -> tuple[list[str], list[str]]:
    """The names on both sides; a layer that was wrapped or unwrapped is called as it was."""
    old, new = _own_names(before), _own_names(after)
    for names, others in ((old, new), (new, old)):
        for index, name in enumerate(names):
            inner = [other for other in others if other.startswith(f"{name}.")]
            if inner and name not in others:
                wrapped = min(inner, key=lambda other: other.count("."))
                names[index] = wrapped if wrapped not in names else name
    return old, new


def _own_names(layers: Sequence[LayerInfo]) -> list[str]:
    """Names as the user's model has them: without the `body` of a wrapper that holds a level."""
    names = [layer.name for layer in layers]
    wrappers = {name[: at.start()] for name in names for at in re.finditer(r"\.level\.", name)}
    for wrapper in sorted(wrappers, key=len, reverse=True):
        body = f"{wrapper}.body"
        names = [
            wrapper + name.removeprefix(body) if f"{name}.".startswith(f"{body}.") else name
            for name in names
        ]
    return names


def _place(layer: LayerInfo) -> str:
    return f"{layer.stage}/{layer.kind}/{layer.level}"


def lay_out(marked: Sequence[Marked], *, widest: int) -> Drawing:
    """Place every layer.

    Args:
        marked: the layers with their marks, in order of execution.
        widest: the largest width in the whole picture, which sets the scale of breadths.

    Returns:
        The blocks, labels and skips, from x = 0 and y = 0.
    """
    stages: list[tuple[Block, ...]] = []
    labels: list[Label] = []
    names: list[tuple[str, float]] = []
    x = 0.0
    for name, group in groupby(marked, key=lambda pair: pair[0].stage):
        if stages:
            x += _STAGES
        names.append((name, x))
        blocks, more, x = _stage(list(group), x, widest=widest)
        stages.append(tuple(blocks))
        labels += more
    deepest = max((layer.level for layer, _ in marked), default=0)
    height = _top(deepest) + _height(deepest) + _LABEL_ROOM
    skips = [skip for blocks in stages for skip in _skips(blocks)]
    return Drawing(tuple(stages), tuple(labels), tuple(skips), tuple(names), x, height)


def _stage(
    marked: list[Marked], x: float, *, widest: int
) -> tuple[list[Block], list[Label], float]:
    blocks: list[Block] = []
    labels: list[Label] = []
    for (level, kind, width, mark), group in groupby(marked, key=_alike):
        layers = [layer for layer, _ in group]
        if blocks:
            bend = blocks[-1].layer.level != level
            x = max(x, blocks[-1].right + (_BEND if bend else _BETWEEN))
        many = len(layers) > _MANY
        text = f"{width} ×{len(layers)}" if many else str(width)
        breadth = _breadth(width, widest) * (2 if many else 1)
        shown = layers[:1] if many else layers
        row = len(shown) * (breadth + _BESIDE) - _BESIDE
        slot = max(row, len(text) * LABEL * _LETTER + 4)
        at = x + (slot - row) / 2
        for layer in shown:
            others = tuple(layers[1:]) if many else ()
            block = Block(layer, mark, at, _top(level), breadth, _height(level), others)
            blocks.append(block)
            at += breadth + _BESIDE
        middle = x + slot / 2
        labels.append(Label(text, middle, _top(level) + _height(level) + LABEL, mark))
        x += slot
        del kind
    return blocks, labels, x


def _alike(pair: Marked) -> tuple[int, str, int, Mark]:
    layer, mark = pair
    return layer.level, layer.kind, layer.width, mark


def _skips(blocks: Sequence[Block]) -> list[Skip]:
    drawn = [(layer, block) for block in blocks for layer in (block.layer, *block.others)]
    if all(layer.skip is None for layer, _ in drawn):
        return _guessed_skips(blocks)
    named = {layer.name: block for layer, block in drawn}
    found = [
        Skip(named[layer.skip], block)
        for layer, block in drawn
        if layer.skip and layer.skip in named
    ]
    return [skip for skip in dict.fromkeys(found) if skip.start != skip.end]


def _guessed_skips(blocks: Sequence[Block]) -> list[Skip]:
    """Where pictures do not tell, a U has a skip from its way down to its way up."""
    waiting: dict[int, Block] = {}
    skips: list[Skip] = []
    for block, after in pairwise(blocks):
        if after.layer.level > block.layer.level:
            waiting[block.layer.level] = block
        rising = block.layer.kind == "up" or after.layer.level < block.layer.level
        if rising and after.layer.kind != "up" and after.layer.level in waiting:
            skips.append(Skip(waiting.pop(after.layer.level), after))
    return skips


def _breadth(width: int, widest: int) -> float:
    """Square root of the width, so that 16 can be told from 32 beside 512."""
    return 4 + (_BROADEST - 4) * (width / max(widest, 64)) ** 0.5


def _height(level: int) -> float:
    return max(_LOWEST, _TALLEST * _SHRINK**level)


def _top(level: int) -> float:
    return sum(_height(each) + _LABEL_ROOM for each in range(level))
