"""Matrices inverted and systems solved: projections onto what the network finds itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.eslkit.families.family import DIMS, Family, Written, conv

__all__ = ["FAMILIES"]

Solve = Callable[[Tensor, Tensor], Tensor]
"""(batch, k, k) and (batch, k, c) -> (batch, k, c)."""


def inverse(gram: Tensor, side: Tensor) -> Tensor:
    return torch.linalg.inv(gram) @ side


def triangular(gram: Tensor, side: Tensor) -> Tensor:
    lower = torch.linalg.cholesky(gram)
    half = torch.linalg.solve_triangular(lower, side, upper=False)
    return torch.linalg.solve_triangular(lower.mT, half, upper=True)


def cholesky(gram: Tensor, side: Tensor) -> Tensor:
    return torch.cholesky_solve(side, torch.linalg.cholesky(gram))


def from_the_right(gram: Tensor, side: Tensor) -> Tensor:
    return torch.linalg.solve(gram, side.mT, left=False).mT


def projected(solved: Solve) -> Callable[[int, int, int], nn.Module]:
    """Features projected onto four maps that are found from them (NBNet)."""

    def block(a: int, b: int, dims: int) -> nn.Module:
        def use(m: Written, x: Tensor) -> Tensor:
            basis, kept = m.basis(x).flatten(2), m.enter(x)
            planes = kept.flatten(2)
            gram = basis @ basis.mT + 0.1 * torch.eye(basis.shape[1], dtype=x.dtype)
            made = solved(gram, basis @ planes.mT)
            return m.out(torch.cat([x, (made.mT @ basis).view(kept.shape)], 1))

        layers = {"basis": conv(dims, a, 4, 3), "enter": conv(dims, a, 2 * a, 3)}
        return Written(use, **layers, out=conv(dims, 3 * a, b))

    return block


def window(a: int, b: int, dims: int) -> nn.Module:
    """Features times the constant one, projected: systems of one vector each."""

    def use(m: Written, x: Tensor) -> Tensor:
        basis = m.basis(x).flatten(2)
        gram = basis @ basis.mT + 0.1 * torch.eye(basis.shape[1], dtype=x.dtype)
        shares = torch.linalg.solve(gram, basis.sum(2))
        return m.out(x * (shares.unsqueeze(1) @ basis).view(x.shape[0], 1, *x.shape[2:]))

    return Written(use, basis=conv(dims, a, 4, 3), out=conv(dims, a, b, 3))


KEPT = ("copies of one would make singular",)

FAMILIES = (
    Family("projection", projected(inverse), DIMS, ratio=0.35, keeps=KEPT),
    Family("projection-solved", projected(torch.linalg.solve), (2,), ratio=0.35, keeps=KEPT),
    Family("projection-triangular", projected(triangular), (2,), ratio=0.35, keeps=KEPT),
    Family("projection-cholesky", projected(cholesky), (2,), ratio=0.35, keeps=KEPT),
    Family("projection-from-the-right", projected(from_the_right), (2,), ratio=0.35, keeps=KEPT),
    Family("projected-window", window, (2,), ratio=0.35, keeps=KEPT),
)
