"""Every network by name, and how the shapes of its weights tell what it was built with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any

from torch import nn

from eslkit_tsdn.models.cbdnet import CBDNet
from eslkit_tsdn.models.deamnet import DeamNet
from eslkit_tsdn.models.nbnet import DrawnNBNet, NBNet
from eslkit_tsdn.models.tsdn import TSDN
from eslkit_tsdn.models.unet import SUNet, UNet

__all__ = ["ARCHITECTURES", "Architecture", "Shapes"]

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a state_dict's tensors, by name."""


@dataclass(frozen=True)
class Architecture:
    """A network that can be built again from a few arguments."""

    build: Callable[..., nn.Module]
    """The class."""
    arguments: Callable[[Shapes], dict[str, Any]]
    """The arguments that give a state_dict of these shapes; a KeyError where none do."""


def _widths(shapes: Shapes, pattern: str) -> list[int]:
    """What the weights of that name make, for level 0, 1, ... as long as there are any."""
    names = takewhile(shapes.__contains__, (pattern.format(level) for level in count()))
    return [shapes[name][0] for name in names]


def _unet_arguments(shapes: Shapes) -> dict[str, Any]:
    """What a U-Net was called with."""
    outer = _widths(shapes, "encoder.{}.conv1.weight")
    return {
        "widths": [*outer, shapes["middle.conv1.weight"][0]],
        "in_channels": shapes["encoder.0.conv1.weight"][1],
        "out_channels": shapes["out.weight"][0],
    }


def _tsdn_arguments(shapes: Shapes) -> dict[str, Any]:
    """What a TSDN was called with: its first stage is a U-Net."""
    prefix = "stages.0."
    first = {key.removeprefix(prefix): shapes[key] for key in shapes if key.startswith(prefix)}
    stages = {key.split(".")[1] for key in shapes if key.startswith("stages.")}
    return {**_unet_arguments(first), "stages": len(stages)}


def _cbdnet_arguments(shapes: Shapes) -> dict[str, Any]:
    blocks = ("encoder1", "encoder2", "middle")
    width, channels, *_ = shapes["estimator.body.0.weight"]
    return {
        "widths": [shapes[f"denoiser.{block}.0.weight"][0] for block in blocks],
        "estimator_width": width,
        "in_channels": channels,
    }


def _drawn_nbnet_arguments(shapes: Shapes) -> dict[str, Any]:
    return {
        "widths": _widths(shapes, "encoder.{}.body.0.weight"),
        "basis": shapes["decoder.0.subspace.shortcut.weight"][0],
        "in_channels": shapes["encoder.0.body.0.weight"][1],
    }


def _nbnet_arguments(shapes: Shapes) -> dict[str, Any]:
    skip = shapes["decoder.0.skip.body.0.body.0.weight"]
    return {**_drawn_nbnet_arguments(shapes), "skip_width": skip[0]}


def _deamnet_arguments(shapes: Shapes) -> dict[str, Any]:
    width, channels, *_ = shapes["transform.0.weight"]
    return {
        "width": width,
        "gate_width": shapes["attentions.0.gate.0.weight"][0],
        "levels": len(_widths(shapes, "operator.encoder.{}.down.0.weight")),
        "iterations": len(_widths(shapes, "attentions.{}.conv.weight")),
        "in_channels": channels,
        "unused_layers": "operator.unused.join.weight" in shapes,
    }


ARCHITECTURES: Mapping[str, Architecture] = {
    "tsdn": Architecture(TSDN, _tsdn_arguments),
    "unet": Architecture(UNet, _unet_arguments),
    "sunet": Architecture(SUNet, _unet_arguments),
    "cbdnet": Architecture(CBDNet, _cbdnet_arguments),
    "nbnet": Architecture(NBNet, _nbnet_arguments),
    "nbnet-drawn": Architecture(DrawnNBNet, _drawn_nbnet_arguments),
    "deamnet": Architecture(DeamNet, _deamnet_arguments),
}
"""Every network that a file can name; those that could be taken for another stand behind it."""
