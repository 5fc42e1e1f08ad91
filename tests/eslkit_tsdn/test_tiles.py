"""How far networks look, and pictures restored part by part as in the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eslkit.errors import InputError
from eslkit_tsdn.models import TSDN, UNet
from eslkit_tsdn.reach import Reach, measure_reach
from eslkit_tsdn.tiles import pad_to_multiple, plan_tiles, run_tiled
from tests.tolerances import FLOAT32_FORWARD


def counted_halo(levels: int) -> int:
    """How far a U-Net of so many levels looks, counted by hand: convolutions and pooling cells."""
    # Two 3x3 convolutions a level on the way down and up, two in the middle, and on the grid at
    # most one cell less one pixel more; rounded up to the grid.
    reach = sum(4 * 2**level for level in range(levels - 1)) + 2 * 2 ** (levels - 1)
    grid = 2 ** (levels - 1)
    return -(-reach // grid) * grid


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
def test_a_u_net_looks_as_far_as_its_convolutions(levels: int) -> None:
    reach = measure_reach(UNet([2] * levels))
    assert reach.multiple == 2 ** (levels - 1)
    assert reach.halo is not None
    assert 0 <= reach.halo - counted_halo(levels) <= reach.multiple


def test_what_is_known_of_other_networks() -> None:
    assert measure_reach(nn.Conv2d(4, 4, 5, padding=2)) == Reach(1, 2)
    assert measure_reach(nn.Conv2d(4, 4, 3, padding=2, dilation=2)) == Reach(1, 2)
    assert measure_reach(nn.Identity()) == Reach(1, 0)
    halved = nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2))
    assert measure_reach(halved) == Reach(2, 0)
    shuffled = nn.Sequential(
        nn.PixelUnshuffle(4), nn.Conv2d(64, 64, 3, padding=1), nn.PixelShuffle(4)
    )
    assert measure_reach(shuffled) == Reach(4, 4)
    assert measure_reach(TSDN((2, 3), stages=3)).halo == 3 * measure_reach(UNet((2, 3))).halo


class AnySize(nn.Module):
    """Pools by 4 whatever the size is, and cuts what is too much: it takes every size."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(x, 4, ceil_mode=True)
        return F.interpolate(y, scale_factor=4)[..., : x.shape[-2], : x.shape[-1]]


class Everything(nn.Module):
    """Every output depends on the whole picture."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=(2, 3), keepdim=True)


def test_a_grid_that_no_size_gives_away_is_found() -> None:
    assert measure_reach(AnySize()) == Reach(4, 0)


def test_a_network_that_sees_everything_is_not_cut() -> None:
    reach = measure_reach(Everything())
    assert reach.halo is None
    assert len(plan_tiles(64, 64, reach=reach, max_pixels=10)) == 1


def test_a_network_is_left_as_it_was() -> None:
    network = UNet((2, 3)).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    measure_reach(network)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_what_restores_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="no image of its input's size"):
        measure_reach(nn.Conv2d(4, 4, 3))
    with pytest.raises(InputError, match="a convolution expected 3 planes and got 4"):
        measure_reach(UNet((2, 3), in_channels=3))
    with pytest.raises(InputError, match="gives a list in inference"):
        measure_reach(Several())


class Several(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x]


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    widths = draw(st.lists(st.integers(1, 4), min_size=2, max_size=3))
    torch.manual_seed(draw(st.integers(0, 1000)))
    return TSDN(widths, stages=draw(st.integers(1, 2))).eval()


@settings(max_examples=40)
@given(networks(), st.integers(1, 130), st.integers(1, 130), st.integers(1, 5000))
def test_parts_are_restored_as_in_the_whole(
    network: nn.Module, height: int, width: int, max_pixels: int
) -> None:
    reach = measure_reach(network)
    image = torch.rand(1, 4, height, width)
    done: list[int] = []
    with torch.inference_mode():
        tiled = run_tiled(network, image, reach=reach, max_pixels=max_pixels, advance=done.append)
        whole = network(pad_to_multiple(image, reach.multiple))[..., :height, :width]
    FLOAT32_FORWARD.check(tiled, whole)
    assert sum(done) == height * width


def test_the_halo_is_not_wider_than_it_must_be() -> None:
    network = UNet((4, 6, 8)).eval()
    reach = measure_reach(network)
    assert reach.halo is not None
    narrow = Reach(reach.multiple, reach.halo - reach.multiple)
    image = 1e4 * torch.rand(1, 4, 128, 128)
    with torch.inference_mode():
        whole = network(image)
        kept, lost = (
            (run_tiled(network, image, reach=each, max_pixels=9000) - whole).abs().max()
            for each in (reach, narrow)
        )
    assert kept < 1e-2 * lost


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 6),
    st.integers(1, 10**5),
)
def test_parts_cover_the_picture_once(
    rows: int, columns: int, multiple: int, halo_cells: int, max_pixels: int
) -> None:
    height, width, reach = (
        rows * multiple,
        columns * multiple,
        Reach(multiple, halo_cells * multiple),
    )
    tiling = plan_tiles(height, width, reach=reach, max_pixels=max_pixels)
    times = torch.zeros(height, width)
    for (top, bottom, up, down), (first, last, left, right) in tiling:
        times[top:bottom, first:last] += 1
        assert not any(
            edge % multiple for edge in (top, bottom, up, down, first, last, left, right)
        )
        assert up == max(0, top - reach.halo) and down == min(height, bottom + reach.halo)
        assert left == max(0, first - reach.halo) and right == min(width, last + reach.halo)
    assert (times == 1).all()
    whole = plan_tiles(height, width, reach=reach, max_pixels=height * width)
    assert len(whole) == 1 and whole.num_pixels == height * width
    if tiling.largest > max_pixels:
        smallest = plan_tiles(height, width, reach=reach, max_pixels=1)
        assert tiling.largest == smallest.largest


def test_the_papers_frame_costs_little_overlap() -> None:
    """SID's packed frame in parts of 1.25 million pixels, stage by stage: 9 % at most."""
    reach = measure_reach(UNet((16, 32, 64, 128)))
    assert reach == Reach(8, 48)
    tiling = plan_tiles(1424, 2128, reach=reach, max_pixels=1_250_000)
    assert tiling.largest <= 1_250_000
    assert tiling.num_pixels / (1424 * 2128) < 1.1


def test_sides_off_the_grid_are_refused() -> None:
    with pytest.raises(InputError, match="width=30 is no multiple of 4"):
        plan_tiles(32, 30, reach=Reach(4, 8), max_pixels=100)


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 2, 8, 16]))
def test_padding_reflects(height: int, width: int, multiple: int) -> None:
    image = torch.rand(1, 1, height, width)
    padded = pad_to_multiple(image, multiple)
    assert not any(side % multiple for side in padded.shape[-2:])
    assert torch.equal(padded[..., :height, :width], image)
    more = (padded.shape[-1] - width, padded.shape[-2] - height)
    if more[0] < width and more[1] < height:
        assert torch.equal(padded, F.pad(image, (0, more[0], 0, more[1]), mode="reflect"))
