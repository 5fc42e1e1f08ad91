"""Whole encoder-decoders, drawn by Hypothesis: what the laws are held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

__all__ = ["EncoderDecoder", "Form", "forms"]

_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_UP: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_MAX: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_AVERAGE: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_BATCH: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE: dict[int, Any] = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda width: nn.ReLU(),
    "leaky": lambda width: nn.LeakyReLU(0.2, inplace=True),
    "gelu": lambda width: nn.GELU(),
    "prelu": lambda width: nn.PReLU(),
    "prelu-channels": nn.PReLU,
}


@dataclass(frozen=True)
class Form:
    """Everything that a drawn network is made of."""

    dims: int
    widths: tuple[int, ...]
    """Width of every level, the bottleneck's last."""
    skip: str
    norm: str
    activation: str
    down: str
    up: str
    block: str
    bottleneck: str
    in_channels: int
    out_channels: int
    bias: bool
    seed: int

    @property
    def size(self) -> int:
        """Positions a side: four at the bottleneck of flat networks, two of deep ones."""
        return max(8, 2 ** len(self.widths))

    def build(self) -> EncoderDecoder:
        """The network in eval mode, float64, with statistics that are not those of a new one."""
        torch.manual_seed(self.seed)
        model = EncoderDecoder(self).to(torch.float64).eval()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if buffer.is_floating_point():
                    buffer.uniform_(0.5, 1.5) if "var" in name else buffer.normal_()
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    def inputs(self, *, batch: int = 1) -> Tensor:
        """A batch of random images (batch, in_channels, *positions)."""
        shape = (batch, self.in_channels, *(self.size,) * self.dims)
        return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _norm(form: Form, width: int) -> nn.Module:
    if form.norm == "batch":
        return _BATCH[form.dims](width)
    if form.norm == "instance":
        return _INSTANCE[form.dims](width, affine=True)
    if form.norm == "group":
        return nn.GroupNorm(2 if width % 2 == 0 else 1, width)
    if form.norm == "layer":
        return ChannelsLast(width)
    return nn.Identity()


class ChannelsLast(nn.Module):
    """Layer norm over channels, which are moved to the end for it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Unit(nn.Module):
    """Convolution, norm, activation."""

    def __init__(self, form: Form, inputs: int, width: int, *, groups: int = 1) -> None:
        super().__init__()
        self.conv = _CONV[form.dims](inputs, width, 3, padding=1, groups=groups, bias=form.bias)
        self.norm = _norm(form, width)
        self.act = _ACTIVATIONS[form.activation](width)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, max(2, width // 2))
        self.excite = nn.Linear(max(2, width // 2), width)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.flatten(2).mean(2)))))
        return x * gate.reshape(*gate.shape, *(1,) * (x.dim() - 2))


class Block(nn.Module):
    """Two units, of the form's kind."""

    def __init__(self, form: Form, inputs: int, width: int) -> None:
        super().__init__()
        kind = form.block
        self.first = Unit(form, inputs, width)
        even = 2 if width % 2 == 0 else 1
        groups = {"depthwise": width, "grouped": even}.get(kind, 1)
        self.second = Unit(form, width, width, groups=groups)
        self.gate = Gate(width) if kind == "squeeze" else nn.Identity()
        self.residual = kind == "residual"

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        made = self.gate(self.second(x))
        return x + made if self.residual else made


class Attention(nn.Module):
    """Self-attention over positions; heads of one channel would look like channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = 2 if width % 4 == 0 else 1
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return x + mixed.transpose(1, 2).reshape(x.shape)


class Perceptron(nn.Module):
    """Two linear layers at every position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(F.gelu(self.widen(x.movedim(1, -1)))).movedim(-1, 1)


class Up(nn.Module):
    """Up-sampling by two."""

    def __init__(self, form: Form, inputs: int, width: int) -> None:
        super().__init__()
        self.kind = form.up
        if self.kind == "transposed":
            self.layer = _UP[form.dims](inputs, width, 2, stride=2)
        else:
            factor = 4 if self.kind == "shuffle" else 1
            self.layer = _CONV[form.dims](inputs, factor * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        made = self.layer(x)
        if self.kind == "shuffle":
            return F.pixel_shuffle(made, 2)
        return made if self.kind == "transposed" else F.interpolate(made, scale_factor=2)


class EncoderDecoder(nn.Module):
    """A U of the form's depth, with skips of its kind."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        *outer, inner = form.widths
        before = [form.in_channels, *outer]
        both = 2 if form.skip == "concat" else 1
        self.skip = form.skip
        self.encoder = nn.ModuleList(Block(form, a, b) for a, b in zip(before, outer, strict=False))
        self.down = nn.ModuleList(_down(form, width) for width in outer)
        self.enter = Block(form, outer[-1], inner)
        self.inside = {"attention": Attention, "linear": Perceptron}.get(
            form.bottleneck, lambda width: nn.Identity()
        )(inner)
        self.leave = Block(form, inner, inner)
        below = [*form.widths[1:]]
        self.up = nn.ModuleList(Up(form, b, a) for a, b in zip(outer, below, strict=True))
        self.decoder = nn.ModuleList(Block(form, both * width, width) for width in outer)
        self.head = _CONV[form.dims](outer[0], form.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for block, down in zip(self.encoder, self.down, strict=True):
            x = block(x)
            skips.append(x)
            x = down(x)
        x = self.leave(self.inside(self.enter(x)))
        for level in reversed(range(len(skips))):
            x = self.up[level](x)
            if self.skip == "concat":
                x = torch.cat([x, skips[level]], 1)
            elif self.skip == "add":
                x = x + skips[level]
            x = self.decoder[level](x)
        return self.head(x)


def _down(form: Form, width: int) -> nn.Module:
    if form.down == "conv":
        return _CONV[form.dims](width, width, 3, stride=2, padding=1)
    return (_MAX if form.down == "max" else _AVERAGE)[form.dims](2)


@st.composite
def forms(draw: st.DrawFn, *, inside: tuple[str, ...] = ("conv", "linear", "attention")) -> Form:
    """Networks of 1 to 3 dimensions and 1 to 3 reductions, widths 2 to 8."""
    dims = draw(st.sampled_from((2, 1, 3)))
    depth = draw(st.integers(1, 3 if dims < 3 else 2))
    ups = ("transposed", "resize", *(("shuffle",) if dims == 2 else ()))
    return Form(
        dims=dims,
        widths=tuple(draw(st.integers(2, 8)) for _ in range(depth + 1)),
        skip=draw(st.sampled_from(("concat", "add", "none"))),
        norm=draw(st.sampled_from(("none", "batch", "instance", "group", "layer"))),
        activation=draw(st.sampled_from(tuple(_ACTIVATIONS))),
        down=draw(st.sampled_from(("max", "average", "conv"))),
        up=draw(st.sampled_from(ups)),
        block=draw(st.sampled_from(("plain", "residual", "depthwise", "grouped", "squeeze"))),
        bottleneck=draw(st.sampled_from(inside)),
        in_channels=draw(st.integers(1, 4)),
        out_channels=draw(st.integers(1, 4)),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )
