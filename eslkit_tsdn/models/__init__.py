"""The paper's own networks: U-Net, SU-Net and TSDN."""

from __future__ import annotations

from eslkit_tsdn.models.tsdn import TSDN
from eslkit_tsdn.models.unet import SUNet, UNet

__all__ = ["TSDN", "SUNet", "UNet"]
