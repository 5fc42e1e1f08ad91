"""Atoms: the numbered positions of parameter axes, and what is learnt about them.

Every position on every axis of every parameter is an atom. Running the graph on labels unites
atoms that must be kept or dropped together, fixes atoms that must stay, and notes what else
matters later: who produces and who consumes, where channels are mixed, which equal parts an
axis is cut into, what must stay divisible.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["UNUSED", "WILD", "Atoms", "Divisor", "IntArray", "Mixer", "Product"]

UNUSED = "the forward pass does not use it"
"""Why an axis keeps its size that no operation reads."""

IntArray = npt.NDArray[np.int64]

WILD = -1
"""The label of a position that the model's code made out of nothing (zero padding): fits any."""


@dataclass(frozen=True)
class Divisor:
    """The channels on one axis must stay divisible by `number` (the groups of a norm)."""

    labels: IntArray
    number: int
    where: str


@dataclass(frozen=True)
class Mixer:
    """Channels over which an operation normalises or reduces, and the operation."""

    labels: IntArray
    where: str
    counts: bool
    """Whether it matters how many there are (a sum), or not (a mean: copies change nothing)."""


@dataclass(frozen=True)
class Product:
    """A contraction of two activations over channels, as of queries and keys."""

    node: object
    """The operation, as the caller names it."""
    sides: tuple[IntArray, IntArray]
    """Labels of the channels that are summed over, of the left and the right side."""
    scales: tuple[bool, bool]
    """Whether each side scales with what its labels name."""
    where: str


@dataclass
class Atoms:
    """A union-find over atoms with reasons, roles and constraints."""

    parent: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    reasons: list[str] = field(default_factory=lambda: [""])
    reason_of: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Index into `reasons` for a fixed atom, 0 for a free one."""
    mark: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Tells apart channels that the code slices apart."""
    roles: dict[str, list[IntArray]] = field(default_factory=dict[str, list[IntArray]])
    mixers: list[Mixer] = field(default_factory=list[Mixer])
    twins: list[tuple[IntArray, IntArray]] = field(default_factory=list[tuple[IntArray, IntArray]])
    """Labels of weights that were added up: what one of them does, the other does too."""
    partitions: list[IntArray] = field(default_factory=list[IntArray])
    """Axes that the code cuts into equal parts: one row of labels a part."""
    splits: list[Tensor] = field(default_factory=list[Tensor])
    """Label tensors that vary along several axes at once, made by views."""
    divisors: list[Divisor] = field(default_factory=list[Divisor])
    sums: list[tuple[IntArray, IntArray]] = field(default_factory=list[tuple[IntArray, IntArray]])
    """Labels that were added to each other: those that name the sum, and the others."""
    products: list[Product] = field(default_factory=list[Product])
    plain: list[IntArray] = field(default_factory=list[IntArray])
    """Labels of activations that something reads which does not scale with them."""
    reductions: list[object] = field(default_factory=list[object])
    """Operations that reduce over one of the axes into which channels are cut."""
    holding: frozenset[object] = frozenset()
    """Those among them whose reduced axis stays as long as it is: the others' channels go on."""
    where: str = ""
    """The operation that is being looked at, in words."""
    node: object = None
    """The same operation in the graph."""
    joins: list[tuple[str, IntArray, IntArray]] = field(
        default_factory=list[tuple[str, IntArray, IntArray]]
    )
    """Which labels were united when, and by which operation."""
    _marks: int = 0

    def new(self, count: int) -> int:
        """Add `count` atoms; the number of the first."""
        first = len(self.parent)
        self.parent = np.concatenate([self.parent, np.arange(first, first + count)])
        self.reason_of = np.concatenate([self.reason_of, np.zeros(count, np.int64)])
        self.mark = np.concatenate([self.mark, np.zeros(count, np.uint64)])
        return first

    def find(self, labels: IntArray) -> IntArray:
        """The representative of each label; WILD stays."""
        known = labels >= 0
        whole = bool(known.all())
        root = labels if whole else np.where(known, labels, 0)
        above = self.parent[root]
        while not (above == root).all():
            root, above = above, self.parent[above]
        if whole:
            self.parent[labels] = above
            return above
        self.parent[labels[known]] = above[known]
        return np.where(known, above, WILD)

    def union(self, left: IntArray, right: IntArray) -> None:
        """Unite label by label; positions where either side is WILD say nothing."""
        pairs = np.stack([left.ravel(), right.ravel()])
        pairs = pairs[:, (pairs >= 0).all(axis=0)]
        told = False
        while pairs.size:
            a, b = self.find(pairs[0]), self.find(pairs[1])
            differ = a != b
            if not differ.any():
                return
            if not told:
                self.joins.append((self.where, pairs[0][differ], pairs[1][differ]))
                told = True
            low, high = np.minimum(a, b)[differ], np.maximum(a, b)[differ]
            np.minimum.at(self.parent, high, low)
            pairs = np.stack([low, high])

    def fix(self, labels: IntArray, reason: str) -> None:
        """These atoms must stay, because of `reason`."""
        labels = np.unique(labels[labels >= 0])
        if not labels.size:
            return
        self.reasons.append(reason)
        free = labels[self.reason_of[labels] == 0]
        self.reason_of[free] = len(self.reasons) - 1

    def set_role(self, labels: IntArray, role: str) -> None:
        """Note that atoms take part as `role`: producer, consumer, dot, filling (padding)."""
        self.roles.setdefault(role, []).append(np.unique(labels[labels >= 0]))

    def set_marks(self, parts: list[IntArray]) -> None:
        """Tell the labels of each part from those of the others."""
        for part in parts:
            self._marks += 1
            labels = np.unique(part[part >= 0])
            with np.errstate(over="ignore"):
                self.mark[labels] += np.uint64(self._marks * 0x9E3779B97F4A7C15 % 2**64)

    def mix(self, labels: IntArray, where: str, *, counts: bool = True) -> None:
        """An operation mixes these channels by norm, softmax or reduction."""
        self.mixers.append(Mixer(np.unique(labels[labels >= 0]), where, counts))
