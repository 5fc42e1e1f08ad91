"""Architectures as values become modules, and are counted."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from eslkit.cost import cost
from eslkit_tsdn.presets import build_network
from eslkit_tsdn.recipes.values import Network

__all__ = ["TABLE_SIZE", "build", "costs", "network_costs"]

TABLE_SIZE = 512
"""Costs are told for 1x4x512x512, as in the paper's tables."""


def build(network: Network, *, seed: int = 0) -> nn.Module:
    """A network with random weights, on the CPU; the caller's random numbers are left alone.

    Args:
        network: which.
        seed: of the weights.

    Raises:
        InputError: no network has that name, or the widths cannot be.
    """
    return build_network(network.name, widths=network.widths, seed=seed)


def costs(module: nn.Module) -> tuple[int, int]:
    """Parameters, and multiply-accumulates of one image of 1x4x512x512 in inference."""
    found = cost(module, example_inputs=(torch.zeros(1, 4, TABLE_SIZE, TABLE_SIZE),))
    return found.parameters, found.macs


@lru_cache(maxsize=256)
def network_costs(network: Network) -> tuple[int, int]:
    """The same for an architecture."""
    return costs(build(network))
