"""New widths -> a new model of the same class, proved by running it on fake tensors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eslkit.errors import InputError, ResizeError
from eslkit.graph.channels import ChannelGraph
from eslkit.graph.skeleton import skeleton
from eslkit.graph.trace import Traced, trace_fully
from eslkit.graph.values import Value, flat
from eslkit.surgery.inherit import axis_maps, carry, copy_into, named_tensors, refresh
from eslkit.surgery.integers import apply_edits
from eslkit.surgery.policies import Policy, policy_of
from eslkit.surgery.policies import random as random_policy
from eslkit.surgery.proof import Failure, prove
from eslkit.surgery.sizes import Sizes, check_widths, scaled_widths

__all__ = ["ResizeWarning", "inherit", "resize", "resize_traced", "scale"]

_ROUNDS = 12


class ResizeWarning(UserWarning):
    """Some channel groups kept their width because the model's own code refused another."""


def resize(
    model: nn.Module,
    widths: Mapping[str, int],
    *,
    init: str | Policy,
    example_inputs: Any = None,
    protect: Sequence[str] = (),
) -> nn.Module:
    """A new model of the same class in which the named groups have other widths.

    Args:
        model: any module; it is not touched.
        widths: group name (see `trace`) -> number of channels. Groups left out keep theirs.
        init: how the weights come from `model`: "first", "last", "combined", "random",
            "preserve", or a policy.
        example_inputs: as for `trace`.
        protect: as for `trace`.

    Returns:
        The resized model. Its integers (`out_channels`, `num_features` ...) are brought along.

    Raises:
        InputError: no such group, or a width that is not a positive integer.
        ResizeError: a protected group, widths that cannot go together, or a model whose own code
            does not run at these widths; the message gives the reason.
    """
    traced = trace_fully(model, example_inputs=example_inputs, protect=protect)
    return resize_traced(model, traced, widths, init=init)


def resize_traced(
    model: nn.Module, traced: Traced, widths: Mapping[str, int], *, init: str | Policy
) -> nn.Module:
    """As `resize`, for a model that has been traced already."""
    policy = policy_of(init)
    check_widths(traced.graph, widths)
    sizes = Sizes(traced, widths)
    edits, failure = prove(model, sizes)
    if failure is not None:
        raise ResizeError(_refusal(type(model).__name__, widths, failure))
    return _build(model, sizes, edits, policy)


def _refusal(model: str, widths: Mapping[str, int], failure: Failure) -> str:
    some = dict(list(widths.items())[:4])
    return (
        f"{model} does not run with widths {some}{' ...' if len(widths) > 4 else ''}: "
        f"{failure.path or 'its forward'} fails with {failure.text!r}. A size is written into its "
        "code; protect the group, or resize the groups that must go together in one call."
    )


def scale(
    model: nn.Module, factor: float, *, init: str | Policy, example_inputs: Any, protect: Any
) -> nn.Module:
    """Every resizable group's width times `factor`; groups whose resize fails keep theirs."""
    traced = trace_fully(model, example_inputs=example_inputs, protect=protect)
    widths = scaled_widths(traced.graph, factor)
    policy = policy_of(init)
    kept: dict[str, str] = {}
    refusal = ""
    for _ in range(_ROUNDS):
        _drop_impossible(traced.graph, widths, kept)
        sizes = Sizes(traced, widths)
        edits, failure = prove(model, sizes)
        if failure is None:
            break
        refusal = _refusal(type(model).__name__, widths, failure)
        blamed = _blamed(traced, sizes, failure)
        if not blamed:
            raise ResizeError(refusal)
        for name in blamed:
            kept[name] = f"{failure.path or 'the model'}: {failure.text}"
            widths.pop(name, None)
    else:
        raise ResizeError(refusal)
    if kept:
        lines = "; ".join(f"{name} ({reason})" for name, reason in list(kept.items())[:5])
        warnings.warn(
            f"{len(kept)} of {len(traced.graph.resizable)} channel groups keep their width: "
            f"{lines}",
            ResizeWarning,
            stacklevel=3,
        )
    return _build(model, sizes, edits, policy)


def _drop_impossible(graph: ChannelGraph, widths: dict[str, int], kept: dict[str, str]) -> None:
    """Leave out groups whose ties or norms do not allow the widths."""
    while widths:
        try:
            check_widths(graph, widths)
            return
        except ResizeError as error:
            bad = [name for name in widths if name in str(error)]
            for name in bad:
                kept[name] = str(error)
                widths.pop(name)
            if not bad:
                raise


def _blamed(traced: Traced, sizes: Sizes, failure: Failure) -> set[str]:
    """Changed groups whose channels meet in the module that failed, and what is tied to them."""
    atoms = traced.labels.atoms
    first = {(axis.name, axis.axis): axis.first for axis in traced.labels.axes}
    owner: dict[int, str] = {}
    for change in sizes.changes:
        span = change.group.spans[0]
        start = first[span.parameter, span.axis] + span.start
        for i in range(change.group.width):
            owner[int(atoms.parent[start + i * span.inner])] = change.group.name
    found: set[str] = set()
    for path in reversed(failure.stack):
        for node, own in traced.exported.owners.items():
            if own != path:
                continue
            for source in (node, *node.all_input_nodes):
                value = traced.labels.values.get(source)
                if isinstance(value, Value):
                    for part in value.parts:
                        roots = set(atoms.find(flat(part)).tolist())
                        found |= {owner[root] for root in roots & owner.keys()}
        if found:
            break
    for name in tuple(found):
        found |= set(traced.graph.group(name).tied)
    return found


def _build(model: nn.Module, sizes: Sizes, edits: Any, policy: Policy) -> nn.Module:
    before = named_tensors(model)
    names = {id(tensor): name for name, tensor in before.items()}

    def make(tensor: Tensor) -> Tensor:
        name = names.get(id(tensor))
        if name is None:
            return tensor.detach().clone()
        shape = sizes.parameter(name, tuple(tensor.shape))
        return torch.empty(shape, dtype=tensor.dtype)

    made = skeleton(model, make)
    apply_edits(made, edits)
    maps = axis_maps(sizes, before, policy)
    everything = policy is random_policy
    if everything or any(bool(axis_map.fresh.any()) for axis_map in maps.values()):
        with torch.random.fork_rng(devices=[]):
            refresh(made, before)
    if not everything:
        values = carry(before, dict(named_tensors(made)), maps)
        with torch.no_grad():
            for name, tensor in named_tensors(made).items():
                tensor.copy_(values[name])
    for name, tensor in named_tensors(made).items():
        if tensor.device != before[name].device:
            tensor.data = tensor.data.to(before[name].device)
    return made


def inherit(
    target: nn.Module,
    source: nn.Module,
    *,
    init: str | Policy = "first",
    example_inputs: Any = None,
) -> nn.Module:
    """A model of `target`'s architecture with weights from `source`, a model of the same form.

    Args:
        target: gives class, keys and shapes; it is not touched.
        source: gives the weights; it has the same layers, of other widths.
        init: as for `resize`.
        example_inputs: with which `source` runs, as for `trace`.

    Raises:
        ResizeError: the two are not of one form; the message names the first difference.
    """
    traced = trace_fully(source, example_inputs=example_inputs)
    want, have = named_tensors(target), named_tensors(source)
    odd = sorted(want.keys() ^ have.keys())
    if odd:
        side = "target" if odd[0] in want else "source"
        raise ResizeError(
            f"target and source are not of one form: {odd[0]} is only in the {side}; take "
            "inserted levels out first, or expand the target in the same way"
        )
    widths: dict[str, int] = {}
    for group in traced.graph.resizable:
        new = _width_in(group.spans, traced.graph, want, have, group.width)
        if new is None:
            span = group.spans[0]
            raise ResizeError(
                f"{span.parameter} has shape {tuple(want[span.parameter].shape)} in the target and "
                f"{tuple(have[span.parameter].shape)} in the source; no width of group "
                f"{group.name} makes one from the other"
            )
        if new != group.width:
            widths[group.name] = new
    made = resize_traced(source, traced, widths, init=init)
    values = named_tensors(made)
    for name, tensor in want.items():
        if tensor.shape != values[name].shape:
            raise ResizeError(
                f"{name} has shape {tuple(tensor.shape)} in the target and would get "
                f"{tuple(values[name].shape)}: the two are not of one form"
            )
    return copy_into(target, values)


def _width_in(
    spans: Any,
    graph: ChannelGraph,
    want: Mapping[str, Tensor],
    have: Mapping[str, Tensor],
    old: int,
) -> int | None:
    """The group's width in the target, from an axis that it has to itself."""
    for span in spans:
        size, before = want[span.parameter].shape[span.axis], have[span.parameter].shape[span.axis]
        times = sum(s.inner for s in spans if (s.parameter, s.axis) == (span.parameter, span.axis))
        if before == old * times:
            return int(size // times) if size % times == 0 else None
    if all(want[s.parameter].shape == have[s.parameter].shape for s in spans):
        return old
    raise InputError(f"group of {graph.model} shares every axis with others; use resize instead")
