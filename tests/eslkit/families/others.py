"""Positions, recurrence, Fourier blocks, weights that are computed, modules used again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import utils as OLD
from torch.nn.utils import parametrizations as NEW
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

from tests.eslkit.families.attention import tokens, untokens
from tests.eslkit.families.family import CONV, DIMS, Family, Written, conv

__all__ = ["FAMILIES"]

SIZES = ("size there is fixed", "flattens it together with channels")
"""Why positions, heads and frequencies that stand in parameters are no channels."""
MODE = {1: "linear", 2: "bilinear", 3: "trilinear"}


def unpooled(a: int, b: int, dims: int) -> nn.Module:
    """Max pooling that gives indices, unpooling that reads them (SegNet)."""

    def use(m: Written, x: Tensor) -> Tensor:
        low, where = m.pool(m.enter(x))
        return m.out(m.unpool(m.mid(low).relu(), where, output_size=x.shape))

    pool = getattr(nn, f"MaxPool{dims}d")(2, return_indices=True)
    layers = {"enter": conv(dims, a, a, 3), "mid": conv(dims, a, a, 3), "pool": pool}
    return Written(use, unpool=getattr(nn, f"MaxUnpool{dims}d")(2), out=conv(dims, a, b), **layers)


def warped(a: int, b: int, dims: int) -> nn.Module:
    """Features sampled at places that the network predicts."""

    def use(m: Written, x: Tensor) -> Tensor:
        theta = torch.eye(2, 3, dtype=x.dtype).expand(x.shape[0], 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        grid = grid + m.flow(x).permute(0, 2, 3, 1).tanh()
        return m.out(F.grid_sample(x, grid, padding_mode="border", align_corners=False))

    return Written(use, flow=conv(dims, a, 2, 3), out=conv(dims, a, b, 3))


def resized(a: int, b: int, dims: int) -> nn.Module:
    """Interpolation to another tensor's size, padding and cropping to fit."""

    def use(m: Written, x: Tensor) -> Tensor:
        low = m.low(F.avg_pool1d(x, 3) if dims == 1 else F.interpolate(x, scale_factor=0.4))
        up = F.interpolate(low, size=x.shape[2:], mode=MODE[dims], align_corners=False)
        return m.out(torch.cat([x, up], 1))

    return Written(use, low=conv(dims, a, 2 * a, 3), out=conv(dims, 3 * a, b))


def pyramid(a: int, b: int, dims: int) -> nn.Module:
    """Pooled at several sizes, each with a layer, brought back and joined (PSPNet)."""
    pool = getattr(F, f"adaptive_avg_pool{dims}d")

    def use(m: Written, x: Tensor) -> Tensor:
        made = [F.interpolate(m.layers[i](pool(x, 2**i)), size=x.shape[2:]) for i in range(3)]
        return m.out(torch.cat([x, *made], 1))

    layers = nn.ModuleList(conv(dims, a, a // 2) for _ in range(3))
    return Written(use, layers=layers, out=conv(dims, a + 3 * (a // 2), b))


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty(x.shape[0], *(1,) * (x.dim() - 1)).bernoulli_(0.9) / 0.9


def dropped(a: int, b: int, dims: int) -> nn.Module:
    drop: type[nn.Module] = getattr(nn, f"Dropout{dims}d")
    return nn.Sequential(
        conv(dims, a, a, 3), nn.Dropout(), drop(0.2), nn.AlphaDropout(0.1), DropPath(),
        conv(dims, a, b),
    )  # fmt: skip


def fourier(a: int, b: int, dims: int) -> nn.Module:
    """Real and imaginary parts side by side through a convolution (FFC, MIMO-UNet)."""

    def use(m: Written, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho")
        made = m.mix(torch.cat([spectrum.real, spectrum.imag], 1)).relu()
        real, imag = made.chunk(2, 1)
        back = torch.fft.irfft2(torch.complex(real, imag), s=x.shape[2:], norm="ortho")
        return m.out(x + back)

    return Written(use, mix=conv(dims, 2 * a, 2 * a), out=conv(dims, a, b))


def fourier_stacked(a: int, b: int, dims: int) -> nn.Module:
    """Real and imaginary parts in turn (LaMa's spectral transform)."""

    def use(m: Written, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x)
        pairs = torch.view_as_real(spectrum).permute(0, 1, 4, 2, 3).flatten(1, 2)
        made = m.mix(pairs).relu().unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2).contiguous()
        return m.out(x + torch.fft.irfft2(torch.view_as_complex(made), s=x.shape[2:]))

    return Written(use, mix=conv(dims, 2 * a, 2 * a), out=conv(dims, a, b))


def spectral_layer(a: int, b: int, dims: int) -> nn.Module:
    """Complex weights on the lowest frequencies, written into a tensor of zeros (FNO)."""

    def use(m: Written, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x)
        weight = torch.view_as_complex(m.weight)
        made = spectrum.new_zeros(x.shape[0], weight.shape[1], *spectrum.shape[2:])
        low = torch.einsum("bihw,iohw->bohw", spectrum[..., :3, :3], weight)
        made[..., :3, :3] = low
        return m.out(torch.fft.irfft2(made, s=x.shape[2:]))

    return Written(use, weight=nn.Parameter(torch.randn(a, a, 3, 3, 2) / a), out=conv(dims, a, b))


def recurrent(make: Callable[[int], nn.Module], times: int) -> Callable[[int, int, int], nn.Module]:
    def block(a: int, b: int, dims: int) -> nn.Module:
        def use(m: Written, x: Tensor) -> Tensor:
            made, _ = m.cell(tokens(x))
            return untokens(m.back(made), x)

        return Written(use, cell=make(a), back=nn.Linear(times * a, b))

    return block


def cells(a: int, b: int, dims: int) -> nn.Module:
    """A GRU and an LSTM cell, called a few times by hand."""

    def use(m: Written, x: Tensor) -> Tensor:
        told = x.flatten(2).mean(2)
        state = torch.zeros_like(told)
        hidden = (state, state)
        for _ in range(2):
            state = m.gru(told, state)
            hidden = m.lstm(state, hidden)
        return m.out(x * hidden[0].reshape(*told.shape, *(1,) * dims))

    return Written(use, gru=nn.GRUCell(a, a), lstm=nn.LSTMCell(a, a), out=conv(dims, a, b))


def convolutional_memory(a: int, b: int, dims: int) -> nn.Module:
    """A convolutional LSTM, its state made of zeros."""

    def use(m: Written, x: Tensor) -> Tensor:
        width = m.gates.out_channels // 4
        h = c = x.new_zeros(x.shape[0], width, *x.shape[2:])
        for _ in range(2):
            i, f, o, g = m.gates(torch.cat([x, h], 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return m.out(h)

    return Written(use, gates=conv(dims, 2 * a, 4 * a, 3), out=conv(dims, a, b))


def with_weight(change: Callable[[nn.Module], nn.Module]) -> Callable[[int, int, int], nn.Module]:
    """A convolution and a linear layer whose weights are computed, twice."""

    def block(a: int, b: int, dims: int) -> nn.Module:
        def use(m: Written, x: Tensor) -> Tensor:
            y = m.first(x).relu()
            return m.last(m.mid(y.movedim(1, -1)).movedim(-1, 1))

        layers = {"first": conv(dims, a, 2 * a, 3), "mid": nn.Linear(2 * a, a)}
        made = {name: change(layer) for name, layer in layers.items()}
        return Written(use, last=conv(dims, a, b), **made)

    return block


class Product(nn.Module):
    """A convolution's kernel as a product of three (ExpandNets, contracted in the forward)."""

    def __init__(self, a: int, b: int, dims: int) -> None:
        super().__init__()
        kernel = (3,) * dims
        self.first = nn.Parameter(torch.randn(2 * a, a) / a)
        self.mid = nn.Parameter(torch.randn(2 * b, 2 * a, *kernel) / a)
        self.last = nn.Parameter(torch.randn(b, 2 * b) / b)
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.einsum("oq,qp...->op...", self.last, self.mid)
        weight = torch.einsum("op...,pi->oi...", weight, self.first)
        return getattr(F, f"conv{self.dims}d")(x, weight, padding=1)


def branches(a: int, b: int, dims: int) -> nn.Module:
    """Kernels of two sizes and an identity summed before the convolution (RepVGG)."""

    def use(m: Written, x: Tensor) -> Tensor:
        small = F.pad(m.small.weight, [1, 1] * dims)
        run = getattr(F, f"conv{dims}d")
        return m.out(run(x, m.large.weight + small, m.large.bias, padding=1))

    layers = {"large": conv(dims, a, a, 3), "small": conv(dims, a, a, bias=False)}
    return Written(use, out=conv(dims, a, b), **layers)


def low_rank(a: int, b: int, dims: int) -> nn.Module:
    """A weight and a product of two slim ones (LoRA)."""

    def use(m: Written, x: Tensor) -> Tensor:
        return F.linear(x.movedim(1, -1), m.base.weight + m.up @ m.down, m.base.bias).movedim(-1, 1)

    slim = {"up": nn.Parameter(torch.randn(b, 4) / 9), "down": nn.Parameter(torch.randn(4, a) / 9)}
    return Written(use, base=nn.Linear(a, b), **slim)


class Scaled(nn.Module):
    """A learning rate equalised by a factor that stays what it was when the layer was made."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor


def equalised(layer: nn.Module) -> nn.Module:
    factor = layer.weight[0].numel() ** -0.5
    parametrize.register_parametrization(layer, "weight", Scaled(factor))
    return layer


def weight_norm_old(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return OLD.weight_norm(layer)


def pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.3)


def used_again(a: int, b: int, dims: int) -> nn.Module:
    """One block at two places, its inputs and outputs so tied (recursive networks)."""

    def use(m: Written, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + m.block(x)
        return m.out(x)

    block = nn.Sequential(conv(dims, a, 2 * a, 3), nn.ReLU(), conv(dims, 2 * a, a))
    return Written(use, block=block, out=conv(dims, a, b))


def siamese(a: int, b: int, dims: int) -> nn.Module:
    """One encoder over two inputs, which are then joined."""

    def use(m: Written, x: Tensor) -> Tensor:
        left, right = m.enter(x), m.enter(x.flip(2))
        return m.out(torch.cat([left, right, (left - right).abs()], 1))

    return Written(use, enter=conv(dims, a, a, 3), out=conv(dims, 3 * a, b))


def tied(a: int, b: int, dims: int) -> nn.Module:
    """An auto-encoder whose decoder is its encoder's weight, turned round."""

    def use(m: Written, x: Tensor) -> Tensor:
        hidden = m.enter(x.movedim(1, -1)).relu()
        return m.out(F.linear(hidden, m.enter.weight.t(), m.bias).movedim(-1, 1))

    bias = nn.Parameter(torch.zeros(a))
    return Written(use, enter=nn.Linear(a, 4 * a), bias=bias, out=conv(dims, a, b))


def tied_layers(a: int, b: int, dims: int) -> nn.Module:
    one, two = conv(dims, a, a, 3), conv(dims, a, a, 3)
    two.weight = one.weight
    return nn.Sequential(one, nn.ReLU(), two, conv(dims, a, b))


def checkpointed(a: int, b: int, dims: int) -> nn.Module:
    def use(m: Written, x: Tensor) -> Tensor:
        return m.out(checkpoint(m.work, x, use_reentrant=False))

    work = nn.Sequential(conv(dims, a, 2 * a, 3), nn.ReLU(), conv(dims, 2 * a, a))
    return Written(use, work=work, out=conv(dims, a, b))


def sampled(a: int, b: int, dims: int) -> nn.Module:
    """Mean and spread by chunk, noise in train mode only (VAE)."""

    def use(m: Written, x: Tensor) -> Tensor:
        mean, spread = m.enter(x).chunk(2, 1)
        drawn = torch.randn_like(mean) if m.training else torch.zeros_like(mean)
        return m.out(mean + drawn * (0.5 * spread.clamp(-30, 20)).exp())

    return Written(use, enter=conv(dims, a, 2 * a, 3), out=conv(dims, a, b))


def listed(a: int, b: int, dims: int) -> nn.Module:
    """Parameters in lists and dicts, one of them stacked for several branches."""

    def use(m: Written, x: Tensor) -> Tensor:
        for scale in m.scales:
            x = x * scale.reshape(1, -1, *(1,) * dims)
        weight = m.held["weight"].unbind(0)
        y = sum(torch.einsum("bcn,dc->bdn", x.flatten(2), w) for w in weight)
        return m.out(y.reshape(x.shape[0], -1, *x.shape[2:]))

    scales = nn.ParameterList(nn.Parameter(torch.ones(a)) for _ in range(2))
    held = nn.ParameterDict({"weight": nn.Parameter(torch.randn(3, 2 * a, a) / a)})
    return Written(use, scales=scales, held=held, out=conv(dims, 2 * a, b))


def attribute_widths(a: int, b: int, dims: int) -> nn.Module:
    """The module's own code uses a number of channels that it keeps."""

    def use(m: Any, x: Tensor) -> Tensor:
        y = m.enter(x).view(x.shape[0], m.hidden, -1)
        return m.out(y.view(x.shape[0], m.hidden, *x.shape[2:]))

    return Written(use, enter=CONV[dims](a, 2 * a, 1), hidden=2 * a, out=conv(dims, 2 * a, b))


FAMILIES = (
    Family("unpooled", unpooled, DIMS),
    Family("warped", warped, ratio=0.35, keeps=("reads positions",)),
    Family("resized", resized, DIMS),
    Family("pyramid", pyramid, DIMS),
    Family("dropped", dropped, DIMS),
    Family("fourier", fourier),
    Family("fourier-stacked", fourier_stacked),
    Family("spectral-layer", spectral_layer, keeps=(*SIZES, "pairs two numbers")),
    Family("lstm", recurrent(lambda a: nn.LSTM(a, a, batch_first=True), 1), DIMS, slow=True),
    Family("gru", recurrent(lambda a: nn.GRU(a, a, batch_first=True), 1), DIMS, slow=True),
    Family("rnn", recurrent(lambda a: nn.RNN(a, a, 2, batch_first=True), 1), slow=True),
    Family(
        "lstm-both-ways",
        recurrent(lambda a: nn.LSTM(a, a, 2, batch_first=True, bidirectional=True), 2),
        slow=True,
    ),
    Family(
        "lstm-projected",
        recurrent(lambda a: nn.LSTM(a, 2 * a, proj_size=a, batch_first=True), 1),
        slow=True,
    ),
    Family("cells", cells, DIMS),
    Family("convolutional-memory", convolutional_memory, DIMS),
    Family("weight-norm", with_weight(NEW.weight_norm), DIMS, mixes=True),
    Family("weight-norm-old", with_weight(weight_norm_old), DIMS, mixes=True),
    Family("spectral-norm", with_weight(NEW.spectral_norm), DIMS, mixes=True, keeps=SIZES),
    Family(
        "spectral-norm-old",
        with_weight(OLD.spectral_norm),
        DIMS,
        mixes=True,
        keeps=SIZES,
    ),
    Family(
        "orthogonal",
        with_weight(NEW.orthogonal),
        ratio=1,
        keeps=("no rule", *SIZES),
    ),
    Family("equalised", with_weight(equalised), DIMS),
    Family("pruned", with_weight(pruned), DIMS),
    Family("product", Product, DIMS),
    Family("branches", branches, DIMS, keeps=SIZES),
    Family("low-rank", low_rank, DIMS, 0.4),
    Family("used-again", used_again, DIMS),
    Family("siamese", siamese, DIMS),
    Family("tied", tied, DIMS, mixes=True),
    Family("tied-layers", tied_layers, DIMS),
    Family("checkpointed", checkpointed, DIMS),
    Family("sampled", sampled, DIMS),
    Family("listed", listed, DIMS, keeps=("picked out by unbind",)),
    Family("attribute-widths", attribute_widths, DIMS),
)
