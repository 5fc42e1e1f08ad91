"""CBDNet: estimates a map of the noise, and denoises with it (facts.md, section 2).

Guo et al., "Toward convolutional blind denoising of real photographs", CVPR 2019. The layers are
those of the authors' Matlab code and of the PyTorch port by IDKiro, for packed raw planes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eslkit.errors import InputError
from eslkit_tsdn.models.checks import check_channels, check_size

__all__ = ["CBDNet"]


def convolutions(in_channels: int, width: int, *, count: int) -> nn.Sequential:
    """3x3 convolutions, each with a ReLU: `in_channels -> width -> ... -> width`."""
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU()]
        in_channels = width
    return nn.Sequential(*layers)


class Estimator(nn.Module):
    """Five convolutions from the noisy image to the map of its noise, which is not negative."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.body = convolutions(channels, width, count=4)
        self.out = convolutions(width, channels, count=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x))


class Denoiser(nn.Module):
    """A U-Net of three levels with average pooling, whose skip connections are added."""

    def __init__(self, in_channels: int, widths: Sequence[int], out_channels: int) -> None:
        super().__init__()
        first, second, third = widths
        self.encoder1 = convolutions(in_channels, first, count=2)
        self.encoder2 = convolutions(first, second, count=3)
        self.middle = convolutions(second, third, count=6)
        self.pool1, self.pool2 = nn.AvgPool2d(2), nn.AvgPool2d(2)
        self.up2 = nn.ConvTranspose2d(third, second, 2, stride=2)
        self.decoder2 = convolutions(second, second, count=3)
        self.up1 = nn.ConvTranspose2d(second, first, 2, stride=2)
        self.decoder1 = convolutions(first, first, count=2)
        self.out = nn.Conv2d(first, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.encoder1(x)
        second = self.encoder2(self.pool1(first))
        x = self.middle(self.pool2(second))
        x = self.decoder2(self.up2(x) + second)
        x = self.decoder1(self.up1(x) + first)
        return self.out(x)


class CBDNet(nn.Module):
    """CBDNet for packed raw images: an estimator of the noise, and a denoiser that reads its map.

    The map has as many planes as the image. `eslkit_tsdn.losses.cbdnet_loss` is its own loss;
    where it is trained like the others, with an L1 loss on the image alone, the map is left to
    itself: `stage_l1(outputs, clean, weights=(0, 1))`.

    Args:
        widths: channels of the denoiser's three levels. The default is the paper's network of
            4,367,176 parameters and 297.63 GFLOPs at 1x4x512x512.
        estimator_width: channels inside the estimator.
        in_channels: planes of the image and of the map; 4 for packed Bayer raw.

    Raises:
        InputError: not three widths, or a number of channels below 1.

    Example:
        >>> import torch
        >>> CBDNet((4, 8, 16), estimator_width=4).eval()(torch.zeros(1, 4, 32, 32)).shape
        torch.Size([1, 4, 32, 32])
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256),
        estimator_width: int = 32,
        in_channels: int = 4,
    ) -> None:
        super().__init__()
        if len(widths) != 3:
            raise InputError(
                f"widths={tuple(widths)} has {len(widths)} level(s); CBDNet has three. Pass for "
                "example widths=(16, 32, 64)."
            )
        check_channels(widths, estimator_width=estimator_width, in_channels=in_channels)
        self.estimator = Estimator(in_channels, estimator_width)
        self.denoiser = Denoiser(2 * in_channels, widths, in_channels)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Restore an image.

        Args:
            x: (batch, in_channels, height, width), height and width divisible by 4.

        Returns:
            In inference (`model.eval()`) the image, of the shape of `x`, not clipped; in training
            the map of the noise and the image, both of that shape.

        Raises:
            InputError: height or width is not divisible by 4.
        """
        check_size(x, factor=4)
        noise = self.estimator(x)
        image = self.denoiser(torch.cat([x, noise], dim=1)) + x
        return (noise, image) if self.training else image
