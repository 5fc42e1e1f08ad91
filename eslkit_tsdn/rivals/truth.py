"""What a network is trained for beside what a teacher says: the clean image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from eslkit_tsdn.data.source import NoisyBatch
from eslkit_tsdn.losses import Loss, float_images, stage_l1
from eslkit_tsdn.rivals.taps import watched

__all__ = ["Truth"]


class Truth:
    """A loss that also hands on the images that it looked at.

    Args:
        loss: the network's own (CBDNet's looks at its noise map too); None for L1 on the image of
            every stage.
        weights: one factor per stage, for that L1.
    """

    def __init__(self, loss: Loss | None, weights: Sequence[float] | None) -> None:
        self.loss, self.weights = loss, weights

    def __call__(self, network: nn.Module, batch: NoisyBatch) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the images of all stages; of a network with a loss of its own the last."""
        if self.loss is None:
            images = float_images(network(batch.noisy))
            return self.against(images, batch.clean), images
        with watched(network, [""]) as caught:
            value = self.loss(network, batch)
        return value, float_images(caught[""])[-1:]

    def against(self, images: Sequence[Tensor], wanted: Tensor) -> Tensor:
        """L1 of the images that were handed on against any image."""
        return stage_l1(images, wanted, weights=self.weights if self.loss is None else None)
