"""A model -> its channel graph, and everything that surgery works with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from eslkit.errors import InputError, TraceError
from eslkit.graph.assembly import assemble
from eslkit.graph.atoms import IntArray
from eslkit.graph.channels import ChannelGraph, matches
from eslkit.graph.export import Exported, export
from eslkit.graph.grouping import group_atoms
from eslkit.graph.labels import Axis, Labels
from eslkit.graph.levels import Resolution, resolution_of
from eslkit.graph.reductions import labelled
from eslkit.graph.scaling import Divided, divide

__all__ = ["Traced", "check_model", "example_arguments", "trace_fully"]

_SIZES = (64, 32, 128, 96, 224, 256)


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
    model: nn.Module,
    *,
    example_inputs: Any = None,
    protect: Sequence[str] = (),
    exported: Exported | None = None,
) -> Traced:
    """The channel graph as the labels give it, with the exported graph and all labels.

    Args:
        model: any module; it is not touched.
        example_inputs: as for `eslkit.trace`.
        protect: as for `eslkit.trace`.
        exported: the model's operations on these inputs, where they are written down already.

    Raises:
        TraceError: the model did not run on the inputs, or no inputs could be inferred.
        InputError: a pattern of `protect` matches nothing.
    """
    check_model(model)
    if exported is None:
        exported, inputs, keywords = _export_with(model, example_inputs)
    else:
        inputs, keywords = example_arguments(example_inputs)
    labels = labelled(exported)
    groups = _protect(labels, protect)
    resolution = resolution_of(exported, labels)
    name = type(model).__name__
    divided = divide(labels.atoms)
    graph = assemble(name, exported, labels, group_atoms(labels), resolution, divided)
    if groups:
        _protect_groups(labels, graph, groups)
        graph = assemble(name, exported, labels, group_atoms(labels), resolution, divided)
    return Traced(graph, exported, labels, resolution, divided, inputs, keywords)


def check_model(model: object) -> None:
    """Raise unless it is a module whose code is Python's.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(model, nn.Module):
        shown = repr(model)
        raise InputError(
            f"The model is a {type(model).__name__}, expected a torch.nn.Module: "
            f"{shown if len(shown) < 60 else shown[:57] + '...'}; build the model first"
        )
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            named = f"`{path}` of the model" if path else "The model"
            raise InputError(
                f"{named} was compiled by torch.jit, and its code can no longer be followed. "
                "Pass a model that is made of its Python classes; compile what comes out."
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
    for module in nn.Module.modules(model):
        parameter = next(nn.Module.parameters(module, recurse=False), None)
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
        members = first[span.parameter, span.axis] + span.positions(group.width)[:, 0]
        labels.atoms.fix(members, f"protect={name!r}")


def _protect_axis(labels: Labels, axis: Axis, pattern: str) -> None:
    consumers = labels.atoms.roles.get("consumer", [])
    own = axis.atoms
    if not any(np.isin(own, part).any() for part in consumers):
        labels.atoms.fix(own, f"protect={pattern!r}")


def nodes_of(traced: Traced, path: str) -> list[fx.Node]:
    """The operations that a module's calls made, its submodules' included."""
    prefix = f"{path}." if path else ""
    return [
        node
        for node, owner in traced.exported.owners.items()
        if owner == path or owner.startswith(prefix)
    ]
