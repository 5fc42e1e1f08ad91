"""Norms, activations with parameters, bare parameters, embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.eslkit.families.family import BATCH, CONV, DIMS, Family, Written, conv

__all__ = ["FAMILIES"]

MADE = ("nothing with parameters produces", "picks positions by index")
"""Why a table that the code makes, and rows picked from one, are no channels."""
FIXED = ("size there is fixed",)
"""Why positions that stand in parameters are no channels."""
INSTANCE: dict[int, Any] = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def around(make: Callable[[int, int], nn.Module]) -> Callable[[int, int, int], nn.Module]:
    """A norm or activation of (width, dims) between two convolutions, twice."""

    def block(a: int, b: int, dims: int) -> nn.Module:
        return nn.Sequential(
            conv(dims, a, a, 3), make(a, dims), nn.ReLU(), conv(dims, a, 2 * a), make(2 * a, dims),
            conv(dims, 2 * a, b),
        )  # fmt: skip

    return block


def vector(width: int, dims: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(1, width, *(1,) * dims))


def unaffine_layer(width: int, dims: int) -> nn.Module:
    """Layer norm over channels last, sizes read off the tensor."""

    def use(m: Written, x: Tensor) -> Tensor:
        y = x.movedim(1, -1)
        return F.layer_norm(y, y.shape[-1:]).movedim(-1, 1)

    return Written(use)


def layer_last(width: int, dims: int) -> nn.Module:
    use: Any = lambda m, x: m.norm(x.movedim(1, -1)).movedim(-1, 1)  # noqa: E731
    return Written(use, norm=nn.LayerNorm(width))


def rms_last(width: int, dims: int) -> nn.Module:
    use: Any = lambda m, x: m.norm(x.movedim(1, -1)).movedim(-1, 1)  # noqa: E731
    return Written(use, norm=nn.RMSNorm(width, eps=1e-6))


def layer_by_hand(width: int, dims: int) -> nn.Module:
    """Mean and variance over channels first (ConvNeXt, NAFNet)."""

    def use(m: Written, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        return m.weight * ((x - mean) / torch.sqrt(var + 1e-6)) + m.bias

    return Written(use, weight=vector(width, dims), bias=vector(width, dims))


def layer_with_var(width: int, dims: int) -> nn.Module:
    """As above, by torch.var over channels last, bias-free (Restormer)."""

    def use(m: Written, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        y = y / torch.sqrt(y.var(-1, keepdim=True, unbiased=False) + 1e-5) * m.weight
        return y.transpose(1, 2).reshape(x.shape)

    return Written(use, weight=nn.Parameter(torch.ones(width)))


def rms_normalised(width: int, dims: int) -> nn.Module:
    """F.normalize over channels, times the root of their number."""

    def use(m: Written, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * m.g * x.shape[1] ** 0.5

    return Written(use, g=vector(width, dims))


def responses(width: int, dims: int) -> nn.Module:
    """Global response norm (ConvNeXt 2)."""

    def use(m: Written, x: Tensor) -> Tensor:
        size = x.flatten(2).norm(dim=2).reshape(*x.shape[:2], *(1,) * (x.dim() - 2))
        return m.gamma * (x * (size / (size.mean(1, keepdim=True) + 1e-6))) + m.beta + x

    return Written(use, gamma=vector(width, dims), beta=vector(width, dims))


def filter_responses(width: int, dims: int) -> nn.Module:
    """Filter response norm with a threshold a channel (FRN, TLU)."""

    def use(m: Written, x: Tensor) -> Tensor:
        power = x.square().mean(tuple(range(2, x.dim())), keepdim=True)
        return torch.maximum(m.gamma * x * torch.rsqrt(power + m.eps.abs()) + m.beta, m.tau)

    layers = {name: vector(width, dims) for name in ("gamma", "beta", "tau")}
    return Written(use, eps=nn.Parameter(torch.tensor(1e-4)), **layers)


def groups_by_hand(width: int, dims: int) -> nn.Module:
    """Group norm as view, mean and var."""

    def use(m: Written, x: Tensor) -> Tensor:
        y = x.reshape(x.shape[0], 4, -1)
        y = (y - y.mean(-1, keepdim=True)) * torch.rsqrt(
            y.var(-1, keepdim=True, unbiased=False) + 1e-5
        )
        return y.reshape(x.shape) * m.weight + m.bias

    return Written(use, weight=vector(width, dims), bias=vector(width, dims))


def tracked_instance(width: int, dims: int) -> nn.Module:
    return INSTANCE[dims](width, affine=True, track_running_stats=True)


def half_instance(a: int, b: int, dims: int) -> nn.Module:
    """Instance norm on one half of the channels (HINet)."""

    def use(m: Written, x: Tensor) -> Tensor:
        left, right = m.enter(x).chunk(2, 1)
        return m.out(torch.cat([m.norm(left), right], 1).relu())

    norm = INSTANCE[dims](a // 2, affine=True)
    return Written(use, enter=conv(dims, a, a, 3), norm=norm, out=conv(dims, a, b))


def spatially_adaptive(a: int, b: int, dims: int) -> nn.Module:
    """A norm without parameters, scale and shift from a map (SPADE)."""

    def use(m: Written, x: Tensor) -> Tensor:
        told = m.look(x).relu()
        return m.out(m.norm(x) * (1 + m.scale(told)) + m.shift(told))

    layers = {n: conv(dims, 8, a, 3) for n in ("scale", "shift")}
    norm = BATCH[dims](a, affine=False)
    return Written(use, look=conv(dims, a, 8), norm=norm, out=conv(dims, a, b), **layers)


def over_everything(a: int, b: int, dims: int) -> nn.Module:
    """Layer norm over channels and positions together: as many parameters as elements."""
    norm = nn.LayerNorm([a, *(8,) * dims])
    return nn.Sequential(conv(dims, a, a, 3), norm, conv(dims, a, b, 3))


def standardised(a: int, b: int, dims: int) -> nn.Module:
    """Weights brought to mean 0 and variance 1 when the model runs (weight standardisation)."""

    def use(m: Written, x: Tensor) -> Tensor:
        w = m.layer.weight
        axes = tuple(range(1, w.dim()))
        w = (w - w.mean(axes, keepdim=True)) / (w.var(axes, keepdim=True) + 1e-5).sqrt()
        run = getattr(F, f"conv{dims}d")
        return m.out(run(x, w, m.layer.bias, padding=1))

    return Written(use, layer=conv(dims, a, a, 3), out=conv(dims, a, b))


def prelu(*, channels: bool) -> Callable[[int, int], nn.Module]:
    return lambda width, dims: nn.PReLU(width if channels else 1)


def scaled_layer(width: int, dims: int) -> nn.Module:
    """Layer scale, first of channels first, then of channels last, and one number (ReZero)."""

    def use(m: Written, x: Tensor) -> Tensor:
        x = x + m.first * x
        x = x + (x.movedim(1, -1) * m.last).movedim(-1, 1)
        return x + m.alpha * x

    last = nn.Parameter(torch.ones(width))
    return Written(use, first=vector(width, dims), last=last, alpha=nn.Parameter(torch.zeros(1)))


def noise(width: int, dims: int) -> nn.Module:
    """Noise with a strength a channel (StyleGAN); none in eval, as drawn numbers are no test."""

    def use(m: Written, x: Tensor) -> Tensor:
        drawn = torch.randn(x.shape[0], 1, *x.shape[2:], dtype=x.dtype) * float(m.training)
        return x + m.strength * drawn

    return Written(use, strength=vector(width, dims))


def positional(a: int, b: int, dims: int) -> nn.Module:
    """A learned map of positions, one for tokens, and one per axis."""

    def use(m: Written, x: Tensor) -> Tensor:
        x = x + m.whole
        x = x + m.tokens.transpose(1, 2).reshape(1, -1, *x.shape[2:])
        return m.out(x + m.axis)

    whole = nn.Parameter(torch.randn(1, a, *(8,) * dims))
    tokens = nn.Parameter(torch.randn(1, 8**dims, a))
    axis = nn.Parameter(torch.randn(1, a, 8, *(1,) * (dims - 1)))
    out = CONV[dims](a, b, 3, padding=1)
    return Written(use, whole=whole, tokens=tokens, axis=axis, out=out)


def interpolated(a: int, b: int, dims: int) -> nn.Module:
    """A learned map of positions at another size."""

    def use(m: Written, x: Tensor) -> Tensor:
        return m.out(x + F.interpolate(m.map, size=x.shape[2:], mode="bilinear"))

    return Written(use, map=nn.Parameter(torch.randn(1, a, 5, 5)), out=conv(dims, a, b, 3))


def waves(a: int, b: int, dims: int) -> nn.Module:
    """A fixed table of sines with a column for every channel, held as a buffer."""
    place = torch.arange(8**dims)[:, None] * torch.exp(-torch.arange(0, a, 2) / a * 9)
    table = torch.stack([place.sin(), place.cos()], -1).flatten(1)

    def use(m: Written, x: Tensor) -> Tensor:
        return m.out(x + m.table.t().reshape(1, -1, *x.shape[2:]))

    made = Written(use, out=conv(dims, a, b, 3))
    made.register_buffer("table", table)
    return made


def waves_made(a: int, b: int, dims: int) -> nn.Module:
    """The table made in the forward pass, from the number of channels there."""

    def use(m: Written, x: Tensor) -> Tensor:
        width = x.shape[1]
        steps = torch.exp(-torch.arange(0, width, 2) / width * 9).to(x.dtype)
        place = torch.arange(x[0, 0].numel())[:, None] * steps
        table = torch.cat([place.sin(), place.cos()], -1)
        return m.out(x + table.t().reshape(1, -1, *x.shape[2:]))

    return Written(use, out=conv(dims, a, b, 3))


class Timed(nn.Module):
    """A time's embedding as scale and shift, from a time that the block makes itself."""

    def __init__(self, a: int, b: int, dims: int) -> None:
        super().__init__()
        self.width = a
        self.time = nn.Sequential(nn.Linear(a, 2 * a), nn.SiLU(), nn.Linear(2 * a, 2 * a))
        self.label = nn.Embedding(5, 2 * a)
        self.told = nn.Linear(2 * a, 2 * a)
        self.norm = nn.GroupNorm(4, a)
        self.first, self.second = conv(dims, a, a, 3), conv(dims, a, b, 3)

    def forward(self, x: Tensor) -> Tensor:
        half = self.width // 2
        steps = torch.exp(-math.log(10000) * torch.arange(half, dtype=x.dtype) / half)
        time = torch.full((x.shape[0], 1), 3.0, dtype=x.dtype) * steps
        told = self.time(torch.cat([time.cos(), time.sin()], 1))
        told = self.told(told + self.label(torch.ones(x.shape[0], dtype=torch.int64)))
        scale, shift = told.reshape(*told.shape, *(1,) * (x.dim() - 2)).chunk(2, 1)
        return self.second(F.silu(self.norm(self.first(x)) * (1 + scale) + shift))


FAMILIES = (
    Family("batch-norm", around(lambda w, d: BATCH[d](w)), DIMS),
    Family("batch-norm-bare", around(lambda w, d: BATCH[d](w, affine=False)), DIMS),
    Family("sync-batch-norm", around(lambda w, d: nn.SyncBatchNorm(w)), DIMS),
    Family("instance-norm", around(lambda w, d: INSTANCE[d](w, affine=True)), DIMS),
    Family("instance-norm-bare", around(lambda w, d: INSTANCE[d](w)), DIMS),
    Family("instance-norm-tracked", around(tracked_instance), DIMS),
    Family("half-instance-norm", half_instance, DIMS),
    Family("group-norm", around(lambda w, d: nn.GroupNorm(4, w)), DIMS, mixes=True),
    Family("group-norm-one", around(lambda w, d: nn.GroupNorm(1, w)), DIMS, mixes=True),
    Family("group-norm-each", around(lambda w, d: nn.GroupNorm(w, w)), DIMS),
    Family("group-norm-by-hand", around(groups_by_hand), DIMS, mixes=True),
    Family("layer-norm-last", around(layer_last), DIMS, mixes=True),
    Family("layer-norm-bare", around(unaffine_layer), DIMS, mixes=True),
    Family("layer-norm-by-hand", around(layer_by_hand), DIMS, mixes=True),
    Family("layer-norm-var", around(layer_with_var), DIMS, mixes=True),
    Family("layer-norm-all", over_everything, (1, 2), 0.5, mixes=True, keeps=FIXED, anywhere=False),
    Family("rms-norm", around(rms_last), DIMS, mixes=True),
    Family("rms-norm-normalised", around(rms_normalised), DIMS, mixes=True),
    Family("local-response-norm", around(lambda w, d: nn.LocalResponseNorm(3)), DIMS, mixes=True),
    Family("global-response-norm", around(responses), DIMS, mixes=True),
    Family("filter-response-norm", around(filter_responses), DIMS, 0.32),
    Family("spade", spatially_adaptive, DIMS, 0.35),
    Family("weight-standardised", standardised, DIMS, mixes=True),
    Family("prelu", around(prelu(channels=False)), DIMS),
    Family("prelu-channels", around(prelu(channels=True)), DIMS),
    Family("layer-scale", around(scaled_layer), DIMS),
    Family("noise", around(noise), DIMS),
    Family("positional", positional, (2, 1), 0.5, keeps=FIXED, anywhere=False),
    Family("positional-interpolated", interpolated, ratio=0.35, keeps=("is over positions",)),
    Family("waves", waves, (2, 1), keeps=FIXED, anywhere=False),
    Family("waves-made", waves_made, DIMS, mixes=True),
    Family("time", Timed, DIMS, 0.35, mixes=True, keeps=MADE),
)
