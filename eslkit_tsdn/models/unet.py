"""The U-Net of the paper: one stage of TSDN, and a network of its own (facts, section 1).

Level 0 is the full (packed) resolution. `encoder.0` and `decoder.0` work at level 0,
`encoder.1` and `decoder.1` at level 1, and so on down to `middle`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eslkit_tsdn.models.checks import check_channels, check_size

__all__ = ["SUNet", "UNet"]

SLOPE = 0.2  # of every leaky ReLU, as in SID and ELD


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each with a leaky ReLU: `in_channels -> width -> width`."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv1(x), SLOPE)
        return F.leaky_relu(self.conv2(x), SLOPE)


class DecoderBlock(nn.Module):
    """Up-sampling without activation, the skip connection behind it, two convolutions."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, width, 2, stride=2)
        self.conv1 = nn.Conv2d(2 * width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = torch.cat([self.up(x), skip], dim=1)
        x = F.leaky_relu(self.conv1(x), SLOPE)
        return F.leaky_relu(self.conv2(x), SLOPE)


class UNet(nn.Module):
    """The U-Net of SID and ELD for packed raw images, without a residual to its input.

    Args:
        widths: channels of every level, the last being the middle. The default is the
            paper's U-Net of 7,760,484 parameters and 96.77 GFLOPs at 1x4x512x512.
        in_channels: planes of the input; 4 for packed Bayer raw (R, G1, B, G2).
        out_channels: planes of the output.

    Raises:
        InputError: fewer than two widths, or a number of channels below 1.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 256, 512),
        in_channels: int = 4,
        out_channels: int = 4,
    ) -> None:
        super().__init__()
        check_channels(widths, in_channels=in_channels, out_channels=out_channels)
        *outer, innermost = widths
        self.encoder = nn.ModuleList(
            ConvBlock(above, width) for above, width in pairwise((in_channels, *outer))
        )
        self.middle = ConvBlock(outer[-1], innermost)
        self.decoder = nn.ModuleList(
            DecoderBlock(below, width) for width, below in pairwise(widths)
        )
        self.out = nn.Conv2d(outer[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Restore an image.

        Args:
            x: (batch, in_channels, height, width), height and width divisible by 2 to the
                power of the number of poolings (16 for five widths).

        Returns:
            (batch, out_channels, height, width), not clipped.

        Raises:
            InputError: height or width cannot be halved that often.
        """
        check_size(x, factor=2 ** len(self.encoder))
        skips: list[Tensor] = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for block, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = block(x, skip)
        return self.out(x)


class SUNet(UNet):
    """The paper's SU-Net: a U-Net of half the widths (1,941,300 parameters, 24.36 GFLOPs)."""

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        in_channels: int = 4,
        out_channels: int = 4,
    ) -> None:
        super().__init__(widths, in_channels, out_channels)
