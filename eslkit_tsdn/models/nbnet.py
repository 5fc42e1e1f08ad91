"""NBNet: a U-Net whose skip connections are projected onto a learned subspace.

Cheng et al., "NBNet: Noise basis learning for image denoising with subspace projection", CVPR
2021; facts.md, section 2. Two networks go by that name: the one that the authors released
(`NBNet`), and the one that the paper's figure shows and ports to PyTorch follow (`DrawnNBNet`).
TSDN's Table I has the size of the first beside the cost of the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from eslkit_tsdn.models.checks import check_channels, check_size

__all__ = ["DrawnNBNet", "NBNet", "project"]

_SLOPE, _DRAWN_SLOPE = 0.2, 0.01  # of the leaky ReLUs; the second is PyTorch's default
_TINY = 1e-6  # beside the L1 norm of a basis vector, as released


def project(x: Tensor, basis: Tensor, *, normalize: bool = True) -> Tensor:
    """The image's planes, each projected onto the span of the basis images.

    With the basis as the rows of V (k x N, N = height x width) and the planes as those of X, the
    result is (X ((V V^T)^-1 V)^T) V, in the order of the released code: only a k x k matrix is
    inverted, and no N x N one is ever made.
    Computed in single precision at least, also under autocast: the product V V^T squares the
    condition number of the basis.

    Args:
        x: (batch, planes, height, width).
        basis: (batch, k, height, width), linearly independent.
        normalize: divide every basis image by its L1 norm first. In exact arithmetic the result
            is the same; in single precision the inverse is better behaved.

    Returns:
        A tensor of the shape and type of `x`.
    """
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return project(x.float(), basis.float(), normalize=normalize).to(x.dtype)
    v, planes = basis.flatten(2), x.flatten(2)
    if x.dtype in (torch.float16, torch.bfloat16):
        v, planes = v.float(), planes.float()
    if normalize:
        v = v / (_TINY + v.abs().sum(dim=2, keepdim=True))
    gram = v @ v.transpose(1, 2)
    inverse = _eliminate(gram) if torch.compiler.is_exporting() else torch.linalg.inv(gram)
    coordinates = planes @ (inverse @ v).transpose(1, 2)
    return (coordinates @ v).view(x.shape).to(x.dtype)


def _eliminate(gram: Tensor) -> Tensor:
    """The inverse of small positive definite matrices by sums and products alone.

    Neither ONNX nor the core operations of torch.export have an inverse. Such matrices need no
    pivoting (Gauss and Jordan).
    """
    size = gram.shape[-1]
    unit = torch.eye(size, dtype=gram.dtype, device=gram.device)
    rows = torch.cat([gram, unit.expand_as(gram)], dim=2)
    for i in range(size):
        row = rows[:, i : i + 1] / rows[:, i : i + 1, i : i + 1]
        rows = rows - (rows[:, :, i : i + 1] - unit[:, i : i + 1]) * row
    return rows[:, :, size:]


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each with a leaky ReLU, beside a 1x1 convolution of the input."""

    def __init__(self, in_channels: int, out_channels: int, *, slope: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.LeakyReLU(slope),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.LeakyReLU(slope),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class Skip(nn.Module):
    """The bridge as released: blocks of a width of its own, beside a 1x1 convolution."""

    def __init__(self, channels: int, width: int, *, count: int, slope: float) -> None:
        super().__init__()
        widths = [channels, *[width] * (count - 1), channels]
        self.body = nn.Sequential(*(ConvBlock(a, b, slope=slope) for a, b in pairwise(widths)))
        self.shortcut = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class Subspace(nn.Module):
    """The basis of the subspace, from what meets there."""

    def __init__(self, in_channels: int, basis: int, *, slope: float) -> None:
        super().__init__()
        self.body = ConvBlock(in_channels, basis, slope=slope)
        self.shortcut = nn.Conv2d(in_channels, basis, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class DecoderBlock(nn.Module):
    """Up-sampling, the bridge projected onto a subspace, and a block that reads both."""

    def __init__(self, below: int, width: int, *, skip_width: int, depth: int, basis: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(below, width, 2, stride=2)
        self.skip = Skip(width, skip_width, count=max(depth, 2), slope=_SLOPE)
        self.subspace = Subspace(2 * width, basis, slope=_SLOPE)
        self.fuse = ConvBlock(2 * width, width, slope=_SLOPE)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x, bridge = self.up(x), self.skip(skip)
        basis = self.subspace(torch.cat([x, bridge], dim=1))
        return self.fuse(torch.cat([x, project(bridge, basis)], dim=1))


class NBNet(nn.Module):
    """NBNet as its authors released it: the network predicts the noise, which is subtracted.

    Args:
        widths: channels of every level, the last being the middle. The default is the paper's
            network of 13,309,860 parameters (50.8 MiB), which costs 697.28 GFLOPs at
            1x4x512x512.
        skip_width: channels inside the bridges.
        basis: dimensions of the subspaces.
        in_channels: planes of the image; 4 for packed Bayer raw (R, G1, B, G2).

    Raises:
        InputError: fewer than two widths, or a number of channels below 1.

    Example:
        >>> import torch
        >>> model = NBNet((4, 8), skip_width=4, basis=2).eval()
        >>> model(torch.rand(1, 4, 32, 32)).shape
        torch.Size([1, 4, 32, 32])
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256, 512),
        skip_width: int = 128,
        basis: int = 16,
        in_channels: int = 4,
    ) -> None:
        super().__init__()
        check_channels(widths, skip_width=skip_width, basis=basis, in_channels=in_channels)
        *outer, _ = widths
        self.encoder = nn.ModuleList(
            ConvBlock(above, width, slope=_SLOPE)
            for above, width in pairwise((in_channels, *widths))
        )
        self.down = nn.ModuleList(
            nn.Conv2d(width, width, 4, stride=2, padding=1, bias=False) for width in outer
        )
        self.decoder = nn.ModuleList(
            DecoderBlock(below, width, skip_width=skip_width, depth=len(outer) - level, basis=basis)
            for level, (width, below) in enumerate(pairwise(widths))
        )
        self.out = nn.Conv2d(outer[0], in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Restore an image.

        Args:
            x: (batch, in_channels, height, width), height and width divisible by 2 to the
                power of the number of levels but one (16 for five widths). The innermost
                bridge must have more pixels than a subspace has dimensions.

        Returns:
            The image without the noise, of the shape of `x`, not clipped.

        Raises:
            InputError: height or width cannot be halved that often.
        """
        check_size(x, factor=2 ** len(self.down))
        noisy, skips = x, list[Tensor]()
        for block, down in zip(self.encoder, self.down, strict=False):
            skips.append(block(x))
            x = down(skips[-1])
        x = self.encoder[-1](x)
        for block, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = block(x, skip)
        return noisy - self.out(x)


class DrawnDecoderBlock(nn.Module):
    """As `DecoderBlock`, with bridges as wide as their level and without outer shortcuts."""

    def __init__(self, below: int, width: int, *, depth: int, basis: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(below, width, 2, stride=2)
        self.skip = nn.Sequential(
            *(ConvBlock(width, width, slope=_DRAWN_SLOPE) for _ in range(depth))
        )
        self.subspace = ConvBlock(2 * width, basis, slope=_DRAWN_SLOPE)
        self.fuse = ConvBlock(2 * width, width, slope=_DRAWN_SLOPE)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x, bridge = self.up(x), self.skip(skip)
        basis = self.subspace(torch.cat([bridge, x], dim=1))
        return self.fuse(torch.cat([x, project(bridge, basis, normalize=False)], dim=1))


class DrawnNBNet(nn.Module):
    """NBNet as its paper's figure shows it, and as ports to PyTorch build it.

    What differs from `NBNet`: max-pooling instead of strided convolutions, bridges of 1, 2, 3
    and 4 blocks as wide as their level, no shortcuts around bridges and subspaces, leaky ReLUs of
    slope 0.01, no norm of the basis, and a residual that is added to the input.

    Args:
        widths: channels of every level, the last being the middle. The default has 10,455,844
            parameters and 216.43 GFLOPs at 1x4x512x512, the projection not counted.
        basis: dimensions of the subspaces.
        in_channels: planes of the image; 4 for packed Bayer raw (R, G1, B, G2).

    Raises:
        InputError: fewer than two widths, or a number of channels below 1.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256, 512),
        basis: int = 16,
        in_channels: int = 4,
    ) -> None:
        super().__init__()
        check_channels(widths, basis=basis, in_channels=in_channels)
        *outer, _ = widths
        self.encoder = nn.ModuleList(
            ConvBlock(above, width, slope=_DRAWN_SLOPE)
            for above, width in pairwise((in_channels, *widths))
        )
        self.pools = nn.ModuleList(nn.MaxPool2d(2) for _ in outer)
        self.decoder = nn.ModuleList(
            DrawnDecoderBlock(below, width, depth=len(outer) - level, basis=basis)
            for level, (width, below) in enumerate(pairwise(widths))
        )
        self.out = nn.Conv2d(outer[0], in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Restore an image.

        Args:
            x: (batch, in_channels, height, width), as for `NBNet`.

        Returns:
            The image, of the shape of `x`, not clipped.

        Raises:
            InputError: height or width cannot be halved that often.
        """
        check_size(x, factor=2 ** len(self.pools))
        noisy, skips = x, list[Tensor]()
        for block, pool in zip(self.encoder, self.pools, strict=False):
            skips.append(block(x))
            x = pool(skips[-1])
        x = self.encoder[-1](x)
        for block, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = block(x, skip)
        return noisy + self.out(x)
