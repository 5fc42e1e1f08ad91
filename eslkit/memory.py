"""What training a network takes of memory: what autograd keeps, and what an optimizer adds."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils import _pytree as pytree

from eslkit.graph.export import tensor_leaves
from eslkit.graph.forms import RememberForms
from eslkit.graph.skeleton import skeleton
from eslkit.graph.trace import example_arguments

__all__ = ["saved_bytes", "training_bytes"]

_COPIES = 4
"""Weights, gradients and Adam's two moments."""


def training_bytes(model: nn.Module, *, example_inputs: Any) -> int | None:
    """Estimate the memory of training a model with Adam; nothing is computed.

    Weights, gradients and two moments of each parameter, buffers, and what autograd keeps of the
    activations of one forward pass. What a backend needs for itself, the data and the loss are
    not in it.

    Args:
        model: any module; it is not touched.
        example_inputs: as for `trace`; batch and size count as they are.

    Returns:
        Bytes, or None where the model does not run on fake tensors.
    """
    kept = saved_bytes(model, example_inputs=example_inputs)
    if kept is None:
        return None
    parameters = sum(parameter.nbytes for parameter in nn.Module.parameters(model))
    return _COPIES * parameters + sum(buffer.nbytes for buffer in nn.Module.buffers(model)) + kept


def saved_bytes(model: nn.Module, *, example_inputs: Any) -> int | None:
    """Bytes of activations that autograd keeps between the forward and the backward pass.

    Args:
        model: any module; it is not touched.
        example_inputs: as for `trace`.

    Returns:
        Bytes, each storage once, without parameters, buffers and inputs; None where the model
        does not run on fake tensors.
    """
    inputs, keywords = example_arguments(example_inputs)
    for fake in (False, True):
        for train in (True, False):  # a batch norm in train mode refuses maps of one position
            try:
                return _saved_bytes(model, inputs, keywords, fake=fake, train=train)
            except Exception:  # noqa: BLE001  the user's code may raise anything
                continue
    return None


def _saved_bytes(
    model: nn.Module,
    inputs: tuple[Any, ...],
    keywords: dict[str, Any],
    *,
    fake: bool,
    train: bool,
) -> int:
    """On tensors without memory, or on fake ones for code that minds the device."""
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext()
    own = next((p.device for p in nn.Module.parameters(model)), torch.device("cpu"))
    device = own if fake else torch.device("meta")

    def stand_in(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        with mode:
            return torch.empty_like(leaf.detach(), device=device)

    bare = skeleton(model, stand_in).train(train)
    args, kwargs = pytree.tree_map(stand_in, (inputs, keywords))
    given = [*nn.Module.parameters(bare), *nn.Module.buffers(bare), *tensor_leaves((args, kwargs))]
    known = {_storage(tensor) for tensor in given}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in known:
            kept[_storage(tensor)] = tensor.untyped_storage()
        return tensor

    rng = torch.get_rng_state()
    try:
        with (
            mode,
            torch.enable_grad(),
            saved_tensors_hooks(pack, lambda tensor: tensor),
            nullcontext() if fake else RememberForms(),
        ):
            result = bare(*args, **kwargs)
        del result
    finally:
        torch.set_rng_state(rng)
    return sum(storage.nbytes() for storage in kept.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
