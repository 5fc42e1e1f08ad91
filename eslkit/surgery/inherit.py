"""Weights carried over through a policy's maps, and from one model into another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from eslkit.errors import ResizeError
from eslkit.graph.channels import ChannelSpan
from eslkit.surgery.axes import AxisMap, ChannelMap, Piece
from eslkit.surgery.frozen import fixed_parameters
from eslkit.surgery.policies.change import (
    AxisChange,
    GroupChange,
    Maps,
    MapsWholeAxes,
    NeedsModel,
    Policy,
    RefinesWeights,
)
from eslkit.surgery.sizes import Sizes

__all__ = ["axis_maps", "bound", "carry", "copy_into", "named_tensors", "refined", "refresh"]


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by qualified name; tied ones once, by their first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def bound(policy: Policy, model: nn.Module) -> Policy:
    """The policy for one network: those that look at all of it do so now."""
    return policy.bind(model) if isinstance(policy, NeedsModel) else policy


def refined(
    policy: Policy,
    made: nn.Module,
    model: nn.Module,
    sizes: Sizes,
    maps: Mapping[tuple[str, int], AxisMap],
) -> None:
    """Let a policy that wants to go over the new network's weights; `made` is changed."""
    if isinstance(policy, RefinesWeights):
        policy.refine(made, model, sizes, maps)


@dataclass(frozen=True)
class _GroupMaps:
    """A group's maps, told apart."""

    producer: ChannelMap
    consumer: ChannelMap
    spans: Mapping[ChannelSpan, ChannelMap]

    def of(self, span: ChannelSpan, *, gradients: bool) -> ChannelMap:
        """The map that a span gets: the one place where it is chosen.

        Where weights go by P, their gradients go by Q, and the other way round: if P repeats a
        channel and Q divides what consumes the copies, each copy of a producer gets its part of
        the gradient, each copy of a consumer all of it. For a selection the two are the same.
        """
        if span in self.spans:
            return self.spans[span]
        consumes = span.role == "consumer" or span.divided
        return self.consumer if consumes != gradients else self.producer


def axis_maps(
    sizes: Sizes,
    tensors: Mapping[str, Tensor],
    policy: Policy,
    *,
    gradients: bool = False,
    factors: Mapping[int, float] | None = None,
) -> dict[tuple[str, int], AxisMap]:
    """(tensor, axis) -> its map, for every axis that changes.

    Args:
        sizes: which groups change, and how.
        tensors: parameters and buffers of the network before.
        policy: bound to that network.
        gradients: the maps of gradients, instead of those of weights.
        factors: atom -> factor with which a divided axis makes up for numbers in the model's code
            that depend on the width; only maps that keep the function, or undo such maps, use them.

    Raises:
        ResizeError: the policy gave maps of the wrong shape, or that are not finite.
    """
    maps: dict[str, _GroupMaps] = {}
    for change in sizes.changes:
        group = change.group
        made = policy(GroupChange(group, group.width, change.new, tensors))
        for matrix in (made.producer, made.consumer, *made.spans.values()):
            _check(matrix, (change.new, group.width), f"group {group.name}")
        spans = {span: ChannelMap.of(matrix) for span, matrix in made.spans.items()}
        if factors and _keeps_function(made):
            for span in group.spans:
                factor = factors.get(sizes.atom(span), 1.0) if span.divided else 1.0
                if factor != 1.0:
                    own = made.producer / factor if gradients else made.consumer * factor
                    spans[span] = ChannelMap.of(own)
        producer, consumer = ChannelMap.of(made.producer), ChannelMap.of(made.consumer)
        maps[group.name] = _GroupMaps(producer, consumer, spans)
    whole = policy if isinstance(policy, MapsWholeAxes) else None
    found: dict[tuple[str, int], AxisMap] = {}
    for key in sizes.spans:
        old = tensors[key[0]].shape[key[1]]
        if whole is not None and _is_joined(sizes, key, old):
            found[key] = _whole_axis_map(sizes, key, old, whole)
        else:
            found[key] = _axis_map(sizes, key, old, maps, gradients=gradients)
    return found


def _keeps_function(maps: Maps) -> bool:
    """Whether copies add up to what they are copies of, and nothing is fresh; or the way back.

    The way back leaves no channel out. A selection does: it keeps the numbers that it finds, so
    that a network expanded at random and narrowed again has its own bits.
    """
    shares = maps.producer * maps.consumer
    used = maps.producer != 0
    narrower = maps.producer.shape[0] < maps.producer.shape[1]
    sums = shares.sum(dim=1 if narrower else 0)
    whole = torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=1e-12)
    return whole and bool(used.any(dim=0 if narrower else 1).all())


def _check(matrix: Tensor, shape: tuple[int, int], where: str) -> None:
    if tuple(matrix.shape) != shape or not matrix.isfinite().all():
        raise ResizeError(
            f"the init policy gave a map of shape {tuple(matrix.shape)} for {where}; expected "
            f"finite numbers of shape {shape}"
        )


def _axis_map(
    sizes: Sizes,
    key: tuple[str, int],
    old: int,
    maps: Mapping[str, _GroupMaps],
    *,
    gradients: bool,
) -> AxisMap:
    pieces: list[Piece] = []
    position = 0
    spans = sizes.spans[key]
    while spans:
        span, change = spans[0]
        block = spans[: span.step if span.step > span.inner else 1]  # those that lie between these
        if span.start > position:
            pieces.append(Piece(position, span.start - position))
        size = change.group.width * span.step
        chosen = tuple(maps[c.group.name].of(s, gradients=gradients) for s, c in block)
        pieces.append(Piece(span.start, size, span.step, chosen))
        position = span.start + size
        spans = spans[len(block) :]
    if old > position:
        pieces.append(Piece(position, old - position))
    return AxisMap(tuple(pieces))


def _is_joined(sizes: Sizes, key: tuple[str, int], old: int) -> bool:
    """Whether several groups lie one behind the other on a consumer's axis: a concat's."""
    spans = sizes.spans[key]
    covered = sum(change.group.width * span.inner for span, change in spans)
    several = len({change.group.name for _, change in spans}) > 1 or covered < old
    return several and all(s.role == "consumer" and s.step == s.inner for s, _ in spans)


def _whole_axis_map(sizes: Sizes, key: tuple[str, int], old: int, policy: MapsWholeAxes) -> AxisMap:
    new = old + sum((c.new - c.group.width) * span.inner for span, c in sizes.spans[key])
    matrix = policy.map_axis(AxisChange(*key, old, new))
    _check(matrix, (new, old), f"axis {key[1]} of {key[0]}")
    return AxisMap((Piece(0, old, 1, (ChannelMap.of(matrix),)),))


def carry(
    tensors: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    maps: Mapping[tuple[str, int], AxisMap],
) -> dict[str, Tensor]:
    """New values of every tensor: mapped along its changed axes, fresh where nothing is mapped.

    Args:
        tensors: values of the network before.
        fresh: tensors of the new shapes, freshly initialised.
        maps: as `axis_maps` gives them.
    """
    made: dict[str, Tensor] = {}
    for name, old in tensors.items():
        value = old.detach()
        untouched = torch.zeros((1,) * value.dim(), dtype=torch.bool)
        for axis in range(value.dim()):
            axis_map = maps.get((name, axis))
            if axis_map is None:
                continue
            value = axis_map.apply(value.cpu(), axis)
            view = [-1 if i == axis else 1 for i in range(value.dim())]
            untouched = untouched | axis_map.fresh.reshape(view)
        if untouched.any():
            value = torch.where(untouched, fresh[name].to(value.dtype).cpu(), value.cpu())
        made[name] = value.to(old.device)
    return made


def refresh(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Initialise a model's tensors afresh; the model is changed, the global RNG moves on.

    Layers that have `reset_parameters` are given to it; of their own code, what makes tensors of
    another size, or fails, changes nothing. A parameter that no such layer holds (a
    table of relative positions, a scale of each channel, a token) is drawn from a normal
    distribution with the mean and standard deviation of the tensor before; a constant stays that
    constant, so that a scale of zero or one is what it was meant to be. Buffers and whole numbers
    repeat what the model had before, and so do parameters that are not trained beside others that
    are: the mean colour that is subtracted, fixed filters.
    """
    fixed = fixed_parameters(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            old = before[name].detach()
            if parameter.is_floating_point():
                _draw_like(parameter, old)
            elif parameter.is_complex():
                for new, part in zip(
                    torch.view_as_real(parameter).unbind(-1),
                    torch.view_as_real(old.resolve_conj()).unbind(-1),
                    strict=True,
                ):
                    _draw_like(new, part)
            else:
                parameter.copy_(_repeated(old, tuple(parameter.shape)))
        for name, buffer in model.named_buffers():
            buffer.copy_(_repeated(before[name].detach(), tuple(buffer.shape)))
    for module in nn.Module.modules(model):
        for reset in _resets(module):
            _carried_out(reset, module)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in fixed:
                parameter.copy_(_repeated(before[name].detach(), tuple(parameter.shape)))


def _draw_like(tensor: Tensor, old: Tensor) -> None:
    values = old.to("cpu", torch.float64).flatten()
    if len(values) == 0:
        return
    if bool((values == values[0]).all()):
        tensor.fill_(float(values[0]))
    else:
        tensor.normal_(float(values.mean()), float(values.std()))


def _resets(module: nn.Module) -> Iterator[Any]:
    if parametrize.is_parametrized(module) or hasattr(module, "weight_g"):
        return
    for name in ("reset_parameters", "_reset_parameters"):
        reset = getattr(module, name, None)
        if callable(reset) and next(nn.Module.parameters(module, recurse=False), None) is not None:
            yield reset
            return


def _carried_out(reset: Callable[[], object], module: nn.Module) -> None:
    """Let a module initialise itself; it keeps its tensors, whatever it puts in their places."""
    if type(module).__module__.startswith("torch.nn."):
        reset()
        return
    inner = list(nn.Module.modules(module))
    tables: list[dict[str, Any]] = [
        vars(m)[kind] for m in inner for kind in ("_parameters", "_buffers")
    ]
    known = [set(table) for table in tables]
    held = [{k: (v, v.detach().clone()) for k, v in t.items() if v is not None} for t in tables]
    try:
        reset()
        failed = False
    except Exception:  # noqa: BLE001  # the user's code: what was drawn before stays
        failed = True
    with torch.no_grad():
        for table, names, tensors in zip(tables, known, held, strict=True):
            for name, (tensor, drawn) in tensors.items():
                made = table.get(name)
                table[name] = tensor
                if failed or made is None or made.shape != drawn.shape:
                    tensor.data = drawn
                elif made is not tensor:
                    tensor.copy_(made)
            for name in table.keys() - names:
                del table[name]


def _repeated(old: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor repeated or cut along every axis to a new shape."""
    for axis, size in enumerate(shape):
        if old.shape[axis] != size:
            old = old.index_select(axis, torch.arange(size, device=old.device) % old.shape[axis])
    return old


def copy_into(target: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `target` with these values."""
    made = copy.deepcopy(target)
    own = named_tensors(made)
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)
    return made
