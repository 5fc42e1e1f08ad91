"""Reading and writing by an index, losses inside of a network, and values of a certain rank."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.eslkit.families.family import Family, Written, conv

__all__ = ["FAMILIES"]


def around(use: Callable[[Tensor], Tensor]) -> Callable[[int, int, int], nn.Module]:
    """A block that does this to its input, and then has a convolution."""

    def block(a: int, b: int, dims: int) -> nn.Module:
        return Written(lambda m, x: m.out(use(x)), out=conv(dims, a, b, 3))

    return block


def sorted_rows(x: Tensor) -> Tensor:
    """Every row sorted, by the index that sorts it."""
    return x + x.gather(-1, x.argsort(-1))


def scattered_rows(x: Tensor) -> Tensor:
    """Every row written to the places that sort it."""
    return x + torch.zeros_like(x).scatter(-1, x.argsort(-1), x)


def added_rows(x: Tensor) -> Tensor:
    """All rows added to the first ones."""
    places = torch.arange(x.shape[2]) // 2
    return x + torch.zeros_like(x).index_add(2, places, x)


def sparse_attention(x: Tensor) -> Tensor:
    """Attention between channels, in which each sees the half that is nearest to it."""
    rows = F.normalize(x.flatten(2), dim=-1)
    seen = rows @ rows.transpose(1, 2)
    nearest = seen.topk(seen.shape[-1] // 2, -1)[1]
    mask = torch.zeros_like(seen).scatter_(-1, nearest, 1.0)
    seen = torch.where(mask > 0, seen, torch.full_like(seen, -1e9)).softmax(-1)
    return (seen @ x.flatten(2)).reshape(x.shape)


def committed(x: Tensor) -> Tensor:
    """Adds its distance to a rounded self, as a vector-quantised network computes it."""
    return x + F.mse_loss(x, (4 * x).round() / 4)


def apart(x: Tensor) -> Tensor:
    """The same for each element, and a gate by the logarithm of a sigmoid."""
    return F.mse_loss(x, x.relu(), reduction="none") + F.logsigmoid(x)


def ranked(x: Tensor) -> Tensor:
    """Less the third value of each channel, and its extremes."""
    rows = x.flatten(2)
    low, high = rows.aminmax(dim=-1)
    return x - (rows.kthvalue(3, -1)[0] + low + high).reshape(*x.shape[:2], *(1,) * (x.dim() - 2))


FAMILIES = (
    Family("sorted-rows", around(sorted_rows)),
    Family("scattered-rows", around(scattered_rows)),
    Family("added-rows", around(added_rows)),
    Family("sparse-attention", around(sparse_attention), mixes=True),
    Family("committed", around(committed), mixes=True),
    Family("loss-by-element", around(apart)),
    Family("ranked", around(ranked)),
)
