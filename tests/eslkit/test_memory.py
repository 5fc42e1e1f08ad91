"""The estimate of a training's memory, against what torch keeps on real tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from eslkit.memory import saved_bytes, training_bytes
from eslkit_tsdn.models.tsdn import TSDN


def really_saved(model: nn.Module, x: Tensor) -> int:
    known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), x)}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x)
    del out
    return sum(storage.nbytes() for storage in kept.values())


class ByName(nn.Module):
    """Goes by values: no stand-in can tell which way."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x


@pytest.mark.parametrize(
    "make",
    [
        lambda: TSDN(widths=(2, 4, 8)),
        lambda: nn.Sequential(
            nn.Conv2d(4, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Dropout(0.5),
            nn.Conv2d(8, 8, 1),
            nn.GELU(),
        ),
    ],
)
def test_it_is_what_autograd_keeps(make: object) -> None:
    model, x = make(), torch.rand(2, 4, 16, 16)  # type: ignore[operator]
    before = torch.get_rng_state()
    foretold = saved_bytes(model, example_inputs=x)
    assert torch.equal(torch.get_rng_state(), before)
    assert foretold == really_saved(model, x)
    number = sum(p.nbytes for p in model.parameters())
    buffers = sum(b.nbytes for b in model.buffers())
    assert training_bytes(model, example_inputs=x) == 4 * number + buffers + (foretold or 0)


def test_what_cannot_be_foretold_is_none() -> None:
    assert saved_bytes(ByName(), example_inputs=torch.ones(3)) is None
    assert training_bytes(ByName(), example_inputs=torch.ones(3)) is None


def test_maps_of_one_position_are_counted_in_eval_mode() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    assert saved_bytes(model, example_inputs=torch.zeros(1, 1, 1, 1)) is not None
