"""New widths -> a new model of the same class, proved by running it on fake tensors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eslkit.errors import ResizeError
from eslkit.graph.atoms import UNUSED
from eslkit.graph.channels import ChannelGraph
from eslkit.graph.export import Exported
from eslkit.graph.skeleton import skeleton
from eslkit.graph.trace import Traced, check_model, trace_fully
from eslkit.surgery.blame import blamed
from eslkit.surgery.frozen import without_fixed
from eslkit.surgery.goal import aims_towards
from eslkit.surgery.inherit import (
    axis_maps,
    bound,
    carry,
    copy_into,
    named_tensors,
    refined,
    refresh,
)
from eslkit.surgery.inserted import own_names
from eslkit.surgery.integers import Edit, apply_edits
from eslkit.surgery.numbers import Numbers, numbers_of
from eslkit.surgery.policies import Policy, policy_of, preserve, split
from eslkit.surgery.policies import random as random_policy
from eslkit.surgery.proof import Failure, Proof, prove
from eslkit.surgery.sizes import Sizes
from eslkit.surgery.widths import check_widths, scaled_widths, widths_towards

__all__ = [
    "Prepared",
    "ResizeWarning",
    "build_resized",
    "form_resized",
    "inherit",
    "prepare_possible",
    "prepare_resize",
    "resize",
    "resize_traced",
    "scale",
    "warn_kept",
    "warn_not_wider",
    "widens_own",
]

_MOST_ALONE = 4
"""Of how many groups that may be due to a failure each is tried alone."""
_ROUNDS = 12


class ResizeWarning(UserWarning):
    """Not all that was asked for could be: groups kept their width, or the output is not kept."""


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


@dataclass(frozen=True)
class Prepared:
    """A resize that has been proved: what `build_resized` needs beside the model's weights."""

    sizes: Sizes
    edits: tuple[Edit, ...]
    numbers: Numbers
    exported: Exported | None = None
    """The operations of the resized model, where the proof has written them down."""


def _prepared(sizes: Sizes, proof: Proof) -> Prepared:
    numbers = numbers_of(sizes.traced, proof.numbers)
    return Prepared(sizes, proof.edits, numbers, proof.exported)


def prepare_resize(
    model: nn.Module, traced: Traced, widths: Mapping[str, int], *, goal: nn.Module | None = None
) -> Prepared:
    """Prove that a traced model can have these widths.

    Args:
        model: the model, or one of the same architecture; its weights do not count.
        traced: what `trace_fully` found.
        widths: group name -> number of channels.
        goal: what the model becomes in the end, after this resize and others, where that is known:
            the numbers that its code keeps are then read off it.

    Raises:
        InputError: no such group, or a width that is not a positive integer.
        ResizeError: a protected group, widths that cannot go together, or a model whose own code
            does not run at these widths.
    """
    check_widths(traced.graph, widths)
    sizes = Sizes(traced, widths)
    proof = prove(model, sizes, None if goal is None else aims_towards(model, goal, sizes))
    if proof.failure is not None:
        raise ResizeError(_refusal(type(model).__name__, widths, proof.failure))
    return _prepared(sizes, proof)


def prepare_possible(
    model: nn.Module, traced: Traced, widths: Mapping[str, int]
) -> tuple[Prepared, dict[str, str]]:
    """As `prepare_resize`, but groups whose resize fails keep their width.

    Returns:
        What could be proved, and the groups that keep their width with the reason.

    Raises:
        ResizeError: the model does not run at other widths, and nothing tells which group it is.
    """
    wanted, kept = dict(widths), dict[str, str]()
    refusal = ""
    for round_ in range(_ROUNDS):
        _drop_impossible(traced.graph, wanted, kept)
        sizes = Sizes(traced, wanted)
        proof = prove(model, sizes)
        failure = proof.failure
        if failure is None:
            return _prepared(sizes, proof), kept
        refusal = _refusal(type(model).__name__, wanted, failure)
        narrowly = round_ < _ROUNDS // 2
        due = blamed(sizes, failure, narrowly=narrowly)
        if not due:
            break
        for name in _fewest(model, sizes, failure, due) if narrowly else due:
            kept[name] = f"{failure.path or 'the model'}: {failure.text}"
            wanted.pop(name, None)
    raise ResizeError(refusal)


def _fewest(model: nn.Module, sizes: Sizes, failure: Failure, due: set[str]) -> set[str]:
    """Of the groups that meet where it failed, those that are enough to get on: all, or few alone.

    One number in the code holds one of them; those that go where it is used need not stay with it.
    """
    graph, wanted = sizes.traced.graph, {c.group.name: c.new for c in sizes.changes}
    units = {frozenset({name, *graph.group(name).tied} & wanted.keys()) for name in due}
    best, most = due, failure.progress
    if not 1 < len(units) <= _MOST_ALONE:
        return best
    for unit in sorted(units, key=lambda names: (len(names), sorted(names))):
        trial = {name: new for name, new in wanted.items() if name not in unit}
        _drop_impossible(graph, trial, {})
        left = prove(model, Sizes(sizes.traced, trial)).failure
        if left is None:
            return set(unit)
        if left.progress > most:
            best, most = set(unit), left.progress
    return best


def resize_traced(
    model: nn.Module, traced: Traced, widths: Mapping[str, int], *, init: str | Policy
) -> nn.Module:
    """As `resize`, for a model that has been traced already."""
    policy = policy_of(init)
    return build_resized(model, prepare_resize(model, traced, widths), init=policy)


def _refusal(model: str, widths: Mapping[str, int], failure: Failure) -> str:
    if not widths:
        return (
            f"{model} takes another way through its code on stand-ins for its weights than it took "
            f"when it was traced, at the same widths: {failure.path or 'its forward'} fails with "
            f"{failure.text!r}. What the code does must not hang on earlier calls or chance; "
            "resize only the parts of the model that always run the same way."
        )
    some = dict(list(widths.items())[:4])
    return (
        f"{model} does not run with widths {some}{' ...' if len(widths) > 4 else ''}: "
        f"{failure.path or 'its forward'} fails with {failure.text!r}. A size is written into its "
        "code; protect the group, or resize the groups that must go together in one call."
    )


def scale(
    model: nn.Module,
    factor: float,
    *,
    init: str | Policy,
    example_inputs: Any,
    protect: Any,
    divisor: int = 1,
) -> nn.Module:
    """Every resizable group's width times `factor`; groups whose resize fails keep theirs."""
    policy = policy_of(init)
    traced = trace_fully(model, example_inputs=example_inputs, protect=protect)
    widths, fixed = without_fixed(
        model, traced.graph, scaled_widths(traced.graph, factor, divisor=divisor)
    )
    prepared, kept = prepare_possible(model, traced, widths)
    kept = {**fixed, **kept}
    warn_kept(kept, len(traced.graph.resizable), stacklevel=4)
    if factor > 1 and not kept and not widens_own(model, prepared):
        warn_not_wider(model, traced.graph, factor, stacklevel=4)
    return build_resized(model, prepared, init=policy)


def warn_kept(kept: Mapping[str, str], total: int, *, stacklevel: int) -> None:
    """Say which groups keep their width, and why; nothing where there are none."""
    if kept:
        lines = "; ".join(f"{name} ({reason})" for name, reason in list(kept.items())[:5])
        warnings.warn(
            f"{len(kept)} of {total} channel groups keep their width: {lines}",
            ResizeWarning,
            stacklevel=stacklevel,
        )


def widens_own(model: nn.Module, prepared: Prepared) -> bool:
    """Whether a resize widens any group of the user's own, not only those of inserted levels."""
    own = own_names(model).keys()
    return any(
        change.new > change.group.width and own & set(change.group.producers)
        for change in prepared.sizes.changes
    )


def warn_not_wider(
    model: nn.Module, graph: ChannelGraph, factor: float, *, stacklevel: int
) -> None:
    """Say that no group of the user's own gets wider, and what most of them are fixed by."""
    own = own_names(model)
    fixed: dict[str, list[str]] = {}
    for group in graph.groups:
        if group.protected is not None and own.keys() & set(group.producers):
            fixed.setdefault(group.protected, []).append(group.name)
    most = sorted(fixed.items(), key=lambda item: -len(item[1]))[:3]
    reasons = "; ".join(
        f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''} ({why})" for why, names in most
    )
    warnings.warn(
        f"no channel group of {type(model).__name__} gets wider by width={factor:g}: "
        f"{reasons or 'the widths that can be are no nearer to it than those it has'}",
        ResizeWarning,
        stacklevel=stacklevel,
    )


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


def _warn_not_kept(prepared: Prepared) -> None:
    """Say which groups do not let the function be kept."""
    reasons: dict[str, str] = {}
    beside = prepared.sizes.uneven()
    for change in prepared.sizes.changes:
        group = change.group
        uneven = group.mixed if change.new % group.width else ()
        open_ = prepared.numbers.open.get(group.name, ())
        others = (beside[group.name],) if group.name in beside else ()
        for reason in (*group.counting, *uneven, *open_, *others):
            reasons.setdefault(group.name, reason)
    if reasons:
        lines = "; ".join(f"{name} (mixed by {why})" for name, why in list(reasons.items())[:5])
        warnings.warn(
            f"the output is not kept exactly: copies of channels change what mixes them in "
            f"{len(reasons)} groups: {lines}",
            ResizeWarning,
            stacklevel=4,
        )


def empty_like(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An empty tensor of another shape whose axes lie in memory in the same order."""
    order = sorted(range(tensor.dim()), key=lambda axis: (tensor.stride(axis), -axis))
    strides, step = [0] * tensor.dim(), 1
    for axis in order:
        strides[axis] = step
        step *= max(1, shape[axis])
    return torch.empty_strided(shape, strides, dtype=tensor.dtype)


def build_resized(model: nn.Module, prepared: Prepared, *, init: str | Policy) -> nn.Module:
    """Make the network that has been proved, with weights from `model`.

    Args:
        model: of the architecture that was traced; it is not touched.
        prepared: what `prepare_resize` gave.
        init: as for `resize`.
    """
    policy = bound(policy_of(init), model)
    if policy in (preserve, split):
        _warn_not_kept(prepared)
    sizes, before = prepared.sizes, named_tensors(model)
    names = {id(tensor): name for name, tensor in before.items()}

    def make(tensor: Tensor) -> Tensor:
        name = names.get(id(tensor))
        if name is None:
            return tensor.detach().clone()
        shape = sizes.parameter(name, tuple(tensor.shape))
        return empty_like(tensor, shape)

    made = skeleton(model, make)
    apply_edits(made, prepared.edits)
    maps = axis_maps(sizes, before, policy, factors=prepared.numbers.factors)
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
    refined(policy, made, model, sizes, maps)
    return made


def form_resized(model: nn.Module, prepared: Prepared) -> nn.Module:
    """As `build_resized`, without memory for the weights: only the network's form."""
    names = {id(tensor): name for name, tensor in named_tensors(model).items()}

    def make(tensor: Tensor) -> Tensor:
        name = names.get(id(tensor))
        if name is None:
            return tensor.detach()
        shape = prepared.sizes.parameter(name, tuple(tensor.shape))
        return torch.empty(shape, dtype=tensor.dtype, device="meta")

    made = skeleton(model, make)
    apply_edits(made, prepared.edits)
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
        source: gives the weights; it has the same layers, of other widths. What its forward pass
            does not use stays the target's own where the shapes differ.
        init: as for `resize`.
        example_inputs: with which `source` runs, as for `trace`.

    Raises:
        ResizeError: the two are not of one form; the message names the first difference.
    """
    check_model(target)
    traced = trace_fully(source, example_inputs=example_inputs)
    want, have = named_tensors(target), named_tensors(source)
    widths = widths_towards(traced.graph, want, have)
    made = resize_traced(source, traced, widths, init=init)
    values = named_tensors(made)
    unused = {s.parameter for g in traced.graph.groups if g.protected == UNUSED for s in g.spans}
    for name, tensor in want.items():
        if tensor.shape != values[name].shape and name in unused:
            values[name] = tensor
        elif tensor.shape != values[name].shape:
            raise ResizeError(
                f"{name} has shape {tuple(tensor.shape)} in the target and would get "
                f"{tuple(values[name].shape)}: the two are not of one form"
            )
    return copy_into(target, values)
