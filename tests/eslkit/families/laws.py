"""What the laws compare with: tensors, attributes, groups that nothing mixes, masked models."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eslkit.graph.channels import ChannelGraph

__all__ = [
    "assert_partition",
    "assert_same_model",
    "attributes",
    "leaves",
    "masked",
    "plain_groups",
    "run",
    "size_of",
    "tensors_of",
]


def leaves(result: Any) -> list[Tensor]:
    """Every tensor of a result of any shape, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, Mapping):
        return [leaf for value in result.values() for leaf in leaves(value)]
    if isinstance(result, (list, tuple)):
        return [leaf for value in result for leaf in leaves(value)]
    return leaves(vars(result)) if hasattr(result, "__dict__") else []


def run(model: nn.Module, *args: Any, **keywords: Any) -> list[Tensor]:
    with torch.no_grad():
        return leaves(model(*args, **keywords))


def size_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def attributes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Everything plain that modules keep, by qualified name."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, (bool, int, float, str, tuple, list)) and not _held(value):
                yield f"{path}.{name}", value


def _held(value: Any) -> bool:
    """Lists of the module's own tensors, as torch's recurrent layers keep them."""
    return isinstance(value, list) and any(not isinstance(v, (int, float, str)) for v in value)


def assert_same_model(left: nn.Module, right: nn.Module) -> None:
    """The same class, keys, shapes and bits, and the same attributes everywhere."""
    assert type(left) is type(right)
    one, two = tensors_of(left), tensors_of(right)
    assert list(one) == list(two)
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype
        assert torch.equal(tensor, two[name]), name
    assert dict(attributes(left)) == dict(attributes(right))
    assert repr(left) == repr(right)


def assert_partition(model: nn.Module, graph: ChannelGraph) -> None:
    """Every position of every axis belongs to one group, or holds no channels and says why."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    times = {(n, a): np.zeros(s, int) for n, t in tensors.items() for a, s in enumerate(t.shape)}
    for group in graph.groups:
        assert group.protected != ""
        for span in group.spans:
            where = span.positions(group.width)
            assert where.max() < tensors[span.parameter].shape[span.axis], span
            times[span.parameter, span.axis][where.ravel()] += 1
    for key, count in times.items():
        if key in graph.positions:
            assert graph.positions[key]
            assert not count.any(), key
        else:
            assert (count == 1).all(), key


def plain_groups(graph: ChannelGraph) -> set[str]:
    """Groups whose channels no operation mixes or counts, them or what they are tied to."""
    counted = {name for constraint in graph.constraints for name in constraint.counts}
    odd = counted | {group.name for group in graph.resizable if group.mixed}
    return {g.name for g in graph.resizable if not odd & {g.name, *g.tied}}


def masked(model: nn.Module, graph: ChannelGraph, widths: Mapping[str, int]) -> nn.Module:
    """The model without the channels behind the first `width` of each group.

    What reads them is set to zero, and one side of the products in which they meet their like.
    """
    computed = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor)]
    made = copy.deepcopy(model, {id(v): v.detach().clone() for v in computed})
    tensors = {**dict(made.named_parameters()), **dict(made.named_buffers())}
    for name, width in widths.items():
        group = graph.group(name)
        for span in group.spans:
            if span.role == "consumer" or span.divided:
                gone = torch.from_numpy(span.positions(group.width)[width:].ravel())
                with torch.no_grad():
                    tensors[span.parameter].index_fill_(span.axis, gone, 0)
    return made
