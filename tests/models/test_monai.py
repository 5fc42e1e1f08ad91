"""The laws on networks that others wrote: MONAI's encoder-decoders for medical images."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import eslkit

pytestmark = [
    pytest.mark.models,
    # Warnings in the code of others are not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]


@dataclass(frozen=True)
class Network:
    """One network of monai.networks.nets, small enough for a test."""

    name: str
    arguments: dict[str, Any]
    num_dimensions: int = 2

    def make(self) -> tuple[nn.Module, torch.Tensor]:
        """The network in evaluation mode, and a random input."""
        nets = importlib.import_module("monai.networks.nets")
        made = getattr(nets, self.name)(
            spatial_dims=self.num_dimensions, in_channels=1, out_channels=2, **self.arguments
        )
        side = 32 if self.num_dimensions == 2 else 16
        return made.eval(), torch.rand(1, 1, *[side] * self.num_dimensions)


WIDTHS = (8, 16, 32)
NETWORKS = [
    Network("BasicUNet", {"features": (8, 8, 16, 32, 64, 8)}),
    Network("BasicUNetPlusPlus", {"features": (8, 8, 16, 32, 64, 8)}),
    Network("UNet", {"channels": WIDTHS, "strides": (2, 2), "num_res_units": 2}),
    Network("UNet", {"channels": WIDTHS, "strides": (2, 2)}, num_dimensions=3),
    Network("AttentionUnet", {"channels": WIDTHS, "strides": (2, 2)}),
    Network("SegResNet", {"init_filters": 8}),
    Network(
        "DynUNet",
        {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]},
    ),
]


def images(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What the network answers, as a list: some answer with several images."""
    with torch.no_grad():
        answer = model(x)
    return [answer] if isinstance(answer, torch.Tensor) else list(answer)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: f"{n.name}-{n.num_dimensions}d")
def test_expanded_and_shrunk_it_is_what_it_was(network: Network) -> None:
    """Laws 5 and 7: back to class, keys and shapes; the model that was passed in is untouched."""
    model, x = network.make()
    before = {key: value.clone() for key, value in model.state_dict().items()}

    big = eslkit.expand(model, width=2, example_inputs=(x,))
    small = eslkit.shrink(big, width=0.5, example_inputs=(x,))

    wider = sum(p.numel() for p in big.parameters()) / sum(p.numel() for p in model.parameters())
    assert wider > 3, f"only {wider:.2f} times the parameters: most groups were not widened"
    assert all(image.isfinite().all() for image in images(big, x))
    assert type(small) is type(model)
    assert shapes(small) == shapes(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.load_state_dict(small.state_dict(), strict=True)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: f"{n.name}-{n.num_dimensions}d")
def test_keeping_all_channels_is_the_identity(network: Network) -> None:
    """Law 2, bit for bit."""
    model, x = network.make()
    same = eslkit.shrink(model, width=1, example_inputs=(x,))
    for image, expected in zip(images(same, x), images(model, x), strict=True):
        assert torch.equal(image, expected)
