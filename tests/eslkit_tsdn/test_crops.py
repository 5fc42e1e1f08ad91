"""Batches: the same for the same seed and number, and always in the same Bayer phase."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eslkit.errors import InputError
from eslkit_tsdn.data.crops import BatchSource, random_crop, seeded, to_mosaic, to_packed
from eslkit_tsdn.data.source import Ratios
from eslkit_tsdn.raw import unpack
from tests.eslkit_tsdn.fakes import drawn_photos

RGGB = ((0, 1), (3, 2))  # colour codes R, G1, B, G2


def numbered_mosaic(height: int, width: int) -> torch.Tensor:
    """Every pixel tells where it stands: 1000 * row + column."""
    return 1000.0 * torch.arange(height)[:, None] + torch.arange(width)[None, :]


def test_mosaic_and_planes_are_those_of_the_raw_module():
    packed = torch.rand(4, 5, 7)
    mosaic = to_mosaic(packed)
    assert torch.equal(mosaic, torch.as_tensor(unpack(packed.numpy(), RGGB)))
    assert torch.equal(to_packed(mosaic), packed)


@given(seed=st.integers(0, 10_000), size=st.integers(1, 6))
def test_crops_keep_the_bayer_phase_and_are_whole_pieces(seed, size):
    mosaic = numbered_mosaic(18, 22)
    crop = random_crop(mosaic, size=size, generator=seeded(seed))
    assert crop.shape == (2 * size, 2 * size)
    row, column = crop // 1000, crop % 1000
    # Red stays red and blue blue: (row, column) parities (0, 0) and (1, 1). Greens may swap.
    red, first_green, blue, second_green = to_packed(torch.stack([row, column])).unbind(1)
    assert (red % 2 == 0).all()
    assert (blue % 2 == 1).all()
    assert ((first_green[0] + first_green[1]) % 2 == 1).all()
    assert ((second_green[0] + second_green[1]) % 2 == 1).all()
    # Neighbours in the crop are neighbours in the mosaic, always in the same direction.
    steps = {tuple(sorted(set(crop.diff(dim=axis).flatten().tolist()))) for axis in (0, 1)}
    sizes = {abs(step) for (step,) in steps}
    assert sizes == {1.0, 1000.0}


def test_every_mirroring_and_every_place_occurs():
    mosaic = numbered_mosaic(6, 6)  # room for a crop of 4x4 at one place, plus two pixels
    crops = {
        tuple(random_crop(mosaic, size=2, generator=seeded(k)).flatten().tolist())
        for k in range(200)
    }
    assert len(crops) == 8
    places = {
        random_crop(numbered_mosaic(10, 10), size=2, generator=seeded(k)).min().item()
        for k in range(400)
    }
    assert (
        {place // 1000 for place in places} == {place % 1000 for place in places} == set(range(6))
    )


def test_a_batch_depends_on_seed_and_number_alone():
    first, second = (BatchSource(drawn_photos(3), batch_size=4, crop=8, seed=5) for _ in range(2))
    ahead = [first.batch(k) for k in (0, 1, 2, 3)]
    torch.manual_seed(123)
    for batch, again in zip(ahead[2:], second.batches(2, 4), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(batch, again, strict=True))
    other = BatchSource(drawn_photos(3), batch_size=4, crop=8, seed=6).batch(0)
    assert not torch.equal(other.clean, ahead[0].clean)
    assert not torch.equal(ahead[1].clean, ahead[0].clean)


def test_a_batch_is_noisy_clean_and_ratio():
    batch = BatchSource(
        drawn_photos(2), batch_size=6, crop=8, gain=4.0, ratios=Ratios(100, 300)
    ).batch(0)
    assert batch.noisy.shape == batch.clean.shape == (6, 4, 8, 8)
    assert batch.ratio.shape == (6,)
    assert batch.ratio.min() >= 100
    assert batch.ratio.max() <= 300
    assert batch.ratio.unique().numel() == 6
    assert batch.noisy.min() >= 0
    assert batch.noisy.max() <= 1
    assert (batch.noisy - batch.clean).abs().mean() > 0.01


def test_what_cannot_be_cropped_is_refused():
    with pytest.raises(InputError, match="no photograph to train on"):
        BatchSource([])
    with pytest.raises(InputError, match=r"drawn-0 has 40x48 packed pixels.*40x40"):
        BatchSource(drawn_photos(1), crop=40)


def test_ratios_are_even_in_numbers_or_in_stops() -> None:
    plain, stops = Ratios(1.0, 256.0), Ratios(1.0, 256.0, even_in_stops=True)
    for ratios, middle in ((plain, 128.5), (stops, 16.0)):
        drawn = ratios.draw(4000, generator=torch.Generator().manual_seed(0))
        assert 1 <= drawn.min() < drawn.max() <= 256
        assert float((drawn < middle).float().mean()) == pytest.approx(0.5, abs=0.03)
