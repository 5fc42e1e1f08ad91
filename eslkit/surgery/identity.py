"""Levels that change nothing: where the activation allows it, and how.

The way through a level is entry, then exit, with the part from below switched off by zero weights.
With an activation `a` it is the identity in one of these forms, each tried on numbers before it is
used:

| form | condition | entry | exit |
|---|---|---|---|
| linear | a(x) = x | x | x |
| kept | the values on the edge are values that `a` leaves alone | a(x) = x | a(x) = x |
| mirrored | a(x) = x for x >= 0, slope x below, no small slope | a(-x) | a(-y / slope) |
| paired | a(x) - a(-x) = gain x | a(x), a(-x), twice the channels | (y - z) / gain |

Paired holds for ReLU, LeakyReLU, GELU, SiLU, Hardswish and Softplus; the exit then ends without an
activation. A norm cannot be the identity, as it depends on the data: entry and exit have none in
such a level, only its middle has.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from eslkit.errors import DepthError
from eslkit.surgery.level import Level, LevelStyle

__all__ = ["Form", "NoIdentityError", "form_of", "identity_level"]

Form = Literal["linear", "kept", "mirrored", "paired"]

_LEAST_SLOPE = 0.1  # below, weights of 1 / slope would upset the training: paired is used instead


class NoIdentityError(DepthError):
    """The activation allows no identity at a place."""


def identity_level(style: LevelStyle, width: int, inner: int, *, where: str) -> Level:
    """A level that gives back what it is given.

    Args:
        style: how the model builds its innermost level.
        width: channels that go in and come out.
        inner: channels of its middle.
        where: the place, for the message.

    Raises:
        NoIdentityError: the activation allows no identity.
    """
    form, number = form_of(style)
    if form is None:
        name = type(style.activation()).__name__
        raise NoIdentityError(
            f"init='preserve': no level at {where} can be the identity with the model's activation "
            f"{name}: neither does {name} leave the values there as they are, nor can x be put "
            f"together from {name}(x) and {name}(-x); use init='random' for the level, or pass "
            "level= with a builder of your own"
        )
    paired = form == "paired"
    level = Level(
        style,
        width,
        inner,
        kept=2 * width if paired else width,
        norms=False,
        activated=not paired,
    )
    sign, gain = (-1.0, -1.0 / number) if form == "mirrored" else (1.0, 1.0 / number)
    with torch.no_grad():
        _diagonal(level.entry.conv.weight, sign)
        if paired:
            _diagonal(level.entry.conv.weight[width:], -1.0)
        level.exit.conv.weight.zero_()
        skip = level.exit.conv.weight[:, -level.entry.conv.out_channels :]
        _diagonal(skip, gain)
        if paired:
            _diagonal(skip[:, width:], -gain)
        for block in (level.entry, level.exit):
            if isinstance(block.spread, nn.modules.conv._ConvNd):  # pyright: ignore[reportPrivateUsage]
                nn.init.dirac_(block.spread.weight, groups=block.spread.groups)
            for layer in (block.conv, block.spread):
                if getattr(layer, "bias", None) is not None:
                    layer.bias.zero_()  # type: ignore[union-attr]
        if style.merge == "add" and level.up is not None:
            for parameter in _last_of(level.up).parameters():
                parameter.zero_()
    return level


def _last_of(up: nn.Module) -> nn.Module:
    """The last layer with weights; were those before it zero too, none of them would learn."""
    layers = [m for m in up.modules() if list(m.parameters(recurse=False))]
    return layers[-1] if layers else up


def _diagonal(weight: Tensor, value: float) -> None:
    """Output i reads input i at the middle of the kernel, as far as there are both."""
    count = min(weight.shape[0], weight.shape[1])
    middle = tuple(side // 2 for side in weight.shape[2:])
    weight[:count, :count].zero_()
    for i in range(count):
        weight[(i, i, *middle)] = value


def form_of(style: LevelStyle) -> tuple[Form | None, float]:
    """The form in which a level of this style can be the identity, with its slope or gain."""
    activation = style.activation().to(torch.float64).eval()
    x = torch.cat([torch.linspace(0, 12, 241), torch.logspace(-6, 4, 101)]).to(torch.float64)[1:]
    with torch.no_grad():
        above, below = activation(x), activation(-x)
        again = activation(above), activation(below)
    if _same(above, x) and _same(below, -x):
        return "linear", 1.0
    if "nonnegative" in style.ranges and _same(above, x):
        return "kept", 1.0
    if "activated" in style.ranges and _same(again[0], above) and _same(again[1], below):
        return "kept", 1.0
    slope = -float(below[-1] / x[-1])
    if _same(above, x) and slope >= _LEAST_SLOPE and _same(below, -slope * x):
        return "mirrored", slope
    gain = float((above[-1] - below[-1]) / x[-1])
    if gain > 0 and _same(above - below, gain * x):
        return "paired", gain
    return None, 0.0


def _same(actual: Tensor, expected: Tensor) -> bool:
    return bool(((actual - expected).abs() <= 1e-10 * (1 + expected.abs())).all())
