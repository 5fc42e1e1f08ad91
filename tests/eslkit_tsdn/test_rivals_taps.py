"""Looking into a network: what is found, caught, replaced and reached."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eslkit.errors import InputError, TraceError, UnsupportedError
from eslkit_tsdn.models import TSDN, UNet
from eslkit_tsdn.rivals.taps import features, find_taps, num_descents, reached, replaced, watched

X = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))


class InPlace(nn.Module):
    """Modules for everything, activations in place, a gate by global pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(inplace=True))
            for a, b in ((4, 4), (4, 6))
        )
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1))
        self.pool = nn.MaxPool2d(2)
        self.up = nn.Upsample(scale_factor=2)
        self.out = nn.Conv2d(10, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.down[0](x)
        x = self.down[1](self.pool(skip))
        x = x * self.gate(x).sigmoid()
        return self.out(torch.cat([self.up(x), skip], dim=1))


def test_the_levels_of_an_encoder_are_found() -> None:
    assert find_taps(UNet((2, 3, 4, 5)), X) == ("encoder.0", "encoder.1", "encoder.2", "middle")
    assert num_descents(UNet((2, 3)), X) == 1


def test_a_bottleneck_of_one_position_is_one_where_halving_led_to_it() -> None:
    taps = find_taps(UNet((2, 2, 2, 2, 2)), X)
    assert taps == ("encoder.0", "encoder.1", "encoder.2", "encoder.3", "middle")


def test_every_stage_has_an_encoder() -> None:
    taps = find_taps(TSDN((2, 3, 4), stages=2), X)
    one = ("encoder.0", "encoder.1", "middle")
    assert taps == tuple(f"stages.{stage}.{name}" for stage in range(2) for name in one)
    assert num_descents(TSDN((2, 3, 4), stages=3), X) == 3


def test_an_activation_in_place_counts_as_the_last_that_changed_the_map() -> None:
    """And the maps of one position inside the gate are no bottleneck."""
    model = InPlace()
    taps = find_taps(model, X)
    assert taps == ("down.0.1", "down.1.1")
    seen = features(model, X, taps=taps)
    assert all((each >= 0).all() for each in seen)


def test_features_are_those_of_the_layers_themselves() -> None:
    model = UNet((2, 3, 4))
    first = model.encoder[0](X)
    second = model.encoder[1](F.max_pool2d(first, 2))
    caught = features(model, X, taps=["encoder.1", "encoder.0"])
    assert torch.equal(caught[0], second) and torch.equal(caught[1], first)


def test_what_follows_the_last_tap_does_not_run() -> None:
    model = UNet((2, 3, 4))
    ran: list[str] = []
    model.middle.register_forward_hook(lambda *_: ran.append("middle"))
    model.out.register_forward_hook(lambda *_: ran.append("out"))
    features(model, X, taps=["encoder.1"])
    assert ran == []
    with watched(model, ["encoder.1"]) as caught:
        model(X)
    assert ran == ["middle", "out"] and list(caught) == ["encoder.1"]


def test_replaced_maps_are_what_the_decoder_sees() -> None:
    model = UNet((2, 3))
    given = {"encoder.0": torch.rand(1, 2, 16, 16), "middle": torch.rand(1, 3, 8, 8)}
    with replaced(model, given):
        seen = model(X)
    assert torch.equal(seen, model.out(model.decoder[0](given["middle"], given["encoder.0"])))
    assert not torch.equal(model(X), seen)


def test_nothing_is_left_behind_when_the_network_fails() -> None:
    model = UNet((2, 3))
    with pytest.raises(InputError, match="16x15"), replaced(model, {"middle": X}):
        model(torch.rand(1, 4, 16, 15))
    with pytest.raises(InputError, match="16x15"):
        features(model, torch.rand(1, 4, 16, 15), taps=["middle"])
    assert "forward" not in vars(model.middle) and not model.middle._forward_hooks


def test_parameters_are_reached_up_to_the_taps() -> None:
    model = UNet((2, 3, 4))
    model.encoder[0].requires_grad_(False)
    names = {name for name, _ in model.named_parameters()}
    expected = {name for name in names if name.startswith(("encoder", "middle"))}
    assert reached(model, X, taps=find_taps(model, X)) == expected
    assert not any(parameter.requires_grad for parameter in model.encoder[0].parameters())


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: features(UNet((2, 3)), X, taps=["nowhere"]), InputError, "no module 'nowhere'"),
        (
            lambda: features(TSDN((2, 3)).train(), X, taps=["stages.0", ""]),
            InputError,
            "gives a tuple, no tensor",
        ),
        (lambda: features(Spare(), X, taps=["spare"]), InputError, "'spare' of the Spare did not"),
        (lambda: find_taps(nn.Sequential(nn.Conv2d(4, 4, 1)), X), UnsupportedError, "No encoder"),
        (lambda: find_taps(UNet((2, 3)), X[:, :2]), TraceError, "did not run on an input of"),
    ],
)
def test_what_cannot_be_is_refused(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()


class Spare(nn.Module):
    """Has a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)
