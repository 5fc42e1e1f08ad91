"""A network with a residual connection and a concat, small enough to be worked out by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def square(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


class Residual(nn.Module):
    """Two layers produce one group; a concat puts it beside another."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.again = nn.Conv2d(width, width, 3, padding=1)
        self.side = nn.Conv2d(width, 4, 3, padding=1)
        self.leave = nn.Conv2d(4 + width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.enter(x)))
        x = x + torch.relu(self.again(x))
        return self.leave(torch.cat([torch.relu(self.side(x)), x], 1))


def residual() -> tuple[Residual, Tensor]:
    torch.manual_seed(3)
    model = Residual().to(torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model, torch.randn(2, 2, 8, 8, dtype=torch.float64)
