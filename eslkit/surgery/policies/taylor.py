"""Channels kept by how much the loss would change without them, to first order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eslkit.errors import InputError
from eslkit.graph.skeleton import skeleton
from eslkit.surgery.policies.change import GroupChange, Maps, Policy, keep_largest

__all__ = ["Taylor", "taylor"]

Loss = Callable[[nn.Module, Any], Tensor]


def taylor(batches: Iterable[Any], loss: Loss) -> Taylor:
    """A policy that keeps the channels whose removal would change the loss most.

    The importance of a channel is the squared first-order effect of taking it out, averaged over
    batches: mean over batches of (sum over its consumers of gradient times weight)². That is the
    derivative by a gate on the channel, squared (Molchanov et al., CVPR 2019, Taylor FO on gates).
    Where nothing with weights consumes a channel, its producers and biases stand for it.

    Args:
        batches: what `loss` is called with, one after the other; kept in memory. Let every
            process of a distributed run pass the same.
        loss: `loss(model, batch)` -> a scalar. The model that it gets is a copy in eval mode.

    Returns:
        A policy for `init=`, bound anew to each network that it is used on.

    Raises:
        InputError: no batches.
    """
    kept = tuple(batches)
    if not kept:
        raise InputError("taylor: there are no batches to take gradients over; pass at least one")
    return Taylor(kept, loss)


@dataclass(frozen=True)
class Taylor:
    """The policy that `taylor` makes."""

    batches: tuple[Any, ...]
    loss: Loss
    __name__ = "taylor"

    def __call__(self, change: GroupChange) -> Maps:
        """Only a bound policy can answer.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"the policy taylor was asked about group {change.group.name} without a network; pass "
            "it as init= to expand, shrink, resize or inherit, or call taylor.bind(model) first"
        )

    def bind(self, model: nn.Module) -> Policy:
        """The policy for one network: its gradients are taken now.

        Raises:
            InputError: the loss is no finite scalar, or does not depend on any parameter.
        """
        effects = [_effects(model, batch, self.loss) for batch in self.batches]

        def bound(change: GroupChange) -> Maps:
            return keep_largest(_scores(change, effects), change)

        return bound


Effects = Mapping[tuple[str, int], Tensor]
"""(parameter, axis) -> gradient times weight, summed over the other axes; float64."""


def _scores(change: GroupChange, effects: list[Effects]) -> Tensor:
    spans = change.spans("consumer") or change.spans("producer", "follows")
    total = torch.zeros(change.old, dtype=torch.float64)
    for effect in effects:
        gate = torch.zeros(change.old, dtype=torch.float64)
        for span in spans:
            along = effect.get((span.parameter, span.axis))
            if along is not None:
                gate += along[torch.from_numpy(span.positions(change.old))].sum(dim=1)
        total += gate.square()
    return total / len(effects)


def _effects(model: nn.Module, batch: Any, loss: Loss) -> Effects:
    copy = skeleton(model, lambda tensor: tensor.detach().clone()).eval()
    weights = {n: p for n, p in copy.named_parameters() if p.is_floating_point() or p.is_complex()}
    for weight in weights.values():
        weight.requires_grad_(True)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        value = loss(copy, batch)
        _check_loss(value)
        gradients = torch.autograd.grad(value, tuple(weights.values()), allow_unused=True)
    found: dict[tuple[str, int], Tensor] = {}
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        if gradient is None:
            continue
        wide = torch.complex128 if weight.is_complex() else torch.float64
        effect = (gradient.conj() * weight.detach()).to("cpu", wide)
        effect = effect.real if effect.is_complex() else effect
        for axis in range(effect.dim()):
            found[name, axis] = effect.movedim(axis, 0).reshape(effect.shape[axis], -1).sum(1)
    return found


def _check_loss(value: Any) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        kind = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"taylor: loss(model, batch) gave {kind}; it must return a scalar tensor")
    if not value.isfinite().all():
        raise InputError(f"taylor: loss(model, batch) gave {value.item()}; it must be finite")
    if not value.requires_grad:
        raise InputError(
            "taylor: loss(model, batch) does not depend on the model's parameters; call the model "
            "inside it, without torch.no_grad()"
        )
