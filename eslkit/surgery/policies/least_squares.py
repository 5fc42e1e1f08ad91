"""Channels chosen by another policy; what consumes them is solved to give the features of before.

For each layer whose inputs were narrowed, in the order of the forward pass, the change of its
weight and bias is the solution of a least-squares problem over calibration batches: the layer, fed
by the narrowed network, shall give what it gave in the network before (ThiNet, Luo et al., ICCV
2017; He et al., Channel Pruning, ICCV 2017). The problem is solved by conjugate gradients on the
normal equations (CGLS), which needs nothing but the layer's own operation and its derivative: so
it is the same for convolutions of any dimension, stride and padding, transposed ones, linear
layers and products with bare parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from eslkit.errors import InputError
from eslkit.graph.skeleton import skeleton
from eslkit.surgery.axes import AxisMap
from eslkit.surgery.policies.calibration import Use, uses_of, weights_in_order
from eslkit.surgery.policies.change import GroupChange, Maps, NeedsModel, Policy
from eslkit.surgery.policies.norms import l1
from eslkit.surgery.sizes import Sizes

__all__ = ["LeastSquares", "least_squares"]


def least_squares(
    batches: Iterable[Any],
    *,
    selection: Policy = l1,
    inputs: Callable[[Any], Any] | None = None,
    iterations: int = 50,
    damping: float = 1e-6,
) -> LeastSquares:
    """A policy that selects channels, and solves their consumers on calibration batches.

    No layer's output is farther from that of the network before, on these batches and for the
    inputs that the narrowed network gives it, than with the plain selection. Weights that several
    operations share are solved for all of them together. Grouped convolutions that consume, and
    weights that the model's code computes or cuts up before use (weight norm, separate
    projections out of one matrix), keep what the selection gave.

    Args:
        batches: what the model is called with: tensors, tuples of positional arguments, or
            mappings; kept in memory. Some hundred image positions for each channel are plenty.
            Let every process of a distributed run pass the same.
        selection: the policy that chooses the channels.
        inputs: takes out of a batch what the model is called with, where a batch is more.
        iterations: conjugate-gradient steps a layer, each as costly as a forward and a backward
            pass of that layer; fewer stay nearer to the selected weights.
        damping: weight of the change's own size, relative to the problem's largest eigenvalue.

    Returns:
        A policy for `init=`. It solves when channels go; where a group gets wider, it does what
        `selection` does.

    Raises:
        InputError: no batches, or a number out of range.
    """
    kept = tuple(batches if inputs is None else map(inputs, batches))
    if not kept:
        raise InputError("least_squares: there are no batches to solve on; pass at least one")
    if iterations < 1 or damping < 0:
        raise InputError(
            f"least_squares: iterations={iterations} must be at least 1 and damping={damping} not "
            "negative"
        )
    return LeastSquares(kept, selection, iterations, damping)


@dataclass(frozen=True)
class LeastSquares:
    """The policy that `least_squares` makes."""

    batches: tuple[Any, ...]
    selection: Policy
    iterations: int
    damping: float
    __name__ = "least_squares"

    def __call__(self, change: GroupChange) -> Maps:
        """The maps of the selection."""
        return self.selection(change)

    def bind(self, model: nn.Module) -> Policy:
        """This policy with a selection that has looked at the model, if it needs to."""
        if isinstance(self.selection, NeedsModel):
            return replace(self, selection=self.selection.bind(model))
        return self

    def refine(
        self,
        made: nn.Module,
        model: nn.Module,
        sizes: Sizes,
        maps: Mapping[tuple[str, int], AxisMap],
    ) -> None:
        """Solve every layer of `made` whose inputs were narrowed, in place."""
        narrowed = _narrowed(sizes)
        if not narrowed:
            return
        old, new = _still(model), _still(made)
        before = _Before(old, maps, sizes)
        own, solved = dict(new.named_parameters()), dict(made.named_parameters())
        counts = weights_in_order(old, self.batches[0])
        for name, count in weights_in_order(new, self.batches[0]).items():
            if name not in narrowed or counts.get(name) != count:
                continue
            problem = self._problem(name, count, new, before)
            if problem is None:
                continue
            for key, step in _solve(problem, self.iterations, self.damping).items():
                with torch.no_grad():
                    own[key].add_(step.to(own[key].dtype))
                    solved[key].copy_(own[key])

    def _problem(self, name: str, count: int, new: nn.Module, before: _Before) -> _Problem | None:
        """A layer's uses over all batches and what is missing there; None: leave it as it is."""
        tensors = dict(new.named_parameters())
        uses: list[Use] = []
        missing: list[Tensor] = []
        size = 0.0
        for batch in self.batches:
            here = uses_of(new, batch, name, count=count)
            there = uses_of(before.model, batch, name, count=count)
            if not len(here) == len(there) == count:
                return None
            for use, origin in zip(here, there, strict=True):
                want = before.output(origin)
                bias = None if use.bias is None else tensors[use.bias]
                with torch.no_grad():
                    have = use.run(tensors[name], bias)
                if want is None or want.shape != have.shape or use.bias != origin.bias:
                    return None
                uses.append(use)
                missing.append(want - have)
                size += _dot([want], [want])
        exactly = 100 * torch.finfo(torch.promote_types(missing[0].dtype, torch.float32)).eps
        if _dot(missing, missing) <= exactly**2 * size:
            return None  # nothing is missing but rounding
        shared = uses[0].bias if len({use.bias for use in uses}) == 1 else None
        keys = (name,) if shared is None else (name, shared)
        return _Problem(uses, missing, {key: tensors[key] for key in keys})


def _narrowed(sizes: Sizes) -> frozenset[str]:
    """Parameters that consume channels of a group that got narrower."""
    return frozenset(
        span.parameter
        for change in sizes.changes
        if change.new < change.group.width
        for span in change.group.spans
        if span.role == "consumer"
    )


def _still(model: nn.Module) -> nn.Module:
    """A copy in eval mode, so that nothing of the model is touched by running it."""
    return skeleton(model, lambda tensor: tensor.detach().clone()).eval()


class _Before:
    """The network before: what its layers give, once only their outputs are mapped."""

    def __init__(
        self, model: nn.Module, maps: Mapping[tuple[str, int], AxisMap], sizes: Sizes
    ) -> None:
        self.model = model
        self._tensors = dict(model.named_parameters())
        self._maps = maps
        self._consuming = {
            key
            for key, spans in sizes.spans.items()
            if any(span.role == "consumer" for span, _ in spans)
        }

    def output(self, use: Use) -> Tensor | None:
        """The layer's output on the old activations, in the new network's channels."""
        bias = None if use.bias is None else self._mapped(use.bias)
        weight = self._mapped(use.weight)
        if weight is None or (bias is None) != (use.bias is None):
            return None
        with torch.no_grad():
            return use.run(weight, bias)

    def _mapped(self, name: str) -> Tensor | None:
        """The tensor with its producing axes mapped; None where channels are fresh."""
        value = self._tensors[name].detach()
        device = value.device
        for axis in range(value.dim()):
            axis_map = self._maps.get((name, axis))
            if axis_map is None or (name, axis) in self._consuming:
                continue
            if axis_map.fresh.any():
                return None
            value = axis_map.apply(value.cpu(), axis)
        return value.to(device)


@dataclass(frozen=True)
class _Problem:
    """Find changes of some tensors with which operations give what is missing."""

    uses: Sequence[Use]
    missing: Sequence[Tensor]
    tensors: Mapping[str, Tensor]


Vector = list[Tensor]


def _solve(problem: _Problem, iterations: int, damping: float) -> dict[str, Tensor]:
    """The change of each tensor, by CGLS; nothing where it would not help."""
    keys = list(problem.tensors)
    dtype = torch.promote_types(problem.tensors[keys[0]].dtype, torch.float32)
    leaves = [
        torch.zeros_like(problem.tensors[key], dtype=dtype).requires_grad_(True) for key in keys
    ]
    uses = [use.to(dtype) for use in problem.uses]

    def forward(vector: Vector) -> Vector:
        return [use.run(vector[0], vector[1] if len(vector) > 1 else None) for use in uses]

    with torch.enable_grad():
        outputs = forward(leaves)

    def adjoint(residual: Vector) -> Vector:
        made = torch.autograd.grad(outputs, leaves, residual, retain_graph=True)
        return [part.detach() for part in made]

    missing = [part.to(dtype) for part in problem.missing]
    with torch.no_grad():
        found = _cgls(forward, adjoint, missing, leaves, iterations, damping)
        rest = [m - f for m, f in zip(missing, forward(found), strict=True)]
    if not _dot(rest, rest) < _dot(missing, missing):
        return {}
    return dict(zip(keys, found, strict=True))


def _cgls(
    forward: Callable[[Vector], Vector],
    adjoint: Callable[[Vector], Vector],
    missing: Vector,
    like: Vector,
    iterations: int,
    damping: float,
) -> Vector:
    """Minimise |missing - L x|² + damping s |x|², s a Rayleigh quotient (Björck 1996, 7.4)."""
    found = [torch.zeros_like(part).detach() for part in like]
    residual = missing
    gradient = adjoint(residual)
    direction = gradient
    start = norm = _dot(gradient, gradient)
    scale = 0.0
    for step in range(iterations):
        if norm <= start * torch.finfo(like[0].dtype).eps ** 2:
            break
        image = forward(direction)
        length = _dot(image, image)
        if step == 0:
            scale = damping * length / norm
        curvature = length + scale * _dot(direction, direction)
        if curvature <= 0:
            break
        stride = norm / curvature
        found = [f + stride * d for f, d in zip(found, direction, strict=True)]
        residual = [r - stride * i for r, i in zip(residual, image, strict=True)]
        gradient = [a - scale * f for a, f in zip(adjoint(residual), found, strict=True)]
        before, norm = norm, _dot(gradient, gradient)
        direction = [g + (norm / before) * d for g, d in zip(gradient, direction, strict=True)]
    return found


def _dot(left: Vector, right: Vector) -> float:
    return sum(float((a * b).sum(dtype=torch.float64)) for a, b in zip(left, right, strict=True))
