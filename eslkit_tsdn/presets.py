"""How large networks are and how long they are trained, by name.

One dial, the widths of a stage of the small TSDN, gives all other networks: the paper's, of
16-32-64-128, or smaller ones in the same proportions (facts, section 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from eslkit.errors import InputError
from eslkit_tsdn.budget import Budget
from eslkit_tsdn.data.source import SID_RATIOS, Ratios
from eslkit_tsdn.models import TSDN, CBDNet, DeamNet, NBNet, SUNet, UNet

__all__ = ["NETWORKS", "PRESETS", "NamedNetwork", "Preset", "build_network"]


class Preset(BaseModel):
    """Everything about a training that hangs neither on the pictures nor on the network's name."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """What it is called on the command line."""
    widths: tuple[int, ...] = Field(default=(16, 32, 64, 128), min_length=2)
    """Channels of a stage of the small TSDN, level by level; other networks go with them."""
    epochs: int | None = Field(default=None, ge=1)
    """Passes over all crops of the data, in each training; None where `iterations` counts."""
    iterations: int | None = Field(default=None, ge=1)
    """Updates in each training; None where `epochs` counts."""
    batch_size: int = Field(default=1, ge=1)
    """Crops in a batch of one process."""
    crop: int = Field(default=512, ge=8)
    """Height and width of a crop, in packed pixels."""
    lr: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    """Learning rate at the start; halved at half of the training, a tenth for its last sixth."""
    precision: Literal["32", "bf16"] = "32"
    """As in `Budget`."""
    channels_last: bool = True
    """As in `Budget`."""
    compiled: bool = False
    """As in `Budget`."""
    fused: bool = False
    """As in `Budget`."""
    gain: float | None = Field(default=None, gt=0)
    """System gain K of drawn noise in DN per electron; None draws it for every crop."""
    ratios: Ratios = SID_RATIOS
    """Exposure ratios of drawn noise."""
    largest: int = Field(default=512, ge=8)
    """Pictures to validate on are cut to their centre of so many packed pixels a side."""

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError(
                f"epochs={self.epochs} and iterations={self.iterations}: expected one of them"
            )
        return self

    def epoch_iterations(self, *, num_crops: int, num_processes: int = 1) -> int:
        """Updates in one pass over the data, 1 at least.

        Args:
            num_crops: crops in the data.
            num_processes: processes that train together, each with a batch of its own.
        """
        return max(1, num_crops // (self.batch_size * num_processes))

    def budget(self, *, num_crops: int, num_processes: int = 1) -> Budget:
        """The budget of one training, epochs counted out in updates.

        Args:
            num_crops: crops in the data.
            num_processes: processes that train together, each with a batch of its own.
        """
        iterations = self.iterations
        if self.epochs is not None:
            epoch = self.epoch_iterations(num_crops=num_crops, num_processes=num_processes)
            iterations = self.epochs * epoch
        return Budget(
            iterations=iterations or 1,
            lr=self.lr,
            precision=self.precision,
            channels_last=self.channels_last,
            compiled=self.compiled,
            fused=self.fused,
        )


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(name="paper", epochs=300),
        Preset(
            name="paper-fast",
            epochs=300,
            batch_size=16,
            lr=4e-4,
            precision="bf16",
            compiled=True,
            fused=True,
        ),
        Preset(
            name="mini",
            widths=(8, 16, 32),
            iterations=1000,
            batch_size=16,
            crop=32,
            lr=1e-3,
            gain=4.0,
        ),
        Preset(
            name="shipped",
            iterations=20_000,
            batch_size=8,
            crop=64,
            lr=3e-4,  # at 1e-3 the training broke down after 3,900 updates
            ratios=Ratios(1.0, 300.0, even_in_stops=True),
        ),
        Preset(
            name="smoke",
            widths=(4, 8, 16),
            iterations=20,
            batch_size=4,
            crop=32,
            lr=2e-3,
            gain=4.0,
            largest=64,
        ),
    )
}
"""By name. `paper`: as printed (facts, sections 6 and 7). `paper-fast`: the same samples in batches
of 16 as modern GPUs want them, the learning rate scaled by the square root of the batch, which the
paper does not cover. `mini`: small networks on two cores. `shipped`: the paper's TSDN for pictures
of any brightness, as the weights that come with eslkit were trained. `smoke`: seconds, to see that
it runs."""


@dataclass(frozen=True)
class NamedNetwork:
    """A network of the paper, in the widths of any preset."""

    words: str
    """What it is."""
    build: Callable[[tuple[int, ...]], nn.Module]
    """Widths of a stage of the small TSDN -> the network."""
    weights: tuple[float, ...] | None = None
    """Factors of the losses of what it returns in training; None for all 1."""
    in_turn: bool = False
    """Whether its stages are trained one after the other, each as long as the budget says."""


def _expanded(widths: tuple[int, ...]) -> tuple[int, ...]:
    """Twice the channels and one level more: a stage of the expanded TSDN, and U-Net."""
    return (*(2 * width for width in widths), 4 * widths[-1])


def _narrower(widths: tuple[int, ...], *full: int) -> tuple[int, ...]:
    """A rival's channels, divided by as much as TSDN's."""
    return tuple(max(1, channels * widths[0] // 16) for channels in full)


def _two(widths: tuple[int, ...]) -> nn.Module:
    return TSDN(_expanded(widths), stages=2)


def _cbdnet(widths: tuple[int, ...]) -> nn.Module:
    (estimator,) = _narrower(widths, 32)
    return CBDNet(_narrower(widths, 64, 128, 256), estimator_width=estimator)


def _nbnet(widths: tuple[int, ...]) -> nn.Module:
    skip, *channels = _narrower(widths, 128, 32, 64, 128, 256, 512)
    return NBNet(channels, skip_width=skip)


NETWORKS: Mapping[str, NamedNetwork] = {
    "tsdn": NamedNetwork("TSDN: two small stages", lambda w: TSDN(w, stages=2)),
    "unet": NamedNetwork("U-Net of SID and ELD", lambda w: UNet(_expanded(w))),
    "sunet": NamedNetwork("SU-Net: half the widths of U-Net", lambda w: SUNet((*w, 2 * w[-1]))),
    "thsdn": NamedNetwork("ThSDN: three expanded stages", lambda w: TSDN(_expanded(w), stages=3)),
    "tsdn1": NamedNetwork("TSDN1: one expanded stage", lambda w: UNet(_expanded(w))),
    "tsdn2": NamedNetwork("TSDN2: two expanded stages, one loss", _two, weights=(0.0, 1.0)),
    "tsdn3": NamedNetwork(
        "TSDN3: two expanded stages, one trained after the other",
        _two,
        weights=(0.0, 1.0),
        in_turn=True,
    ),
    "tsdn4": NamedNetwork("TSDN4: two expanded stages, two losses", _two),
    "cbdnet": NamedNetwork("CBDNet", _cbdnet, weights=(0.0, 1.0)),
    "nbnet": NamedNetwork("NBNet", _nbnet),
    "deamnet": NamedNetwork("DeamNet", lambda w: DeamNet(*_narrower(w, 64))),
}
"""By name on the command line (Tables I, II and V). Rivals are trained as the paper trains them:
with its own loss and settings, CBDNet's map of the noise left to itself."""


def build_network(name: str, *, widths: tuple[int, ...], seed: int = 0) -> nn.Module:
    """A network of the paper before any training; the caller's random state is left alone.

    Args:
        name: a key of `NETWORKS`.
        widths: channels of a stage of the small TSDN; all other networks go with them.
        seed: of the weights.

    Raises:
        InputError: no network has that name, or the widths cannot be.
    """
    if name not in NETWORKS:
        raise InputError(f"{name!r} is no network; known are {', '.join(NETWORKS)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name].build(widths)
