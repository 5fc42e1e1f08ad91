"""Convolutions of all kinds, and what is made with them by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.eslkit.families.family import CONV, DIMS, UP, Family, Written, conv

__all__ = ["FAMILIES"]


def plain(a: int, b: int, dims: int) -> nn.Module:
    return nn.Sequential(conv(dims, a, b, 3), nn.LeakyReLU(0.2, inplace=True), conv(dims, b, b, 3))


def grouped(a: int, b: int, dims: int) -> nn.Module:
    return nn.Sequential(conv(dims, a, b, 3, groups=2), nn.GELU(), conv(dims, b, b, 3, groups=4))


def grouped_unevenly(a: int, b: int, dims: int) -> nn.Module:
    """Other numbers of channels a group in than out, bottleneck form (ResNeXt)."""
    inner = conv(dims, 2 * a, 4 * a, 3, groups=4)
    return nn.Sequential(conv(dims, a, 2 * a), inner, nn.ReLU(), conv(dims, 4 * a, b))


def depthwise(a: int, b: int, dims: int) -> nn.Module:
    return nn.Sequential(conv(dims, a, a, 3, groups=a), nn.ReLU6(), conv(dims, a, b))


def multiplier(a: int, b: int, dims: int) -> nn.Module:
    return nn.Sequential(conv(dims, a, 2 * a, 3, groups=a), nn.ReLU(), conv(dims, 2 * a, b))


def large_kernel(a: int, b: int, dims: int) -> nn.Module:
    """Depthwise, then depthwise dilated, then pointwise, times the input (VAN)."""
    spread = CONV[dims](a, a, 3, padding=2, dilation=2, groups=a)
    layers = {"near": conv(dims, a, a, 3, groups=a), "far": spread, "mix": conv(dims, a, a)}
    return Written(lambda m, x: m.out(x * m.mix(m.far(m.near(x)))), out=conv(dims, a, b), **layers)


def dilated(a: int, b: int, dims: int) -> nn.Module:
    """Atrous pyramid: branches side by side, one of them a global mean."""
    branches = nn.ModuleList(CONV[dims](a, b, 3, padding=d, dilation=d) for d in (1, 2))
    pool: type[nn.Module] = getattr(nn, f"AdaptiveAvgPool{dims}d")

    def use(m: Written, x: Tensor) -> Tensor:
        whole = m.whole(x).expand(-1, -1, *x.shape[2:])
        return m.out(torch.cat([*(branch(x) for branch in m.branches), whole], 1))

    whole = nn.Sequential(pool(1), conv(dims, a, b))
    return Written(use, branches=branches, whole=whole, out=conv(dims, 3 * b, b))


def transposed(a: int, b: int, dims: int) -> nn.Module:
    down = CONV[dims](a, 2 * a, 3, stride=2, padding=1)
    return nn.Sequential(down, nn.ReLU(), UP[dims](2 * a, b, 2, stride=2))


def grouped_transposed(a: int, b: int, dims: int) -> nn.Module:
    down = CONV[dims](a, 2 * a, 2, stride=2)
    up = UP[dims](2 * a, a, 4, stride=2, padding=1, groups=4)
    return nn.Sequential(down, nn.ReLU(), up, conv(dims, a, b))


def depthwise_transposed(a: int, b: int, dims: int) -> nn.Module:
    up = UP[dims](a, a, 2, stride=2, groups=a, bias=False)
    return nn.Sequential(CONV[dims](a, a, 2, stride=2), up, conv(dims, a, b))


def transposed_multiplier(a: int, b: int, dims: int) -> nn.Module:
    up = UP[dims](a, 2 * a, 2, stride=2, groups=a)
    return nn.Sequential(CONV[dims](a, a, 2, stride=2), up, conv(dims, 2 * a, b))


def padded(mode: str) -> object:
    def make(a: int, b: int, dims: int) -> nn.Module:
        return nn.Sequential(conv(dims, a, b, 3, padding_mode=mode), nn.ReLU(), conv(dims, b, b))

    return make


def padded_by_hand(a: int, b: int, dims: int) -> nn.Module:
    """Every mode of F.pad over positions; positions at the border cut off again."""

    def use(m: Written, x: Tensor) -> Tensor:
        sides = [1, 1] * dims
        for mode in ("reflect", "replicate", "circular", "constant"):
            x = m.layer(F.pad(x, sides, mode=mode))
        return m.out(x)

    return Written(use, layer=CONV[dims](a, a, 3), out=conv(dims, a, b))


def one_output(a: int, b: int, dims: int) -> nn.Module:
    """A mask of one channel that broadcasts: no depthwise convolution."""
    mask = conv(dims, a, 1, 3)
    return Written(lambda m, x: m.out(x * m.mask(x).sigmoid()), mask=mask, out=conv(dims, a, b))


def as_products(a: int, b: int, dims: int) -> nn.Module:
    """A convolution as unfold, matrix product and fold."""

    def use(m: Written, x: Tensor) -> Tensor:
        columns = F.unfold(x, 3, padding=1)
        made = m.weight.flatten(1) @ columns
        return m.out(made.reshape(x.shape[0], -1, *x.shape[2:]))

    weight = nn.Parameter(0.1 * torch.randn(b, a, 3, 3))
    return Written(use, weight=weight, out=conv(dims, b, b))


def folded(a: int, b: int, dims: int) -> nn.Module:
    """Overlapping windows taken apart and summed again."""

    def use(m: Written, x: Tensor) -> Tensor:
        windows = F.unfold(m.enter(x), 4, stride=2, padding=1)
        return m.out(F.fold(windows.relu(), x.shape[2:], 4, stride=2, padding=1))

    return Written(use, enter=conv(dims, a, a), out=conv(dims, a, b))


def modulated(a: int, b: int, dims: int) -> nn.Module:
    """A kernel scaled for every image, all images as groups of one convolution (StyleGAN2)."""

    def use(m: Written, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        scale = m.style(x.mean((2, 3))).reshape(batch, 1, channels, 1, 1)
        weight = m.weight.unsqueeze(0) * scale
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        weight = weight.reshape(-1, *weight.shape[2:])
        made = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight, padding=1, groups=batch)
        return made.reshape(batch, -1, *x.shape[2:])

    weight = nn.Parameter(0.1 * torch.randn(b, a, 3, 3))
    return Written(use, weight=weight, style=nn.Linear(a, a))


def predicted_kernels(a: int, b: int, dims: int) -> nn.Module:
    """A kernel for every pixel, predicted, applied to every channel alike (KPN)."""

    def use(m: Written, x: Tensor) -> Tensor:
        kernel = m.kernel(x).softmax(1).unsqueeze(1)
        windows = F.unfold(x, 3, padding=1).reshape(*x.shape[:2], 9, *x.shape[2:])
        return m.out((windows * kernel).sum(2))

    return Written(use, kernel=conv(dims, a, 9, 3), out=conv(dims, a, b))


def involution(a: int, b: int, dims: int) -> nn.Module:
    """Kernels predicted for groups of channels."""

    def use(m: Written, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        kernel = m.kernel(m.squeeze(x).relu()).reshape(batch, 2, 1, 9, height, width)
        windows = F.unfold(x, 3, padding=1).reshape(batch, 2, channels // 2, 9, height, width)
        return m.out((windows * kernel).sum(3).reshape(batch, channels, height, width))

    layers = {"squeeze": conv(dims, a, a // 2), "kernel": conv(dims, a // 2, 18)}
    return Written(use, out=conv(dims, a, b), **layers)


def blur(a: int, b: int, dims: int) -> nn.Module:
    """A fixed filter repeated for every channel when the model runs (anti-aliased pooling)."""

    def use(m: Written, x: Tensor) -> Tensor:
        low = F.conv2d(
            x, m.filter.repeat(x.shape[1], 1, 1, 1), stride=2, padding=1, groups=x.shape[1]
        )
        return m.out(F.interpolate(low, size=x.shape[2:]))

    made = Written(use, out=conv(dims, a, b))
    made.register_buffer("filter", torch.outer(torch.ones(3), torch.ones(3))[None, None] / 9)
    return made


def blur_held(a: int, b: int, dims: int) -> nn.Module:
    """The same filter, held as a buffer with one copy for every channel."""

    def use(m: Written, x: Tensor) -> Tensor:
        return m.out(F.conv2d(x, m.filter, padding=1, groups=m.filter.shape[0]))

    made = Written(use, out=conv(dims, a, b))
    made.register_buffer("filter", torch.full((a, 1, 3, 3), 1 / 9))
    return made


def wavelet(a: int, b: int, dims: int) -> nn.Module:
    """Haar bands of every channel by a grouped convolution, and back (MWCNN)."""
    haar = torch.tensor([[1.0, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2

    def use(m: Written, x: Tensor) -> Tensor:
        bands = F.conv2d(x, m.filter, stride=2, groups=x.shape[1])
        made = m.mid(bands).relu()
        return m.out(F.conv_transpose2d(made, m.filter, stride=2, groups=x.shape[1]))

    made = Written(use, mid=conv(dims, 4 * a, 4 * a), out=conv(dims, a, b))
    made.register_buffer("filter", haar.reshape(4, 1, 2, 2).repeat(a, 1, 1, 1))
    return made


def kernel_bank(a: int, b: int, dims: int) -> nn.Module:
    """Kernels of several experts, weighed anew for every image (CondConv)."""

    def use(m: Written, x: Tensor) -> Tensor:
        batch, width = x.shape[:2]
        weighs = m.router(x.flatten(2).mean(2)).sigmoid()
        kernels = (weighs @ m.bank.flatten(1)).reshape(-1, width, 3, *(1,) * (dims - 1))
        convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
        padding = (1, *(0,) * (dims - 1))
        flat = x.reshape(1, -1, *x.shape[2:])
        made = convolve(flat, kernels, padding=padding, groups=batch)
        return m.out(made.reshape(batch, -1, *x.shape[2:]))

    bank = nn.Parameter(torch.randn(4, b, a, 3, *(1,) * (dims - 1)) / a)
    return Written(use, bank=bank, router=nn.Linear(a, 4), out=conv(dims, b, b))


FAMILIES = (
    Family("plain", plain, DIMS),
    Family("grouped", grouped, DIMS),
    Family("grouped-unevenly", grouped_unevenly, DIMS),
    Family("depthwise", depthwise, DIMS, 0.45),
    Family("multiplier", multiplier, DIMS, 0.45),
    Family("large-kernel", large_kernel, DIMS, 0.45),
    Family("dilated", dilated, DIMS),
    Family("transposed", transposed, DIMS),
    Family("grouped-transposed", grouped_transposed, DIMS),
    Family("depthwise-transposed", depthwise_transposed, DIMS, 0.35),
    Family("transposed-multiplier", transposed_multiplier, DIMS, 0.35, keeps=("channels a group",)),
    Family("padding-reflect", padded("reflect"), DIMS),
    Family("padding-circular", padded("circular"), DIMS),
    Family("padding-replicate", padded("replicate"), DIMS),
    Family("padding-by-hand", padded_by_hand, DIMS),
    Family("one-output", one_output, DIMS, 0.5),
    Family("unfold-product", as_products, keeps=("flattens it together with channels",)),
    Family("fold", folded, ratio=0.35),
    Family("modulated", modulated, mixes=True),
    Family("predicted-kernels", predicted_kernels, ratio=0.5, keeps=("size there is fixed",)),
    Family("kernel-bank", kernel_bank, DIMS, mixes=True),
    Family("involution", involution, ratio=0.4),
    Family("blur", blur, ratio=0.35),
    Family("blur-held", blur_held, ratio=0.35),
    Family("wavelet", wavelet),
)
