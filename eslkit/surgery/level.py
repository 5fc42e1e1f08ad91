"""The inserted level: a self-contained module made after a model's own innermost level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Inserted", "Level", "LevelStyle", "layer_of"]

_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_UP: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_MAX: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_AVERAGE: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_BATCH: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE: dict[int, Any] = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


@dataclass(frozen=True)
class LevelStyle:
    """How a model builds its innermost level."""

    dims: int
    """Spatial dimensions, 1 to 3."""
    kernel: int
    bias: bool
    activation: Callable[[], nn.Module]
    norm: str
    """`batch`, `instance`, `instance-affine`, `group` or `none`."""
    norm_groups: int
    down: str
    """`max`, `average` or `conv`."""
    up: str
    """`transposed`, or the mode of an interpolation."""
    merge: str
    """`concat` or `add`."""


def _norm(style: LevelStyle, width: int) -> nn.Module:
    if style.norm == "batch":
        return _BATCH[style.dims](width)
    if style.norm.startswith("instance"):
        return _INSTANCE[style.dims](width, affine=style.norm == "instance-affine")
    if style.norm == "group":
        groups = style.norm_groups if width % style.norm_groups == 0 else 1
        return nn.GroupNorm(groups, width)
    return nn.Identity()


class Block(nn.Module):
    """Convolution, the model's norm, the model's activation."""

    def __init__(self, style: LevelStyle, inputs: int, width: int) -> None:
        super().__init__()
        make = _CONV[style.dims]
        self.conv = make(inputs, width, style.kernel, padding=style.kernel // 2, bias=style.bias)
        self.norm = _norm(style, width)
        self.act = style.activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


def _down(style: LevelStyle, width: int) -> nn.Module:
    if style.down == "conv":
        return _CONV[style.dims](width, width, 3, stride=2, padding=1, bias=style.bias)
    pool = (_MAX if style.down == "max" else _AVERAGE)[style.dims]
    return pool(2, ceil_mode=True)


def _up(style: LevelStyle, inputs: int, width: int) -> nn.Module:
    if style.up == "transposed":
        return _UP[style.dims](inputs, width, 2, stride=2)
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode=style.up),
        _CONV[style.dims](inputs, width, style.kernel, padding=style.kernel // 2),
    )


class Level(nn.Module):
    """One more level: entry, [down, two blocks, up, joined with the skip], exit.

    Any spatial size goes in and comes out: an odd one is rounded up on the way down, and cut on
    the way up.
    """

    def __init__(self, style: LevelStyle, width: int, inner: int) -> None:
        super().__init__()
        self.merge = style.merge
        self.entry = Block(style, width, width)
        self.down: nn.Module | None = _down(style, width)
        self.middle1: nn.Module | None = Block(style, width, inner)
        self.middle2: nn.Module | None = Block(style, inner, inner)
        self.up: nn.Module | None = _up(style, inner, width)
        self.exit = Block(style, 2 * width if style.merge == "concat" else width, width)

    def forward(self, x: Tensor) -> Tensor:
        """A map of the same shape (batch, width, *positions)."""
        skip = self.entry(x)
        if self.down is None or self.middle1 is None or self.middle2 is None or self.up is None:
            return self.exit(skip)
        below = self.up(self.middle2(self.middle1(self.down(skip))))
        for axis in range(2, skip.dim()):
            below = below.narrow(axis, 0, skip.shape[axis])
        joined = torch.cat([below, skip], 1) if self.merge == "concat" else below + skip
        return self.exit(joined)

    @property
    def flattened(self) -> bool:
        """Whether the middle has been taken out."""
        return self.middle1 is None

    def take_out_middle(self) -> None:
        """First half of layer-shrink-learning: no down, no middle, no up.

        The exit keeps the part of its input that was the skip connection, so that its channels
        still meet the weights that were trained for them.
        """
        self.down = self.middle1 = self.middle2 = self.up = None
        if self.merge != "concat":
            return
        conv = self.exit.conv
        kept = self.entry.conv.out_channels
        with torch.no_grad():
            weight = conv.weight[:, conv.in_channels - kept :].clone()
        conv.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
        conv.in_channels = kept


class Inserted(nn.Module):
    """A module of the user's with an inserted level before or behind it."""

    def __init__(self, body: nn.Module, level: Level, *, before: bool) -> None:
        super().__init__()
        self.body = body
        self.level: Level = level
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        """What the user's module gives, with the level before or behind it."""
        return self.body(self.level(x)) if self.before else self.level(self.body(x))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("body"), name)  # as if it were the user's module


def layer_of(name: str, args: tuple[Any, ...]) -> Callable[[], nn.Module] | None:
    """A factory for the activation that an ATen operation computes; None for other operations."""
    numbers = [a for a in args if isinstance(a, (int, float))]
    slope = float(numbers[0]) if numbers else 0.01
    table: dict[str, Callable[[], nn.Module]] = {
        "leaky_relu": lambda: nn.LeakyReLU(slope),
        "relu": nn.ReLU,
        "hardtanh": nn.ReLU6,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "elu": nn.ELU,
        "mish": nn.Mish,
        "hardswish": nn.Hardswish,
        "softplus": nn.Softplus,
        "_prelu_kernel": nn.PReLU,
    }
    return table.get(name)
