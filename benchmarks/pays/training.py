"""One training: a plain loop, the same for every method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.pays.tasks import Task

__all__ = ["train"]


def train(
    network: nn.Module,
    task: Task,
    *,
    iterations: int,
    seed: int,
    rate: Callable[[int], float],
    teacher: nn.Module | None = None,
    teach: float = 0.0,
    begin: Callable[[torch.optim.Optimizer], None] | None = None,
    watch: Callable[[int], None] | None = None,
    lr: float | None = None,
) -> torch.optim.Optimizer:
    """Train a network in place with Adam.

    Args:
        network: what is trained.
        task: batches and loss.
        iterations: updates.
        seed: which batches it sees.
        rate: updates made -> factor of the learning rate.
        teacher: says what else to learn, weighed by `teach`.
        teach: its weight.
        begin: is given the optimizer before the first update.
        watch: is told how many updates are made, before each and at the end.
        lr: in place of the task's.
    """
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), lr=lr or task.lr)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    if begin is not None:
        begin(optimizer)
    for index in range(iterations):
        if watch is not None:
            watch(index)
        x, y = task.batch(index, seed=seed)
        x = x.contiguous(memory_format=torch.channels_last)
        output: Tensor = network(x)
        loss = task.loss(output, y)
        if teacher is not None:
            with torch.no_grad():
                told = teacher(x)
            loss = loss + teach * task.agree(output, told)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        falling.step()
    if watch is not None:
        watch(iterations)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return optimizer
