"""TSDN: several small U-Nets in a row, each restoring what the one before made of the image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from eslkit.errors import InputError
from eslkit_tsdn.models.unet import UNet

__all__ = ["EXPANDED", "TSDN"]

EXPANDED = (32, 64, 128, 256, 512)
"""Widths of the paper's expanded stages, which are those of its U-Net.

`TSDN(EXPANDED)` is the network of its TSDN2, TSDN3 and TSDN4, and `TSDN(EXPANDED, stages=3)` its
ThSDN; TSDN1 is a single such stage, `UNet()`.
"""


class TSDN(nn.Module):
    """The two-stage raw denoiser of the paper (its Fig. 2), with any number of stages.

    Stage: a sub-network of TSDN, here a `UNet`. The first denoises the noisy image, every
    following one restores the image from the output of the one before.

    Args:
        widths: channels of every level of every stage. The default is the paper's TSDN of
            964,456 parameters and 37.31 GFLOPs at 1x4x512x512.
        stages: number of stages; 2 in the paper.
        in_channels: planes of the input; 4 for packed Bayer raw (R, G1, B, G2).
        out_channels: planes of every stage's output, and of the input of all stages but
            the first.

    Raises:
        InputError: no stage, fewer than two widths, or a number of channels below 1.

    Example:
        >>> import torch
        >>> TSDN(widths=(8, 16, 32)).eval()(torch.zeros(1, 4, 64, 64)).shape
        torch.Size([1, 4, 64, 64])
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64, 128),
        stages: int = 2,
        in_channels: int = 4,
        out_channels: int = 4,
    ) -> None:
        super().__init__()
        if stages < 1:
            raise InputError(f"stages={stages}: a TSDN needs at least one stage; the paper has 2.")
        inputs = [in_channels] + [out_channels] * (stages - 1)
        self.stages = nn.ModuleList(UNet(widths, planes, out_channels) for planes in inputs)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Restore an image.

        Args:
            x: (batch, in_channels, height, width), height and width divisible by 2 to the
                power of the number of poolings (8 for four widths).

        Returns:
            In inference (`model.eval()`) the last stage's image, (batch, out_channels,
            height, width); in training the images of all stages, for a loss on each.

        Raises:
            InputError: height or width cannot be halved that often.
        """
        outputs: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return tuple(outputs) if self.training else x
