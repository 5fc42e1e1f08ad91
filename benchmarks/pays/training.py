"""One training: a plain loop, the same for every method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.pays.progress import Kept, Stateful
from benchmarks.pays.tasks import Task

__all__ = ["train"]


class Watch(Protocol):
    """Notes something of a training."""

    told: dict[str, Any]
    """What it has noted."""

    def __call__(self, done: int) -> None: ...


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
    watch: Watch | None = None,
    kept: Kept | None = None,
    stop: Callable[[int], bool] | None = None,
    average: float = 0.0,
    lr: float,
    warmup: int,
    clip: float,
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
        kept: where the training goes on, and where it puts its checkpoints.
        stop: is asked before every update whether to end here.
        average: decay of an exponential average of the weights, which the network ends with; 0
            for none.
        lr: learning rate at the start.
        warmup: updates over which it rises to that; at most a tenth of all.
        clip: largest norm of the gradient; 0 for none.
    """
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, fused=True)
    rise = max(1, min(warmup, iterations // 10))
    falling = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min(1.0, (done + 1) / rise) * rate(done)
    )
    if begin is not None:
        begin(optimizer)
    averaged = None
    if average:
        averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(average))
    parts: dict[str, Stateful] = {
        "network": network,
        "optimizer": optimizer,
        "rate": falling,
        **({} if averaged is None else {"average": averaged}),
    }
    told = {} if watch is None else watch.told
    updates = range(iterations) if kept is None else kept.updates(iterations, parts, told)
    for index in updates:
        if watch is not None:
            watch(index)
        if stop is not None and stop(index):
            break
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
        if clip:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        falling.step()
        if averaged is not None:
            averaged.update_parameters(network)
    if averaged is not None:
        network.load_state_dict(averaged.module.state_dict())
    if watch is not None:
        watch(iterations)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return optimizer
