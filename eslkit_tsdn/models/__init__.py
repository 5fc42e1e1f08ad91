"""The paper's own networks (U-Net, SU-Net, TSDN) and those that it compares with."""

from __future__ import annotations

from eslkit_tsdn.models.cbdnet import CBDNet
from eslkit_tsdn.models.deamnet import DeamNet
from eslkit_tsdn.models.nbnet import DrawnNBNet, NBNet
from eslkit_tsdn.models.tsdn import TSDN
from eslkit_tsdn.models.unet import SUNet, UNet

__all__ = ["TSDN", "CBDNet", "DeamNet", "DrawnNBNet", "NBNet", "SUNet", "UNet"]
