"""Architectures as values become modules, and are counted."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from eslkit.cost import cost
from eslkit.errors import InputError
from eslkit_tsdn.models import TSDN, CBDNet, DeamNet, NBNet, UNet
from eslkit_tsdn.recipes.values import Network

__all__ = ["TABLE_SIZE", "build", "costs", "network_costs"]

TABLE_SIZE = 512
"""Costs are told for 1x4x512x512, as in the paper's tables."""


def build(network: Network, *, seed: int = 0) -> nn.Module:
    """A network with random weights.

    Args:
        network: which.
        seed: of the weights; the caller's random numbers are left alone.

    Returns:
        The module, in training mode, on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _made(network)


def _made(network: Network) -> nn.Module:
    if network.stages > 1 and network.kind != "tsdn":
        raise InputError(f"{network.kind} has one stage, got stages={network.stages}.")
    first = network.widths[0]
    match network.kind:
        case "tsdn":
            return TSDN(network.widths, network.stages)
        case "unet":
            return UNet(network.widths)
        case "cbdnet":
            return CBDNet(network.widths, estimator_width=max(1, first // 2))
        case "nbnet":
            return NBNet(network.widths, skip_width=4 * first, basis=max(2, first // 2))
        case "deamnet":
            return DeamNet(first, gate_width=max(1, first // 16))


def costs(module: nn.Module) -> tuple[int, int]:
    """Parameters, and multiply-accumulates of one image of 1x4x512x512 in inference."""
    found = cost(module, example_inputs=(torch.zeros(1, 4, TABLE_SIZE, TABLE_SIZE),))
    return found.parameters, found.macs


@lru_cache(maxsize=256)
def network_costs(network: Network) -> tuple[int, int]:
    """The same for an architecture."""
    return costs(build(network))
