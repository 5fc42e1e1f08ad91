"""Small photographs, drawn instead of read."""

from __future__ import annotations

import torch

from eslkit_tsdn.data.photos import Photo

IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def drawn_photo(name: str, *, height: int = 40, width: int = 48, seed: int = 0) -> Photo:
    """Smooth colours between 0.1 and 0.9, with one edge."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 4, 5, 6, generator=generator)
    packed = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    packed[:, height // 2 :] *= 0.5
    return Photo(
        name=name,
        packed=(0.1 + 0.8 * packed).contiguous(),
        white_balance=(2.0, 1.0, 2.0),
        color_matrix=IDENTITY,
    )


def drawn_photos(num: int, **sizes: int) -> tuple[Photo, ...]:
    """So many different ones."""
    return tuple(drawn_photo(f"drawn-{i}", seed=i, **sizes) for i in range(num))
