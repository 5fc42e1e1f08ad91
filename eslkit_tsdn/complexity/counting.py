"""Two ways to count the FLOPs of a forward pass, and the size of a saved network.

Nothing is computed: the network runs on tensors without memory.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import IO, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["PACKED", "file_bytes", "paper_flops", "true_flops"]

PACKED = (1, 4, 512, 512)
"""The input of all of the paper's figures: a raw image of 1024x1024, packed."""


def true_flops(model: nn.Module, *, shape: tuple[int, ...] = PACKED) -> int:
    """Two for every multiply-accumulate of convolutions and matrix products, all calls counted.

    Args:
        model: takes one tensor; it is not touched.
        shape: of that tensor, the batch first.

    Returns:
        FLOPs of one forward pass in inference, as torch's own FlopCounterMode has them.

    Example:
        >>> true_flops(nn.Conv2d(4, 8, 3, padding=1), shape=(1, 4, 10, 10))
        57600
    """
    bare = _bare(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        bare(_input(bare, shape))
    return counter.get_total_flops()


def paper_flops(model: nn.Module, *, shape: tuple[int, ...] = PACKED) -> int:
    """FLOPs as the paper counted them: module by module, the last call of each alone.

    These are the "MAdd" of torchstat 0.0.7 (facts.md, section 0). A convolution with a bias is 2
    for every multiply-accumulate, one without a bias one less for every output; transposed ones
    are counted at the positions of their input; `nn.ReLU` is 1 for every element, average pooling
    the window's size for every output, max-pooling one less. All other modules, and whatever is
    computed by functions instead of modules, is 0. The batch does not count.

    Args:
        model: takes one tensor; it is not touched.
        shape: of that tensor, the batch first.

    Returns:
        FLOPs of one forward pass in inference.

    Example:
        >>> layer = nn.ReLU()
        >>> paper_flops(nn.Sequential(layer, layer), shape=(1, 4, 10, 10))
        400
    """
    bare = _bare(model)
    counts: dict[nn.Module, int] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts[module] = _madds(module, inputs[0], output)

    for module in bare.modules():
        if not any(module.children()) and type(module) in _MADDS:
            module.register_forward_hook(note)
    with torch.no_grad():
        bare(_input(bare, shape))
    return sum(counts.values())


def file_bytes(model: nn.Module) -> int:
    """Bytes of a file that `torch.save(model.state_dict(), ...)` would write.

    Args:
        model: its values do not matter, nor whether it has any.
    """
    state = model.state_dict()  # an OrderedDict with a note on versions, which is saved too
    for name, tensor in state.items():
        state[name] = torch.empty_like(tensor, device="cpu")
    writer = _Counter()
    torch.save(state, cast("IO[bytes]", writer))
    return writer.count


class _Counter(io.RawIOBase):
    """A file that keeps nothing but its length."""

    count = 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Count what would be written."""
        size = memoryview(data).nbytes
        self.count += size
        return size

    def writable(self) -> bool:
        """It is."""
        return True


def _bare(model: nn.Module) -> nn.Module:
    """The same network in inference mode, without memory."""
    return copy.deepcopy(model).to("meta").eval()


def _input(bare: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """An input of the network's own precision."""
    dtype = next((p.dtype for p in bare.parameters()), torch.float32)
    return torch.empty(shape, dtype=dtype, device="meta")


def _per_output(module: nn.Conv2d | nn.ConvTranspose2d, inputs: int) -> int:
    products = math.prod(module.kernel_size) * (inputs // module.groups)
    return 2 * products - (module.bias is None)


def _convolution(module: nn.Conv2d, x: Tensor, y: Tensor) -> int:
    return _per_output(module, x.shape[1]) * y[0].numel()


def _transposed(module: nn.ConvTranspose2d, x: Tensor, y: Tensor) -> int:
    return _per_output(module, x.shape[1]) * x[0, 0].numel() * y.shape[1]


def _average_pool(module: nn.AvgPool2d, x: Tensor, y: Tensor) -> int:
    return _window(module.kernel_size) * y[0].numel()


def _max_pool(module: nn.MaxPool2d, x: Tensor, y: Tensor) -> int:
    return (_window(module.kernel_size) - 1) * y[0].numel()


def _relu(module: nn.Module, x: Tensor, y: Tensor) -> int:
    return x[0].numel()


def _window(size: int | tuple[int, ...]) -> int:
    return math.prod(size) if isinstance(size, tuple) else size * size


_MADDS: dict[type[nn.Module], Callable[..., int]] = {
    nn.AvgPool2d: _average_pool,
    nn.Conv2d: _convolution,
    nn.ConvTranspose2d: _transposed,
    nn.MaxPool2d: _max_pool,
    nn.ReLU: _relu,
}
"""torchstat knows a few more kinds (norms, linear layers), which none of these networks has."""


def _madds(module: nn.Module, x: Tensor, y: Tensor) -> int:
    return _MADDS[type(module)](module, x, y)
