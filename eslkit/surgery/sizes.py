"""New widths -> new sizes: of every parameter axis, and of every tensor in the forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eslkit.graph.atoms import IntArray
from eslkit.graph.channels import ChannelGroup, ChannelSpan
from eslkit.graph.trace import Traced
from eslkit.graph.values import Value, compact, flat, support

__all__ = ["Change", "Sizes"]


@dataclass(frozen=True)
class Change:
    """One group's change of width."""

    group: ChannelGroup
    new: int


class Sizes:
    """Sizes of parameters and tensors once some groups have other widths."""

    def __init__(self, traced: Traced, widths: Mapping[str, int]) -> None:
        self.traced = traced
        self.changes = tuple(
            Change(group, widths[group.name])
            for group in traced.graph.resizable
            if group.name in widths and widths[group.name] != group.width
        )
        self.spans: dict[tuple[str, int], list[tuple[ChannelSpan, Change]]] = {}
        """(parameter, axis) -> the spans that change, in order."""
        for change in self.changes:
            for span in change.group.spans:
                self.spans.setdefault((span.parameter, span.axis), []).append((span, change))
        for spans in self.spans.values():
            spans.sort(key=lambda item: item[0].start)
        self._first = {(axis.name, axis.axis): axis.first for axis in traced.labels.axes}
        self._ratio = self._ratios()
        self._tensors: dict[int, tuple[int | None, ...]] = {}

    def _ratios(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        atoms = self.traced.labels.atoms
        ratio = np.ones(len(atoms.parent))
        for change in self.changes:
            span = change.group.spans[0]
            members = self.members(span, change.group.width)
            ratio[atoms.find(members)] = change.new / change.group.width
        return ratio

    def atom(self, span: ChannelSpan) -> int:
        """The atom of a span's first position."""
        return self._first[span.parameter, span.axis] + span.start

    def members(self, span: ChannelSpan, width: int) -> IntArray:
        """One atom for each of a span's channels."""
        return self._first[span.parameter, span.axis] + span.positions(width)[:, 0]

    def parameter(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """New shape of a parameter or buffer."""
        sizes = list(shape)
        for axis in range(len(sizes)):
            for span, change in self.spans.get((name, axis), ()):
                sizes[axis] += (change.new - change.group.width) * span.inner
        return tuple(sizes)

    def uneven(self) -> dict[str, str]:
        """Groups that are mixed with channels of which there are not as many times more.

        Returns:
            Group name -> the operation: a mean over copies of some and not of others is another.
        """
        atoms, found = self.traced.labels.atoms, dict[str, str]()
        root = {c.group.name: atoms.find(self.members(c.group.spans[0], 1)) for c in self.changes}
        for mixer in atoms.mixers:
            members = atoms.find(mixer.labels)
            if len(np.unique(self._ratio[members])) > 1:
                for name, first in root.items():
                    if np.isin(first, members).any():
                        found.setdefault(name, f"{mixer.where}, with other channels")
        return found

    def values(self, name: str, tensor: Tensor) -> Tensor:
        """A parameter or buffer at its new shape, for code that looks at values.

        Channels are repeated, or some left out, and divided where they are summed: numbers that
        the code reads stay as they are, as near as can be.
        """
        for axis in range(tensor.dim()):
            spans = self.spans.get((name, axis), ())
            pieces: list[Tensor] = []
            position = 0
            for span, change in spans:
                if span.start < position:  # another lane of the block before: all change alike
                    continue
                pieces.append(tensor.narrow(axis, position, span.start - position))
                old, position = change.group.width, span.start + change.group.width * span.step
                own = tensor.narrow(axis, span.start, position - span.start)
                index = torch.arange(change.new, device=tensor.device) * old // change.new
                own = own.unflatten(axis, (old, span.step)).index_select(axis, index)
                summed = span.role == "consumer" or span.divided
                if summed and (tensor.is_floating_point() or tensor.is_complex()):
                    own = own * (old / change.new)
                pieces.append(own.flatten(axis, axis + 1))
            if spans:
                pieces.append(tensor.narrow(axis, position, tensor.shape[axis] - position))
                tensor = torch.cat(pieces, axis)
        return tensor

    def tensor(self, value: Value) -> tuple[int | None, ...]:
        """New shape of a tensor of the forward pass; None for an axis that cannot be told."""
        found = self._tensors.get(id(value))
        if found is None:
            found = self._tensors[id(value)] = self._tensor(value)
        return found

    def _tensor(self, value: Value) -> tuple[int | None, ...]:
        # an axis that repeats one number is as long as the code makes it
        sizes = [None if axis in value.loose else size for axis, size in enumerate(value.shape)]
        along: dict[int, list[tuple[IntArray, npt.NDArray[np.float64]]]] = {}
        for part in value.parts:
            labels, axes = self._roots(part)
            ratio = np.where(labels >= 0, self._ratio[labels], 1.0)
            if (ratio == 1.0).all():
                continue
            if len(axes) != 1 or bool((labels < 0).any()):
                sizes = [None if axis in axes else size for axis, size in enumerate(sizes)]
                continue
            (axis,) = axes
            known = along.setdefault(axis, [])
            if not any(np.array_equal(labels, other) for other, _ in known):
                known.append((labels, ratio))
        for axis, several in along.items():
            if sizes[axis] is not None:  # rows and columns laid out along one axis multiply
                ratio = np.prod([each for _, each in several], axis=0)
                sizes[axis] = round(float(ratio.sum()))
        return tuple(sizes)

    def _roots(self, part: Tensor) -> tuple[IntArray, frozenset[int]]:
        """A part's labels by what is united in the end, and the axes along which they vary."""
        known = self.traced.roots.get(id(part))
        if known is None:
            small = compact(self.traced.labels.atoms, part)
            known = self.traced.labels.atoms.find(flat(small)), support(small)
            self.traced.roots[id(part)] = known
        return known
