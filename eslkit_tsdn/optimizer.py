"""The paper's optimizer and the shape of its learning rate (facts, section 6).

Its 300 epochs are scaled to any number of iterations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["learning_rate_factor", "make_optimizer"]


def learning_rate_factor(progress: float) -> float:
    """The paper's learning rate relative to its start.

    Whole until half of the training (epoch 150 of 300), then half, and a tenth for the last
    sixth (after epoch 250).

    Args:
        progress: updates made, as a part of all, from 0 to 1.
    """
    if progress < 1 / 2:
        return 1.0
    return 0.5 if progress < 5 / 6 else 0.1


def make_optimizer(
    network: nn.Module,
    *,
    lr: float,
    iterations: int,
    rate: Callable[[int], float] | None = None,
    fused: bool = False,
) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.LambdaLR]:
    """The paper's Adam, and the scheduler to be stepped after every update.

    Args:
        network: whose parameters are trained, those that require a gradient.
        lr: learning rate at the start; 1e-4 in the paper.
        iterations: updates in the whole training.
        rate: updates made -> factor of the learning rate, instead of the paper's.
        fused: update all parameters in one kernel.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=lr, fused=fused or None)  # None: torch's choice
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, rate or (lambda iteration: learning_rate_factor(iteration / iterations))
    )
    return optimizer, scheduler
