"""The numbers that a model's code keeps, when it is known which model it is to become."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from eslkit.surgery.inserted import own_names
from eslkit.surgery.integers import Aims, Edit, differing
from eslkit.surgery.sizes import Sizes

__all__ = ["aims_towards"]


def aims_towards(model: nn.Module, goal: nn.Module, sizes: Sizes) -> Aims:
    """What the attributes of a model's modules are in the model that it is to become.

    Args:
        model: the model that is resized; it may have inserted levels.
        goal: what it becomes in the end, with the levels or without them.
        sizes: the resize.
    """
    twins = {own: goal.get_submodule(name) for name, own in own_names(goal).items()}
    edits: list[Edit] = []
    reached = True
    for name, own in own_names(model).items():
        twin = twins.get(own)
        if twin is None:
            continue
        module = model.get_submodule(name)
        edits += (Edit(name, attribute, value) for attribute, value in differing(module, twin))
        reached = reached and _alike(module, twin, name, sizes)
    return Aims(tuple(edits), reached)


def _alike(module: nn.Module, twin: nn.Module, name: str, sizes: Sizes) -> bool:
    """Whether a module's own tensors get the shapes that the twin's have."""
    there = dict(_tensors(twin))
    return all(
        key not in there
        or sizes.parameter(f"{name}.{key}" if name else key, tuple(tensor.shape))
        == tuple(there[key].shape)
        for key, tensor in _tensors(module)
    )


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)
