"""Recurrent layers (RNN, GRU, LSTM) written down for two steps of a sequence instead of all.

Torch unrolls them, a dozen operations a step; but every step couples the same channels. So the
recorder is shown two steps, and the second one's output in place of all later ones. Operations
inside note how often they would run.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from eslkit.graph.record import Recorder

__all__ = ["ShortSequences"]

_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}
_STEPS = 2


class ShortSequences(TorchFunctionMode):
    """Runs recurrent layers on the first steps only, and repeats what they give."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given: list[Any] = list(args)
        packed = len(given) < 9 or not isinstance(given[2], (list, tuple))
        if getattr(func, "__name__", "") not in _RECURRENT or packed:
            return func(*args, **kwargs)
        sequence: Tensor = given[0]
        axis = int(bool(given[8]))  # batch_first
        length = sequence.shape[axis]
        if sequence.dim() != 3 or length <= _STEPS:
            return func(*args, **kwargs)
        self._recorder.times = length / _STEPS
        try:
            output, *states = func(sequence.narrow(axis, 0, _STEPS), *given[1:], **kwargs)
        finally:
            self._recorder.times = 1.0
        shape = [length if i == axis else size for i, size in enumerate(output.shape)]
        return (output.narrow(axis, _STEPS - 1, 1).expand(shape), *states)
