"""States that a model keeps from call to call as plain attributes of its modules.

A recurrent cell or a spiking neuron may start with `self.state = None` and leave a tensor there. In
a model that was run before, the next run reads that tensor, whose sizes are those of the model as
it is: they say nothing of what belongs together, and a model of other sizes cannot go on from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, fx, nn

from eslkit.errors import InputError
from eslkit.graph.record import Recorder, tensor_leaves

__all__ = ["Leftover", "check_leftovers", "leftovers"]


@dataclass(frozen=True)
class Leftover:
    """A plain attribute of a module that holds tensors before a run."""

    path: str
    module: nn.Module
    name: str
    tensors: tuple[Tensor, ...]


def leftovers(model: nn.Module) -> tuple[Leftover, ...]:
    """What the modules of a model hold, before it is run."""
    return tuple(_leftovers(model))


def _leftovers(model: nn.Module) -> Iterator[Leftover]:
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, (Tensor, tuple, list)):
                tensors = tuple(tensor_leaves(value))
                if tensors:
                    yield Leftover(path, module, name, tensors)


def check_leftovers(
    before: tuple[Leftover, ...], recorder: Recorder, inputs: tuple[fx.Node, ...]
) -> None:
    """Raise where the run has read such a tensor and put what it made of its inputs in its place.

    Args:
        before: what there was.
        recorder: has written the run down.
        inputs: of the model.

    Raises:
        InputError: the tensor is a state; it has to be taken away first.
    """
    for each in before:
        after = tensor_leaves(vars(each.module).get(each.name))
        for old, new in zip(each.tensors, after, strict=False):
            if (
                new is not old
                and old.dim() > 1 < old.numel()
                and new.shape == old.shape
                and recorder.knows(old)
                and recorder.knows(new)
                and _hangs_on(recorder.node_of(new), set(inputs))
            ):
                where = f"{each.path}.{each.name}" if each.path else each.name
                raise InputError(
                    f"`{where}` of the model holds a tensor of shape {tuple(old.shape)} from an "
                    "earlier forward pass, which the next one reads and replaces: a state, whose "
                    "sizes are those of this model, so that no other one can go on from it. Set it "
                    "to what it is before the first pass (None, say), or take a model that has not "
                    "been run."
                )


def _hangs_on(node: fx.Node, inputs: set[fx.Node]) -> bool:
    pending, seen = [node], set[fx.Node]()
    while pending:
        each = pending.pop()
        if each in inputs:
            return True
        if each not in seen:
            seen.add(each)
            pending.extend(each.all_input_nodes)
    return False
