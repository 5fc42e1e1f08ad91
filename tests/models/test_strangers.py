"""The laws on networks that others wrote, each built by its own package in its own style."""

from __future__ import annotations

from typing import Any

import pytest

# Warnings in the code of others are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = ("unet/2d", "unet/3d-res", "unet/2d-preact")
"""In every test run; their package comes with `dev`."""
LARGE = """
monai/unet3d-res monai/unet1d monai/unet-batch monai/dynunet monai/segresnet monai/segresnetds
monai/vnet monai/swinunetr2d monai/autoencoder monai/mednext monai/diffusion-unet
monai/autoencoderkl
x-unet/xunet x-unet/xunet-convnext segformer-pytorch/segformer
diffusers/unet2d diffusers/unet2d-cond diffusers/autoencoder-kl diffusers/vq diffusers/unet1d
transformers/segformer transformers/glpn transformers/dpt transformers/swin2sr
transformers/upernet-convnext transformers/depth-anything
""".split()
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.models) for name in LARGE)]
PHASES = ("trace", "expand", "expand_trains", "shrink", "shrink_trains", "back", "exact")


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
    """What was measured, by name: one measurement serves all tests."""
    return {}


def row_of(name: str, measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    strangers = pytest.importorskip("benchmarks.strangers", reason="the benchmarks are not here")
    trial = pytest.importorskip("benchmarks.strangers.trial")
    if name not in measured:
        found = list(strangers.networks(name))
        if not found:
            pytest.skip(f"the package of {name} is not installed: pip install -e '.[models]'")
        measured[name] = trial.measure(found[0])
    return measured[name]


@pytest.mark.parametrize("name", NAMES)
def test_it_grows_shrinks_and_trains(name: str, measured: dict[str, dict[str, Any]]) -> None:
    """Widened and halved it runs forward and backward; law 5: it comes back to its shapes."""
    row = row_of(name, measured)
    assert {phase: row.get(phase) for phase in PHASES} == dict.fromkeys(PHASES, "ok")
    assert row["shrink_ratio_used"] <= 0.5
    assert row["expand_ratio"] >= 2


@pytest.mark.parametrize("name", NAMES)
def test_narrowed_is_masked_and_widened_is_the_same(
    name: str, measured: dict[str, dict[str, Any]]
) -> None:
    """Laws 3 and 4, for all groups of channels that nothing mixes."""
    row = row_of(name, measured)
    assert row["narrow_error"] < 1e-8
    assert row["preserve_error"] < 1e-8
