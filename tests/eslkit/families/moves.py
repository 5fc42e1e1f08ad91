"""Operations that move channels: shuffles, splits, gates, concatenations, views."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.eslkit.families.family import DIMS, Family, Written, conv

__all__ = ["FAMILIES"]


def channel_shuffle(a: int, b: int, dims: int) -> nn.Module:
    def use(m: Written, x: Tensor) -> Tensor:
        x = m.enter(x).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return m.out(x)

    return Written(use, enter=conv(dims, a, a, 3, groups=2), out=conv(dims, a, b, 3, groups=2))


def shuffle_layer(a: int, b: int, dims: int) -> nn.Module:
    return nn.Sequential(conv(dims, a, a, 3), nn.ChannelShuffle(4), conv(dims, a, b))


def shuffle_unit(a: int, b: int, dims: int) -> nn.Module:
    """Half of the channels worked on, then both halves shuffled (ShuffleNet 2)."""

    def use(m: Written, x: Tensor) -> Tensor:
        kept, worked = x.chunk(2, 1)
        made = torch.cat([kept, m.work(worked)], 1)
        made = made.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return m.out(made)

    half = a // 2
    work = nn.Sequential(conv(dims, half, half), nn.ReLU(), conv(dims, half, half, 3))
    return Written(use, work=work, out=conv(dims, a, b))


def pixel_shuffle(a: int, b: int, dims: int) -> nn.Module:
    wide = conv(dims, a, 4 * b, 3, stride=2)
    return nn.Sequential(wide, nn.PixelShuffle(2), nn.ReLU(), conv(dims, b, b))


def pixel_unshuffle(a: int, b: int, dims: int) -> nn.Module:
    """Positions into channels and back, with work in between."""
    return nn.Sequential(
        nn.PixelUnshuffle(2), conv(dims, 4 * a, 2 * a, 3), nn.GELU(), conv(dims, 2 * a, 4 * b),
        nn.PixelShuffle(2),
    )  # fmt: skip


def depth_to_space(a: int, b: int, dims: int) -> nn.Module:
    """The other order of factors: blocks first, channels last (TensorFlow, Swin's expansion)."""

    def use(m: Written, x: Tensor) -> Tensor:
        y = m.wide(x)
        batch, _, h, w = y.shape
        y = y.reshape(batch, 2, 2, -1, h, w).permute(0, 3, 4, 1, 5, 2)
        return m.out(y.reshape(batch, -1, 2 * h, 2 * w))

    return Written(use, wide=conv(dims, a, 4 * b, 3, stride=2), out=conv(dims, b, b))


def patch_merging(a: int, b: int, dims: int) -> nn.Module:
    """Every second position beside its neighbours, norm and projection (Swin)."""

    def use(m: Written, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        parts = [y[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        y = m.reduce(m.norm(torch.cat(parts, -1))).permute(0, 3, 1, 2)
        return m.out(F.interpolate(y, scale_factor=2))

    layers = {"norm": nn.LayerNorm(4 * a), "reduce": nn.Linear(4 * a, 2 * a, bias=False)}
    return Written(use, out=conv(dims, 2 * a, b), **layers)


def patches(a: int, b: int, dims: int) -> nn.Module:
    """Patches as tokens of all their channels, and back."""

    def use(m: Written, x: Tensor) -> Tensor:
        batch, c, h, w = x.shape
        t = x.reshape(batch, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1)
        t = m.mix(t.reshape(batch, h * w // 4, 4 * c))
        t = t.reshape(batch, h // 2, w // 2, 2, 2, -1).permute(0, 5, 1, 3, 2, 4)
        return t.reshape(batch, -1, h, w)

    return Written(use, mix=nn.Linear(4 * a, 4 * b))


def split_evenly(a: int, b: int, dims: int) -> nn.Module:
    """A split by half of what is there, three ways to say it, multiplied and added."""

    def use(m: Written, x: Tensor) -> Tensor:
        y = m.wide(x)
        half = y.shape[1] // 2
        one, two = y.split(half, 1)
        three, four = y[:, :half], y.narrow(1, half, half)
        five, six = torch.tensor_split(y, 2, 1)
        return m.out(one * two.sigmoid() + three.tanh() * four + five - six)

    return Written(use, wide=conv(dims, a, 2 * a, 3), out=conv(dims, a, b))


def split_held(a: int, b: int, dims: int) -> nn.Module:
    """A split into parts of sizes that the module keeps, each with a layer of its own."""

    def use(m: Any, x: Tensor) -> Tensor:
        one, two = torch.split(m.wide(x), m.sizes, dim=1)
        return m.out(torch.cat([m.one(one).relu(), m.two(two)], 1))

    layers = {"wide": conv(dims, a, a + a // 2), "one": conv(dims, a, a), "sizes": [a, a // 2]}
    return Written(use, two=conv(dims, a // 2, a), out=conv(dims, 2 * a, b), **layers)


def simple_gate(a: int, b: int, dims: int) -> nn.Module:
    """Half times half (NAFNet), twice, with scales of their own."""

    def use(m: Written, x: Tensor) -> Tensor:
        left, right = m.deep(m.wide(x)).chunk(2, 1)
        x = x + m.back(left * right) * m.beta
        left, right = m.again(x).chunk(2, 1)
        return m.out(x + m.end(left * right) * m.gamma)

    deep = conv(dims, 2 * a, 2 * a, 3, groups=2 * a)
    layers = {"wide": conv(dims, a, 2 * a), "back": conv(dims, a, a), "again": conv(dims, a, 2 * a)}
    scales = {n: nn.Parameter(torch.ones(1, a, *(1,) * dims)) for n in ("beta", "gamma")}
    return Written(use, deep=deep, end=conv(dims, a, a), out=conv(dims, a, b), **layers, **scales)


def glu(a: int, b: int, dims: int) -> nn.Module:
    return nn.Sequential(conv(dims, a, 2 * a, 3), nn.GLU(dim=1), conv(dims, a, b))


def swiglu(a: int, b: int, dims: int) -> nn.Module:
    def use(m: Written, x: Tensor) -> Tensor:
        gate, value = m.enter(x.movedim(1, -1)).chunk(2, -1)
        return m.back(F.silu(gate) * value).movedim(-1, 1)

    return Written(use, enter=nn.Linear(a, 6 * a), back=nn.Linear(3 * a, b))


def maximum(a: int, b: int, dims: int) -> nn.Module:
    """Max-feature-map: the larger of two halves (LightCNN)."""

    def use(m: Written, x: Tensor) -> Tensor:
        return m.out(torch.max(*torch.split(m.wide(x), m.wide.out_channels // 2, 1)))

    return Written(use, wide=conv(dims, a, 2 * a, 3), out=conv(dims, a, b))


def concatenated_relu(a: int, b: int, dims: int) -> nn.Module:
    def use(m: Written, x: Tensor) -> Tensor:
        y = m.enter(x)
        return m.out(torch.cat([y, -y], 1).relu())

    return Written(use, enter=conv(dims, a, a, 3), out=conv(dims, 2 * a, b))


def dense(a: int, b: int, dims: int) -> nn.Module:
    """Every layer sees all before it (DenseNet, RDN)."""
    layers = nn.ModuleList(conv(dims, a + i * 8, 8, 3) for i in range(3))

    def use(m: Written, x: Tensor) -> Tensor:
        seen = [x]
        for layer in m.layers:
            seen.append(layer(torch.cat(seen, 1)).relu())
        return m.out(torch.cat(seen, 1))

    return Written(use, layers=layers, out=conv(dims, a + 24, b))


def partial(a: int, b: int, dims: int) -> nn.Module:
    """A split whose halves are taken on from differently, all joined (C2f, CSP)."""

    def use(m: Written, x: Tensor) -> Tensor:
        parts = list(m.enter(x).chunk(2, 1))
        for layer in m.layers:
            parts.append(parts[-1] + layer(parts[-1]).relu())
        return m.out(torch.cat(parts, 1))

    half = a // 2
    layers = nn.ModuleList(conv(dims, half, half, 3) for _ in range(2))
    return Written(use, enter=conv(dims, a, a), layers=layers, out=conv(dims, 4 * half, b))


def hierarchical(a: int, b: int, dims: int) -> nn.Module:
    """Four parts, each with what the one before gave (Res2Net)."""

    def use(m: Written, x: Tensor) -> Tensor:
        made: list[Tensor] = []
        for i, part in enumerate(m.enter(x).chunk(4, 1)):
            part = part if i == 0 else part + made[-1]
            made.append(part if i == 0 else m.layers[i - 1](part).relu())
        return m.out(torch.cat(made, 1))

    layers = nn.ModuleList(conv(dims, a // 4, a // 4, 3) for _ in range(3))
    return Written(use, enter=conv(dims, a, a), layers=layers, out=conv(dims, a, b))


def ghost(a: int, b: int, dims: int) -> nn.Module:
    """Half of the channels from a cheap depthwise layer over the other half."""

    def use(m: Written, x: Tensor) -> Tensor:
        first = m.first(x).relu()
        return m.out(torch.cat([first, m.cheap(first)], 1))

    half = a // 2
    cheap = conv(dims, half, half, 3, groups=half)
    return Written(use, first=conv(dims, a, half), cheap=cheap, out=conv(dims, a, b))


def interleaved(a: int, b: int, dims: int) -> nn.Module:
    """Two branches, channel by channel in turn."""

    def use(m: Written, x: Tensor) -> Tensor:
        both = torch.stack([m.left(x), m.right(x)], 2).flatten(1, 2)
        return m.out(both)

    layers = {"left": conv(dims, a, a), "right": conv(dims, a, a, 3)}
    return Written(use, out=conv(dims, 2 * a, b), **layers)


def selective(a: int, b: int, dims: int) -> nn.Module:
    """Branches weighed by a softmax over the branches (SK)."""

    def use(m: Written, x: Tensor) -> Tensor:
        made = torch.stack([m.left(x), m.right(x)], 1)
        told = m.squeeze(made.sum(1).flatten(2).mean(2)).relu()
        weights = torch.stack([m.one(told), m.two(told)], 1).softmax(1)
        return m.out((made * weights.reshape(*weights.shape, *(1,) * dims)).sum(1))

    layers = {"left": conv(dims, a, a, 3), "right": conv(dims, a, a), "squeeze": nn.Linear(a, 8)}
    heads = {"one": nn.Linear(8, a), "two": nn.Linear(8, a)}
    return Written(use, out=conv(dims, a, b), **layers, **heads)


def repeated(a: int, b: int, dims: int) -> nn.Module:
    """Channels repeated as a whole and one by one."""

    def use(m: Written, x: Tensor) -> Tensor:
        y = m.enter(x)
        whole = y.repeat(1, 2, *(1,) * dims)
        return m.out(torch.cat([whole, y.repeat_interleave(2, 1)], 1))

    return Written(use, enter=conv(dims, a, a // 2, 3), out=conv(dims, 2 * a, b))


def zero_padded(a: int, b: int, dims: int) -> nn.Module:
    """A shortcut whose missing channels are zeros (ResNet's option A)."""

    def use(m: Written, x: Tensor) -> Tensor:
        y = m.wide(x)
        missing = y.shape[1] - x.shape[1]
        return m.out(y + F.pad(x, [0, 0] * dims + [0, missing]))

    return Written(use, wide=conv(dims, a, 2 * a, 3), out=conv(dims, 2 * a, b))


def sliced_writes(a: int, b: int, dims: int) -> nn.Module:
    """Results written into slices of an empty tensor, and added in place."""

    def use(m: Written, x: Tensor) -> Tensor:
        left, right = m.left(x), m.right(x)
        whole = x.new_zeros(x.shape[0], left.shape[1] + right.shape[1], *x.shape[2:])
        whole[:, : left.shape[1]] = left
        whole[:, left.shape[1] :] += right
        return m.out(whole.relu_())

    layers = {"left": conv(dims, a, a), "right": conv(dims, a, 8)}
    return Written(use, out=conv(dims, a + 8, b), **layers)


def masked_tokens(a: int, b: int, dims: int) -> nn.Module:
    """The tokens that a mask leaves, worked on and written back among learned ones (MAE)."""

    def use(m: Written, x: Tensor) -> Tensor:
        t = x.flatten(2).transpose(1, 2)
        batch, count, width = t.shape
        mask = (torch.arange(count) % 4 == 0).expand(batch, -1)
        seen = m.work(t[~mask].reshape(batch, -1, width)).relu()
        full = m.token.repeat(batch, count, 1)
        full[~mask] = seen.flatten(0, 1)
        return m.out(full.transpose(1, 2).reshape(batch, -1, *x.shape[2:]))

    token = nn.Parameter(torch.randn(1, 1, a))
    return Written(use, token=token, work=nn.Linear(a, a), out=conv(dims, a, b))


def written_places(a: int, b: int, dims: int) -> nn.Module:
    """Positions picked and written by a mask over all their axes, and by numbers of two axes."""

    def use(m: Written, x: Tensor) -> Tensor:
        keep = torch.ones(x.shape[2:], dtype=torch.bool)
        keep[::2] = False
        made = m.enter(x)
        made[:, :, keep] = m.mix(x[:, :, keep])
        rows = torch.arange(x.shape[0])
        made[rows, :, rows] = m.vector.unflatten(0, (-1, *(1,) * (dims - 1)))
        made.index_put_((rows,), m.more(x), accumulate=True)
        made[made < -1] = -1.0
        return m.out(made)

    layers = {"enter": conv(dims, a, a), "mix": nn.Conv1d(a, a, 1), "more": conv(dims, a, a)}
    vector = nn.Parameter(torch.randn(a))
    return Written(use, vector=vector, out=conv(dims, a, b), **layers)


def squeeze_excite(a: int, b: int, dims: int) -> nn.Module:
    def use(m: Written, x: Tensor) -> Tensor:
        told = m.up(m.down(x.flatten(2).mean(2)).relu()).sigmoid()
        return m.out(x * told.view(*x.shape[:2], *(1,) * dims))

    return Written(use, down=nn.Linear(a, a // 2), up=nn.Linear(a // 2, a), out=conv(dims, a, b, 3))


def spatial_attention(a: int, b: int, dims: int) -> nn.Module:
    """One map from the mean and the largest over channels (CBAM)."""

    def use(m: Written, x: Tensor) -> Tensor:
        told = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return m.out(x * m.look(told).sigmoid())

    return Written(use, look=conv(dims, 2, 1, 3), out=conv(dims, a, b, 3))


def efficient_channels(a: int, b: int, dims: int) -> nn.Module:
    """A convolution along the channels themselves (ECA)."""

    def use(m: Written, x: Tensor) -> Tensor:
        told = m.along(x.flatten(2).mean(2).unsqueeze(1)).squeeze(1).sigmoid()
        return m.out(x * told.reshape(*x.shape[:2], *(1,) * dims))

    return Written(use, along=nn.Conv1d(1, 1, 3, padding=1), out=conv(dims, a, b, 3))


def channel_volume(a: int, b: int, dims: int) -> nn.Module:
    """Channels as the depth of a volume, over which a kernel slides (channel-spatial attention)."""

    def use(m: Written, x: Tensor) -> Tensor:
        return m.out(x + x * m.along(x.unsqueeze(1)).squeeze(1).sigmoid())

    along = conv(dims + 1, 1, 1, 3)
    return Written(use, along=along, out=conv(dims, a, b, 3))


def maxout(a: int, b: int, dims: int) -> nn.Module:
    """The larger of two pieces for each channel: cut into channels and pieces."""

    def use(m: Written, x: Tensor) -> Tensor:
        y = m.pieces(x)
        return m.out(y.reshape(y.shape[0], -1, 2, *y.shape[2:]).amax(2))

    return Written(use, pieces=conv(dims, a, 2 * a), out=conv(dims, a, b, 3))


def branches_averaged(a: int, b: int, dims: int) -> nn.Module:
    """The mean of three branches that one layer makes, beside the input."""

    def use(m: Written, x: Tensor) -> Tensor:
        return m.out(x + m.branches(x).reshape(x.shape[0], 3, -1, *x.shape[2:]).mean(1))

    return Written(use, branches=conv(dims, a, 3 * a), out=conv(dims, a, b, 3))


def tokens_mixed(a: int, b: int, dims: int) -> nn.Module:
    """A convolution to which the positions are channels (a gated MLP)."""

    def use(m: Written, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return m.out((tokens * m.mix(tokens)).transpose(1, 2).reshape(x.shape))

    positions = 8**dims
    return Written(use, mix=nn.Conv1d(positions, positions, 1), out=conv(dims, a, b, 3))


def turned(a: int, b: int, dims: int) -> nn.Module:
    """Channels as one side of a picture (triplet attention)."""

    def use(m: Written, x: Tensor) -> Tensor:
        side = x.transpose(1, 2)
        told = torch.cat([side.amax(1, keepdim=True), side.mean(1, keepdim=True)], 1)
        return m.out((side * m.along(told).sigmoid()).transpose(1, 2))

    return Written(use, along=conv(dims, 2, 1, 3), out=conv(dims, a, b, 3))


FAMILIES = (
    Family("channel-shuffle", channel_shuffle, DIMS),
    Family("shuffle-layer", shuffle_layer, DIMS),
    Family("shuffle-unit", shuffle_unit, DIMS, 0.35),
    Family("pixel-shuffle", pixel_shuffle),
    Family("pixel-unshuffle", pixel_unshuffle),
    Family("depth-to-space", depth_to_space),
    Family("patch-merging", patch_merging, mixes=True),
    Family("patches", patches),
    Family("split-evenly", split_evenly, DIMS),
    Family("split-held", split_held, DIMS),
    Family("simple-gate", simple_gate, DIMS, 0.45),
    Family("glu", glu, DIMS),
    Family("swiglu", swiglu, DIMS),
    Family("maximum", maximum, DIMS),
    Family("concatenated-relu", concatenated_relu, DIMS),
    Family("dense", dense, DIMS),
    Family("partial", partial, DIMS),
    Family("hierarchical", hierarchical, DIMS),
    Family("ghost", ghost, DIMS, 0.45),
    Family("interleaved", interleaved, DIMS),
    Family("selective", selective, DIMS),
    Family("repeated", repeated, DIMS),
    Family("zero-padded", zero_padded, DIMS),
    Family("sliced-writes", sliced_writes, DIMS, 0.35),
    Family("masked-tokens", masked_tokens, DIMS, 0.35),
    Family("written-places", written_places, DIMS),
    Family("squeeze-excite", squeeze_excite, DIMS),
    Family(
        "spatial-attention", spatial_attention, DIMS, mixes=True, keeps=("size there is fixed",)
    ),
    Family("efficient-channels", efficient_channels, DIMS, mixes=True),
    Family("channel-volume", channel_volume, (2, 1), mixes=True),
    Family(
        "tokens-mixed", tokens_mixed, (2, 1), 0.9, keeps=("size there is fixed",), anywhere=False
    ),
    Family("maxout", maxout, (2, 1)),
    Family("branches-averaged", branches_averaged, (2, 1)),
    Family("turned", turned, mixes=True, keeps=("size there is fixed",)),
)
