"""Where a level goes, on networks that make it hard; `at=`, `level=` and the refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eslkit.errors import DepthError, InputError
from eslkit.surgery.depth import (
    deepen,
    flatten_parts,
    flatten_step,
    inserted_at,
    inserted_levels,
    places_for_levels,
    take_out_levels,
)
from eslkit.surgery.level import LevelStyle

X = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(3))


def conv(a: int, b: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, **{"padding": 1, **options})


class Hourglass(nn.Module):
    """One reduction; what lies between it and the up-sampling is given."""

    def __init__(self, middle: nn.Module, width: int = 4, call: str = "plain") -> None:
        super().__init__()
        self.enter = conv(2, width)
        self.down = conv(width, width, stride=2)
        self.middle = middle
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.leave = conv(2 * width, 2)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.enter(x))
        low = torch.relu(self.down(skip))
        if self.call == "two arguments":
            low = self.middle(torch.zeros(1, 4), x=low)
        elif self.call == "tuple":
            _, low = self.middle(low)
        elif self.call == "twice":
            low = self.middle(self.middle(low))
        else:
            low = self.middle(low)
        low = F.interpolate(self.up(low), size=skip.shape[2:])
        return self.leave(torch.cat([low, skip], 1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(4, 4), conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.conv1(x)))


class Guided(Residual):
    def forward(self, guide: Tensor, *, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) + guide[:, :, None, None]


class Paired(Residual):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return x.mean(), super().forward(x)


class Tokens(nn.Module):
    """A transformer layer on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens.transpose(1, 2).reshape(x.shape)


class Aliased(nn.Module):
    """A layer under two names, called by the second."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = conv(4, 4)
        self.block = nn.Sequential(self.layer, nn.ReLU(), conv(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class InPlace(nn.Module):
    """Writes into what its layers return."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(4, 4), nn.ReLU(inplace=True), conv(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        x += 1
        return x.mul_(2)


class Typed(nn.Module):
    """Asks for the class of its layers, as guided diffusion's blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Residual(), Residual(), conv(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if isinstance(layer, (Residual, nn.Conv2d)):
                x = layer(x)
        return x


MIDDLES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "residual": (lambda: nn.Sequential(Residual(), Residual()), "plain"),
    "two arguments": (Guided, "two arguments"),
    "tuple": (Paired, "tuple"),
    "shared": (lambda: nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 4)), "twice"),
    "tokens": (Tokens, "plain"),
    "aliased": (Aliased, "plain"),
    "in place": (InPlace, "plain"),
    "typed": (Typed, "plain"),
    "no padding": (lambda: nn.Sequential(conv(4, 4, padding=0), conv(4, 4, padding=0)), "plain"),
    "depthwise": (
        lambda: nn.Sequential(conv(4, 4, groups=4), nn.GELU(), nn.Conv2d(4, 4, 1)),
        "plain",
    ),
}


@pytest.mark.parametrize("kind", MIDDLES)
@pytest.mark.parametrize("init", ["random", "identity"])
def test_everything_passes_the_level_and_leaves_no_trace(kind: str, init: str) -> None:
    make, call = MIDDLES[kind]
    model = Hourglass(make(), call=call).double().eval()
    x = X.double()
    big = deepen(model, init=init, example_inputs=x)
    for name in inserted_levels(big):
        inserted_at(big, name).level.register_forward_hook(lambda m, args, y: y.detach())
    out = big.train()(x)
    assert out.shape == model(x).shape
    out.square().sum().backward()
    reached = {name for name, p in big.named_parameters() if p.grad is not None and p.grad.any()}
    assert not any(name.startswith("down.") for name in reached)
    assert any(name.startswith("enter.") for name in reached)
    trained = deepen(model, init=init, example_inputs=x).train()
    trained(x).square().sum().backward()
    assert all(p.grad is not None for name, p in trained.named_parameters() if ".level." in name)
    if init == "identity":
        torch.testing.assert_close(trained.eval()(x), model(x), atol=1e-8, rtol=1e-8)
    for _ in range(2):
        trained, _ = flatten_step(trained)
    assert list(trained.state_dict()) == list(model.state_dict())
    assert torch.equal(trained(x), model(x))


def test_inside_a_residual_block_is_no_place() -> None:
    model = Hourglass(nn.Sequential(Residual(), Residual()))
    places = places_for_levels(model, example_inputs=X)
    assert places[0] == "before middle.1"
    assert not any("conv" in place for place in places)


def test_several_hourglasses_get_a_level_each() -> None:
    model = nn.Sequential(*(Hourglass(nn.Sequential(conv(4, 4), conv(4, 4))) for _ in range(3)))
    big = deepen(model, levels=2, example_inputs=X)
    assert len(inserted_levels(big)) == 3
    assert flatten_parts(big) == 4
    assert flatten_parts(take_out_levels(big, 1)) == 2
    assert repr(take_out_levels(big, 2)) == repr(model)
    with pytest.raises(DepthError, match="no inserted level"):
        take_out_levels(big, 3)
    assert {name.split(".")[0] for name in inserted_levels(big)} == {"0", "1", "2"}


def test_at_names_another_place() -> None:
    model = Hourglass(nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 4)))
    assert inserted_levels(deepen(model, at="middle.0", example_inputs=X)) == ["middle.0"]
    assert inserted_levels(deepen(model, at="leave", example_inputs=X)) == ["leave"]
    both = deepen(model, at=["middle.0", "leave"], levels=2, example_inputs=X)
    assert len(inserted_levels(both)) == 2
    assert flatten_parts(both) == 4
    with pytest.raises(InputError, match=r"at='centre'.*no such module; places.*before middle\.2"):
        deepen(model, at="centre", example_inputs=X)
    with pytest.raises(DepthError, match=r"at='1': no single tensor.*the model has no bottleneck"):
        deepen(nn.Sequential(nn.Flatten(), nn.Linear(512, 4)), at="1", example_inputs=X)


class Thin(nn.Module):
    """A level of the user's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.interpolate(self.conv(F.avg_pool2d(x, 2)), size=x.shape[2:])


def test_level_takes_a_builder_of_the_user_s_own() -> None:
    model = Hourglass(nn.Sequential(conv(4, 4), nn.ReLU(), conv(4, 4)))
    styles: list[LevelStyle] = []

    def build(style: LevelStyle, width: int) -> nn.Module:
        styles.append(style)
        return Thin(width)

    big = deepen(model, level=build, example_inputs=X)
    assert isinstance(inserted_at(big, "middle.2").level, Thin)
    assert (styles[0].dims, styles[0].kernel, styles[0].down) == (2, 3, "conv")
    assert flatten_parts(big) == 1
    small, gone = flatten_step(big)
    assert gone == ("middle.2.level.conv",)
    assert list(small.state_dict()) == list(model.state_dict())
    with pytest.raises(DepthError, match=r"none of its .* places takes a level.*shape"):
        deepen(model, level=lambda style, width: nn.Conv2d(width, 1, 1), example_inputs=X)


def test_what_refuses_says_why() -> None:
    with pytest.raises(DepthError, match=r"Sequential has no bottleneck.*at="):
        deepen(nn.Sequential(conv(2, 4), conv(4, 2)), example_inputs=X)
    with pytest.raises(DepthError, match=r"single position.*larger example_inputs"):
        deepen(Hourglass(conv(4, 4)), example_inputs=torch.zeros(1, 2, 2, 2))
    with pytest.raises(InputError, match="depth=-1"):
        deepen(Hourglass(conv(4, 4)), levels=-1, example_inputs=X)
    with pytest.raises(DepthError, match="has no inserted level"):
        flatten_step(Hourglass(conv(4, 4)))
    with pytest.raises(DepthError, match="no inserted level"):
        inserted_at(Hourglass(conv(4, 4)), "down")


def test_a_skip_around_the_whole_bottleneck_leaves_its_ends() -> None:
    places = places_for_levels(Hourglass(Residual()), example_inputs=X)
    assert {"before middle", "behind down", "before up"} <= set(places)
