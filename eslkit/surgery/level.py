"""The inserted level: a self-contained module made after a model's own innermost level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from eslkit.surgery.inserted import Inserted

__all__ = ["Inserted", "Level", "LevelBuilder", "LevelStyle", "TakenOutInParts", "layer_of"]

_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_UP: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_MAX: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_AVERAGE: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_BATCH: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE: dict[int, Any] = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


@dataclass(frozen=True)
class LevelStyle:
    """How a model builds its innermost level, read off its graph."""

    dims: int
    """Spatial dimensions, 1 to 3."""
    kernel: int
    """Positions a side of the convolutions' kernels; odd."""
    bias: bool
    activation: Callable[[], nn.Module]
    """Makes the activation."""
    norm: str
    """`batch`, `instance`, `instance-affine`, `group`, `channel` (a layer norm over the channels
    of every position) or `none`."""
    norm_groups: int
    down: str
    """`max`, `average` or `conv`."""
    up: str
    """`transposed`, `shuffle`, or the mode of an interpolation."""
    merge: str
    """`concat` or `add`."""
    strides: tuple[int, ...] = ()
    """Step of the reduction along each axis; 2 where left out."""
    depthwise: bool = False
    """Whether the convolutions over positions work on every channel alone, and those that mix
    channels on every position alone."""
    ranges: frozenset[str] = field(default_factory=frozenset[str])
    """What is known of the values on the edge: `nonnegative`, `activated` (they are values of the
    activation)."""


class LevelBuilder(Protocol):
    """Makes the module of a level, where the user wants another than the model's own kind."""

    def __call__(self, style: LevelStyle, width: int) -> nn.Module:
        """A module that maps (batch, width, *positions) to the same shape.

        Args:
            style: how the model builds its innermost level.
            width: channels on the edge where the level is inserted.
        """
        ...


@runtime_checkable
class TakenOutInParts(Protocol):
    """What a level offers that is taken out in two steps, the middle first.

    A level of the user's own without these goes in one step.
    """

    @property
    def flattened(self) -> bool:
        """Whether the middle has been taken out."""
        ...

    def take_out_middle(self) -> None:
        """Take the middle out, in place; `flattened` is true from then on."""
        ...


class ChannelNorm(nn.Module):
    """Layer norm over the channels of every position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


def _norm(style: LevelStyle, width: int) -> nn.Module:
    if style.norm == "batch":
        return _BATCH[style.dims](width)
    if style.norm.startswith("instance"):
        return _INSTANCE[style.dims](width, affine=style.norm == "instance-affine")
    if style.norm == "group":
        groups = style.norm_groups if width % style.norm_groups == 0 else 1
        return nn.GroupNorm(groups, width)
    return ChannelNorm(width) if style.norm == "channel" else nn.Identity()


class Block(nn.Module):
    """Convolution, the model's norm, the model's activation.

    In the depthwise form the convolution mixes the channels of a position, and a second one, the
    spread, the positions of a channel.
    """

    def __init__(
        self,
        style: LevelStyle,
        inputs: int,
        width: int,
        *,
        norm: bool = True,
        activation: bool = True,
    ) -> None:
        super().__init__()
        make, kernel = _CONV[style.dims], style.kernel
        around: dict[str, Any] = {"padding": kernel // 2, "bias": style.bias}
        if style.depthwise:
            self.conv = make(inputs, width, 1, bias=False)
            self.spread = make(width, width, kernel, groups=width, **around)
        else:
            self.conv = make(inputs, width, kernel, **around)
            self.spread = nn.Identity()
        self.norm = _norm(style, width) if norm else nn.Identity()
        self.act = style.activation() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.spread(self.conv(x))))


def _down(style: LevelStyle, width: int) -> nn.Module:
    steps = style.strides or (2,) * style.dims
    if style.down == "conv":
        kernels = tuple(2 * ((step + 1) // 2) + 1 for step in steps)
        padding = tuple(kernel // 2 for kernel in kernels)
        make, groups = _CONV[style.dims], width if style.depthwise else 1
        return make(
            width, width, kernels, stride=steps, padding=padding, groups=groups, bias=style.bias
        )
    return (_MAX if style.down == "max" else _AVERAGE)[style.dims](steps, ceil_mode=True)


def _up(style: LevelStyle, inputs: int, width: int) -> nn.Module:
    steps = style.strides or (2,) * style.dims
    make = _CONV[style.dims]
    if style.up == "transposed" and style.depthwise:
        spread = _UP[style.dims](width, width, steps, stride=steps, groups=width)
        return nn.Sequential(make(inputs, width, 1, bias=False), spread)
    if style.up == "transposed":
        return _UP[style.dims](inputs, width, steps, stride=steps)
    if style.up == "shuffle" and style.dims == 2 and len(set(steps)) == 1:
        factor = steps[0]
        conv = nn.Conv2d(inputs, factor**2 * width, 1)
        return nn.Sequential(conv, nn.PixelShuffle(factor))
    mode = "nearest" if style.up == "shuffle" else style.up
    upsample = nn.Upsample(scale_factor=tuple(float(step) for step in steps), mode=mode)
    around: dict[str, Any] = {"padding": style.kernel // 2}
    if style.depthwise:
        spread = make(width, width, style.kernel, groups=width, **around)
        return nn.Sequential(make(inputs, width, 1, bias=False), upsample, spread)
    return nn.Sequential(upsample, make(inputs, width, style.kernel, **around))


class Level(nn.Module):
    """One more level: entry, [down, two blocks, up, joined with the skip], exit.

    Any spatial size goes in and comes out: one that the reduction does not divide is rounded up on
    the way down, and cut on the way up.

    Args:
        style: how the model builds its innermost level.
        width: channels that go in and come out.
        inner: channels of the two blocks in the middle.
        kept: channels of the skip connection; `width` where left out.
        norms: whether entry and exit have the model's norm; the middle has it in any case.
        activated: whether the exit ends in the model's activation.
    """

    def __init__(
        self,
        style: LevelStyle,
        width: int,
        inner: int,
        *,
        kept: int | None = None,
        norms: bool = True,
        activated: bool = True,
    ) -> None:
        super().__init__()
        kept = width if kept is None else kept
        joined = width + kept if style.merge == "concat" else kept
        self.merge = style.merge
        self.entry = Block(style, width, kept, norm=norms)
        self.down: nn.Module | None = _down(style, kept)
        self.middle1: nn.Module | None = Block(style, kept, inner)
        self.middle2: nn.Module | None = Block(style, inner, inner)
        self.up: nn.Module | None = _up(style, inner, joined - kept or kept)
        self.exit = Block(style, joined, width, norm=norms, activation=activated)

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


def layer_of(name: str, args: tuple[Any, ...]) -> Callable[[], nn.Module] | None:
    """A factory for the activation that an ATen operation computes; None for other operations."""
    numbers = [a for a in args if isinstance(a, (int, float))]
    slope = float(numbers[0]) if numbers else 0.01
    low, high = (float(numbers[0]), float(numbers[1])) if len(numbers) > 1 else (-1.0, 1.0)
    table: dict[str, Callable[[], nn.Module]] = {
        "leaky_relu": lambda: nn.LeakyReLU(slope),
        "relu": nn.ReLU,
        "hardtanh": lambda: nn.Hardtanh(low, high),
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "elu": lambda: nn.ELU(slope) if numbers else nn.ELU(),
        "mish": nn.Mish,
        "hardswish": nn.Hardswish,
        "softplus": nn.Softplus,
        "_prelu_kernel": nn.PReLU,
    }
    return table.get(name)
