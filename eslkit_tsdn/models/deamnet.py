"""DeamNet: one U-Net applied four times, its result mixed with the input by attention.

Ren et al., "Adaptive consistency prior based deep network for image denoising", CVPR 2021;
facts.md, section 2. All layers have one width; the U-Net is the paper's NLO sub-network, and what
mixes two maps its dual element-wise attention mechanism (DEAM).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eslkit_tsdn.models.checks import check_counts, check_size

__all__ = ["DeamNet"]


def conv(in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size, or halves it, with Xavier's normal initialisation."""
    made = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2)
    nn.init.xavier_normal_(made.weight)
    return made


def conv_relu(width: int, *, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution with a ReLU."""
    return nn.Sequential(conv(width, width, stride=stride), nn.ReLU())


class Residual(nn.Module):
    """Two 3x3 convolutions with a ReLU between them, beside their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Attention(nn.Module):
    """Mixes two maps with a weight for every pixel and channel, found from both (DEAM)."""

    def __init__(self, width: int, gate_width: int) -> None:
        super().__init__()
        self.conv = conv(width, width)
        self.squeeze = conv(2 * width, width, kernel=1)
        self.gate = nn.Sequential(
            conv(width, gate_width), nn.ReLU(), conv(gate_width, width), nn.Sigmoid()
        )

    def forward(self, kept: Tensor, other: Tensor) -> Tensor:
        weight = self.gate(self.squeeze(torch.cat([self.conv(kept), other], dim=1)))
        return (1 - weight) * other + weight * kept


class EncoderBlock(nn.Module):
    """Two convolutions, whose result is the skip connection, and one of stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_relu(width), conv_relu(width))
        self.down = conv_relu(width, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.body(x)
        return skip, self.down(skip)


class DecoderBlock(nn.Module):
    """The skip connection mixed with the map from below, joined with it, and two convolutions."""

    def __init__(self, width: int, gate_width: int) -> None:
        super().__init__()
        self.up_mixed, self.up_joined = conv_relu(width), conv_relu(width)
        self.attention = Attention(width, gate_width)
        self.rich = conv_relu(width)
        self.join = conv(2 * width, width, kernel=1)
        self.body = nn.Sequential(conv_relu(width), conv_relu(width))

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        up = F.interpolate(below, scale_factor=2.0)
        rich = self.rich(self.attention(skip, self.up_mixed(up)))
        return self.body(self.join(torch.cat([rich, self.up_joined(up)], dim=1)))


class UnusedLayers(nn.Module):
    """Layers that the released code builds and never calls: a sixth of its parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv3, self.conv5, self.conv7 = (conv(width, width, kernel=k) for k in (3, 5, 7))
        self.join = conv(3 * width, width, kernel=1)


class NonLocalOperator(nn.Module):
    """The U-Net that DeamNet applies again and again: NLO, with a residual to its input."""

    def __init__(self, width: int, gate_width: int, levels: int, *, unused_layers: bool) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(EncoderBlock(width) for _ in range(levels))
        self.middle = nn.Sequential(conv_relu(width), conv_relu(width))
        self.decoder = nn.ModuleList(DecoderBlock(width, gate_width) for _ in range(levels))
        self.out = conv(width, width)
        if unused_layers:
            self.unused = UnusedLayers(width)

    def forward(self, x: Tensor) -> Tensor:
        given, skips = x, list[Tensor]()
        for block in self.encoder:
            skip, x = block(x)
            skips.append(skip)
        x = self.middle(x)
        for block, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = block(x, skip)
        return given + self.out(x)


class DeamNet(nn.Module):
    """DeamNet for packed raw images, without a residual to its input.

    Args:
        width: channels of all layers. The default is the paper's network of 2,229,284 parameters
            (8.6 MiB saved), 1,876,772 of which are used. It costs 1,167.34 GFLOPs at
            1x4x512x512; the paper's 429.95 counts the four calls of the shared U-Net once.
        gate_width: channels inside the attention.
        levels: how often the shared U-Net halves its input.
        iterations: how often it is applied.
        in_channels: planes of the image; 4 for packed Bayer raw (R, G1, B, G2).
        unused_layers: build the layers that the released code never calls, as the paper counts
            them; they change nothing but the size.

    Raises:
        InputError: a number of channels, levels or iterations below 1.

    Example:
        >>> import torch
        >>> DeamNet(8, gate_width=2).eval()(torch.zeros(1, 4, 32, 32)).shape
        torch.Size([1, 4, 32, 32])
    """

    def __init__(
        self,
        width: int = 64,
        gate_width: int = 4,
        levels: int = 4,
        iterations: int = 4,
        in_channels: int = 4,
        *,
        unused_layers: bool = True,
    ) -> None:
        super().__init__()
        check_counts(
            width=width,
            gate_width=gate_width,
            levels=levels,
            iterations=iterations,
            in_channels=in_channels,
        )
        self.transform = nn.Sequential(conv(in_channels, width), Residual(width))
        self.operator = NonLocalOperator(width, gate_width, levels, unused_layers=unused_layers)
        self.attentions = nn.ModuleList(Attention(width, gate_width) for _ in range(iterations))
        self.inverse = nn.Sequential(Residual(width), conv(width, in_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Restore an image.

        Args:
            x: (batch, in_channels, height, width), height and width divisible by 2 to the power
                of `levels` (16).

        Returns:
            (batch, in_channels, height, width), not clipped.

        Raises:
            InputError: height or width cannot be halved that often.
        """
        check_size(x, factor=2 ** len(self.operator.encoder))
        features = self.transform(x)
        z = features
        for attention in self.attentions:
            z = attention(features, self.operator(z))
        return self.inverse(z)
