"""What a family is: one kind of operation, as a block that composes with the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BATCH", "CONV", "DIMS", "UP", "Alone", "Family", "Written", "conv", "inputs", "settle"]

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
UP: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
DIMS = (2, 1, 3)

Block = Callable[[int, int, int], nn.Module]


@dataclass(frozen=True)
class Family:
    """A kind of block: (channels in, channels out, dims) -> a module that keeps positions."""

    name: str
    block: Block
    dims: tuple[int, ...] = (2,)
    ratio: float = 0.3
    """The most that may be left of the parameters after halving. Matrices fall to a quarter,
    vectors and depthwise kernels to a half; where those are many, the family says so here."""
    mixes: bool = False
    """Whether one of its operations norms, reduces or takes a softmax over channels."""
    keeps: tuple[str, ...] = ()
    """Words of the reasons why some of its channels may stay; otherwise none may."""
    anywhere: bool = True
    """Whether it works on maps of any size; if not, only of eight positions a side."""
    slow: bool = False
    """Whether its graph grows with the positions (recurrence over them): few of them, then."""

    @property
    def size(self) -> int:
        """Positions a side of the example input."""
        return 4 if self.slow else 8


def conv(dims: int, inputs: int, outputs: int, kernel: int = 1, **more: Any) -> nn.Module:
    """A convolution that keeps positions."""
    return CONV[dims](inputs, outputs, kernel, padding=kernel // 2, **more)


def inputs(channels: int, dims: int, *, size: int = 8, batch: int = 2) -> Tensor:
    """Images of random numbers (batch, channels, *positions), always the same."""
    shape = (batch, channels, *(size,) * dims)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Eval mode, float64, no vector of zeros or ones, statistics unlike those of a new model."""
    generator = torch.Generator().manual_seed(seed)
    model = model.to(torch.float64).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "running_var" in name:
                buffer.uniform_(0.5, 1.5, generator=generator)
            elif "running_mean" in name:
                buffer.normal_(generator=generator)
        for parameter in model.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
                parameter.add_(0.1 * noise)
    return model


class Alone(nn.Module):
    """One block between two convolutions."""

    def __init__(self, family: Family, dims: int, width: int = 16) -> None:
        super().__init__()
        self.stem = conv(dims, 3, width)
        self.block = family.block(width, width, dims)
        self.head = conv(dims, width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)))


_USES: dict[int, Callable[[Any, Tensor], Tensor]] = {}


class Written(nn.Module):
    """Layers, and how they are used, as a function of this module and the input.

    The function is held by number, so that the module can be pickled (within one process).
    """

    def __init__(self, use: Callable[[Any, Tensor], Tensor], **layers: Any) -> None:
        super().__init__()
        self._use = id(use)
        _USES[self._use] = use
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return _USES[self._use](self, x)
