"""A model -> its channel graph, and everything that surgery works with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from eslkit.errors import InputError, TraceError
from eslkit.graph.atoms import IntArray
from eslkit.graph.channels import (
    ChannelGraph,
    ChannelGroup,
    ChannelSpan,
    Constraint,
    Join,
    matches,
)
from eslkit.graph.export import Exported, export
from eslkit.graph.grouping import Grouping, RawGroup, group_atoms
from eslkit.graph.labels import Axis, Labels, run_on_labels
from eslkit.graph.levels import Resolution, group_levels, resolution_of
from eslkit.graph.scaling import Divided, divide
from eslkit.graph.skips import find_skips

__all__ = ["Traced", "check_model", "example_arguments", "trace_fully"]

_SIZES = (64, 32, 128, 96, 224, 256)
_NOT_CHANNELS = ("positions of a kernel", "an axis of size 1")


@dataclass(frozen=True)
class Traced:
    """Everything that tracing a model has found; what surgery works with."""

    graph: ChannelGraph
    exported: Exported
    labels: Labels
    resolution: Resolution
    divided: Divided
    inputs: tuple[Any, ...]
    keywords: Mapping[str, Any]
    roots: dict[int, tuple[IntArray, frozenset[int]]] = field(
        default_factory=dict[int, tuple[IntArray, frozenset[int]]]
    )
    """What `Sizes` has found of the parts of values, by identity."""


def trace_fully(
    model: nn.Module, *, example_inputs: Any = None, protect: Sequence[str] = ()
) -> Traced:
    """The channel graph as the labels give it, with the exported graph and all labels.

    Args:
        model: any module; it is not touched.
        example_inputs: as for `eslkit.trace`.
        protect: as for `eslkit.trace`.

    Raises:
        TraceError: the model did not run on the inputs, or no inputs could be inferred.
        InputError: a pattern of `protect` matches nothing.
    """
    check_model(model)
    exported, inputs, keywords = _export_with(model, example_inputs)
    labels = run_on_labels(exported)
    groups = _protect(labels, protect)
    resolution = resolution_of(exported, labels)
    name = type(model).__name__
    divided = divide(labels.atoms)
    graph = _build(name, exported, labels, group_atoms(labels), resolution, divided)
    if groups:
        _protect_groups(labels, graph, groups)
        graph = _build(name, exported, labels, group_atoms(labels), resolution, divided)
    return Traced(graph, exported, labels, resolution, divided, inputs, keywords)


def check_model(model: object) -> None:
    """Raise unless it is a module.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(model, nn.Module):
        shown = repr(model)
        raise InputError(
            f"expected a torch.nn.Module, got a {type(model).__name__}: "
            f"{shown if len(shown) < 60 else shown[:57] + '...'}; build the model first"
        )


def example_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from what a user passes as example inputs.

    Raises:
        InputError: it is neither a tensor, nor a sequence, nor a mapping.
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise InputError(
        f"example_inputs is a {type(example_inputs).__name__}; pass a tensor, a tuple of "
        "positional arguments, or a mapping of keyword arguments"
    )


def _export_with(
    model: nn.Module, example_inputs: Any
) -> tuple[Exported, tuple[Any, ...], dict[str, Any]]:
    if example_inputs is not None:
        inputs, keywords = example_arguments(example_inputs)
        return export(model, inputs, keywords), inputs, keywords
    last: TraceError | None = None
    tried: list[tuple[int, ...]] = []
    for guess in _guesses(model):
        tried.append(tuple(guess.shape))
        try:
            return export(model, (guess,), {}), (guess,), {}
        except TraceError as error:
            last = error
    raise TraceError(
        f"could not infer example inputs for {type(model).__name__} (tried {tried}); pass "
        "example_inputs, for instance example_inputs=(torch.randn(1, 3, 64, 64),)"
    ) from last


def _guesses(model: nn.Module) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        parameter = next(module.parameters(recurse=False), None)
        device = parameter.device if parameter is not None else None
        dtype = parameter.dtype if parameter is not None else None
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            dims = len(module.kernel_size)
            sizes = (32, 64, 96, 128) if dims == 3 else _SIZES
            for size in sizes:
                shape = (1, module.in_channels, *(size,) * dims)
                yield torch.rand(shape, generator=generator).to(device, dtype)
            return
        if isinstance(module, nn.Linear):
            for shape in ((1, module.in_features), (1, 16, module.in_features)):
                yield torch.rand(shape, generator=generator).to(device, dtype)
            return


def _protect(labels: Labels, patterns: Sequence[str]) -> list[str]:
    """Protect what the patterns name; those that may be names of groups, which come later."""
    if isinstance(patterns, str):
        raise InputError(f"protect={patterns!r} is a string; pass a sequence: ({patterns!r},)")
    left: list[str] = []
    for pattern in patterns:
        if not isinstance(pattern, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"protect: {pattern!r} is no string; pass names or patterns of layers")
        hit = False
        for axis in labels.axes:
            layer = axis.name.rpartition(".")[0]
            parents = [layer[:i] for i, c in enumerate(layer) if c == "."]
            # a layer is protected with what it makes: its inputs belong to the layers before
            if any(matches(name, pattern) for name in (axis.name, layer, *parents)):
                hit = True
                if axis.size > 1:
                    _protect_axis(labels, axis, pattern)
        if not hit:
            left.append(pattern)
    return left


def _protect_groups(labels: Labels, graph: ChannelGraph, names: Sequence[str]) -> None:
    first = {(axis.name, axis.axis): axis.first for axis in labels.axes}
    for name in names:
        group = next((g for g in graph.groups if g.name == name), None)
        if group is None:
            raise InputError(
                f"protect: {name!r} matches no layer, no parameter and no channel group of the "
                "model; use names as in model.named_parameters() or in "
                "print(eslkit.trace(model)), with * as a wildcard"
            )
        span = group.spans[0]
        start = first[span.parameter, span.axis] + span.start
        members = start + np.arange(group.width) * span.inner
        labels.atoms.fix(members, f"protect={name!r}")


def _protect_axis(labels: Labels, axis: Axis, pattern: str) -> None:
    consumers = labels.atoms.roles.get("consumer", [])
    own = axis.atoms
    if not any(np.isin(own, part).any() for part in consumers):
        labels.atoms.fix(own, f"protect={pattern!r}")


def _build(
    model: str,
    exported: Exported,
    labels: Labels,
    grouping: Grouping,
    resolution: Resolution,
    divided: Divided,
) -> ChannelGraph:
    roles = _roles(labels)
    use = _first_use(exported)
    owner = {int(root): number for number, raw in enumerate(grouping.groups) for root in raw.roots}
    levels = group_levels(resolution, labels, owner)
    mixed, counting, joins = *_mixed(labels, owner, divided), _joins(labels, owner)
    positions: dict[tuple[str, int], str] = {}
    made: dict[int, ChannelGroup] = {}
    for number, raw in enumerate(grouping.groups):
        if raw.reason in _NOT_CHANNELS:
            positions.update({(s.axis.name, s.axis.axis): raw.reason for s in raw.spans})
            continue
        group = _group(raw, roles, levels.get(number, 0), use, divided)
        made[number] = replace(
            group,
            mixed=mixed.get(number, ()),
            counting=counting.get(number, ()),
            joins=joins.get(number, ()),
        )
    numbers = sorted(made, key=lambda n: _rank(made[n], use))
    names = _names([made[n] for n in numbers])
    named = dict(zip(numbers, names, strict=True))
    groups: list[ChannelGroup] = []
    for number in numbers:
        tie = next((t for t in grouping.ties if number in t), ())
        tied = tuple(named[other] for other in tie if other != number)
        groups.append(replace(made[number], name=named[number], tied=tied))
    by_root = {root: named[number] for root, number in owner.items() if number in named}
    return ChannelGraph(
        model,
        tuple(groups),
        resolution.num_levels,
        positions,
        tuple(_constraints(labels, owner, named, grouping)),
        find_skips(exported, labels, resolution, by_root),
    )


def _role_flags(labels: Labels) -> dict[str, npt.NDArray[np.bool_]]:
    """Which atoms are producers and consumers; weights that are added up share their roles."""
    size = len(labels.atoms.parent)
    flags = {role: np.zeros(size, bool) for role in ("producer", "consumer")}
    for role, flag in flags.items():
        for part in labels.atoms.roles.get(role, []):
            flag[part] = True
        for first, second in reversed(labels.atoms.twins):
            known = (first >= 0) & (second >= 0)
            flag[second[known][flag[first[known]]]] = True
    for part in labels.atoms.roles.get("maker", []):
        flags["producer"][part[~flags["consumer"][part]]] = True
    return flags


def _roles(labels: Labels) -> dict[tuple[str, int], str]:
    """(parameter, axis) -> producer or consumer."""
    found: dict[tuple[str, int], str] = {}
    for role, flag in _role_flags(labels).items():
        for axis in labels.axes:
            if flag[axis.first : axis.first + axis.size].any():
                found[axis.name, axis.axis] = role
    return found


def _first_use(exported: Exported) -> dict[str, int]:
    """Parameter -> index of the first operation that uses it."""
    order = {node: i for i, node in enumerate(exported.graph.nodes)}
    return {
        name: min((order[user] for user in node.users), default=len(order))
        for node, name in exported.parameters.items()
    }


def _rank(group: ChannelGroup, use: Mapping[str, int]) -> tuple[int, int]:
    makers = [s for s in group.spans if s.role == "producer"] or list(group.spans)
    first = min(makers, key=lambda s: (use.get(s.parameter, 0), s.start))
    return use.get(first.parameter, 0), first.start


def _group(
    raw: RawGroup,
    roles: Mapping[tuple[str, int], str],
    level: int,
    use: Mapping[str, int],
    divided: Divided,
) -> ChannelGroup:
    spans = tuple(
        ChannelSpan(
            s.axis.name,
            s.axis.axis,
            s.start,
            s.inner,
            roles.get((s.axis.name, s.axis.axis), "follows"),
            bool(divided.atoms[s.axis.first + s.start]),
        )
        for s in raw.spans
    )

    def layers(role: str) -> tuple[str, ...]:
        chosen = sorted((s for s in spans if s.role == role), key=lambda s: use[s.parameter])
        return tuple(dict.fromkeys(s.layer or s.parameter for s in chosen))

    return ChannelGroup(
        name="",
        width=len(raw.roots),
        level=level,
        producers=layers("producer"),
        consumers=layers("consumer"),
        protected=raw.reason or None,
        spans=spans,
    )


def _names(groups: Iterable[ChannelGroup]) -> list[str]:
    """The first producing layer, or the first parameter; numbered where several groups share it."""
    plain = [
        group.producers[0] if group.producers else group.spans[0].parameter for group in groups
    ]
    seen: dict[str, int] = {}
    names: list[str] = []
    for name in plain:
        count = seen.get(name, 0)
        seen[name] = count + 1
        names.append(f"{name}[{count}]" if plain.count(name) > 1 else name)
    return names


def _mixed(
    labels: Labels, owner: Mapping[int, int], divided: Divided
) -> tuple[dict[int, tuple[str, ...]], dict[int, tuple[str, ...]]]:
    """Group number -> what mixes its channels; and what among that counts them."""
    notes = [(mixer.labels, mixer.where, mixer.counts) for mixer in labels.atoms.mixers]
    for product in divided.unmended:
        members = np.concatenate(product.sides)
        where = f"a product of two activations, {product.where}"
        notes.append((members[members >= 0], where, True))
    flags = _role_flags(labels)
    for axis in labels.axes:
        own = slice(axis.first, axis.first + axis.size)
        both = axis.atoms[flags["producer"][own] & flags["consumer"][own]]
        if both.size:
            notes.append((both, f"{axis.name}, which both reads and makes these channels", True))
    mixed: dict[int, dict[str, None]] = {}
    counting: dict[int, dict[str, None]] = {}
    for members, where, counts in notes:
        for number in {owner.get(int(r)) for r in np.unique(labels.atoms.find(members))}:
            if number is not None:
                mixed.setdefault(number, {})[where] = None
                if counts:
                    counting.setdefault(number, {})[where] = None
    return (
        {number: tuple(where) for number, where in mixed.items()},
        {number: tuple(where) for number, where in counting.items()},
    )


def _joins(labels: Labels, owner: Mapping[int, int]) -> dict[int, tuple[Join, ...]]:
    """Group number -> the operations that coupled its axes, in the order of the forward pass."""
    atoms, axes = labels.atoms, labels.axes
    if not atoms.joins or not axes:
        return {}
    first = np.concatenate([left for _, left, _ in atoms.joins])
    second = np.concatenate([right for _, _, right in atoms.joins])
    sizes = [left.size for _, left, _ in atoms.joins]
    where = np.repeat(np.arange(len(sizes)), sizes)
    group = np.full(len(atoms.parent), -1)
    group[list(owner)] = list(owner.values())
    starts = np.array([axis.first for axis in axes])
    ends = np.array([axis.first + axis.size for axis in axes])

    def axis_of(members: IntArray) -> IntArray:
        found = np.searchsorted(starts, members, side="right") - 1
        return np.where(members < ends[found], found, len(axes))

    rows = np.stack([group[atoms.find(first)], where, axis_of(first), axis_of(second)])
    base = len(axes) + 1
    keys = ((rows[0] * len(sizes) + rows[1]) * base + rows[2]) * base + rows[3]
    _, chosen = np.unique(keys[rows[0] >= 0], return_index=True)
    names = [f"{axis.name}:{axis.axis}" for axis in axes] + ["a tensor of fixed size"]
    found: dict[int, list[Join]] = {}
    for number, operation, left, right in rows[:, rows[0] >= 0][:, chosen].T.tolist():
        join = Join(names[left], names[right], atoms.joins[operation][0])
        found.setdefault(number, []).append(join)
    return {number: tuple(joins) for number, joins in found.items()}


def _constraints(
    labels: Labels, owner: Mapping[int, int], names: Mapping[int, str], grouping: Grouping
) -> Iterator[Constraint]:
    for divisor in labels.atoms.divisors:
        roots: IntArray = labels.atoms.find(divisor.labels)
        counts: dict[str, int] = {}
        fixed = 0
        for number, count in zip(
            *np.unique([owner.get(int(r), -1) for r in roots], return_counts=True), strict=True
        ):
            group = grouping.groups[int(number)]
            if number < 0 or group.reason:
                fixed += int(count)
            else:
                counts[names[int(number)]] = int(count) // len(group.roots)
        if counts:
            yield Constraint(counts, fixed, divisor.number, divisor.where)


def nodes_of(traced: Traced, path: str) -> list[fx.Node]:
    """The operations that a module's calls made, its submodules' included."""
    prefix = f"{path}." if path else ""
    return [
        node
        for node, owner in traced.exported.owners.items()
        if owner == path or owner.startswith(prefix)
    ]
