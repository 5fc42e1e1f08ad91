"""Torch-Pruning on the same network: halve it, run it forward and backward."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from benchmarks.strangers.inputs import Stranger
from benchmarks.strangers.trial import build, count, failed, train_step
from eslkit.graph.trace import example_arguments

__all__ = ["measure_rival"]


def measure_rival(stranger: Stranger) -> dict[str, Any]:
    """Its own pruner at 0.5 by magnitude; layers that make the model's output are ignored."""
    torch.set_num_threads(1)
    model, inputs = build(stranger)
    row: dict[str, Any] = {}
    train = True
    try:
        want = train_step(model, inputs, train=True)
    except Exception:  # noqa: BLE001  as for ours
        train = False
        want = train_step(model, inputs, train=False)
    before = count(model)
    start = time.perf_counter()
    try:
        _prune(model, inputs)
        row["rival"] = "ok"
    except Exception as error:  # noqa: BLE001  whatever it is, it is the result
        row["rival"] = failed(error)
    row["rival_seconds"] = round(time.perf_counter() - start, 3)
    row["rival_ratio"] = round(count(model) / before, 4)
    try:
        got = train_step(model, inputs, train=train)
        row["rival_trains"] = "ok" if got == want else f"answers of shapes {got}, not {want}"
    except Exception as error:  # noqa: BLE001  as above
        row["rival_trains"] = failed(error)
    return row


def _prune(model: nn.Module, inputs: Any) -> None:
    import torch_pruning

    args, keywords = example_arguments(inputs)
    example: Any = keywords or (args[0] if len(args) == 1 else args)
    last = list(_output_layers(model, inputs))
    pruner = torch_pruning.pruner.MetaPruner(
        model,
        example,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[model.get_submodule(name) for name in last],
    )
    pruner.step()


def _output_layers(model: nn.Module, inputs: Any) -> list[str]:
    """Layers that make the model's output: what its users are told to name themselves."""
    import eslkit
    from eslkit.errors import EslError

    try:
        graph = eslkit.trace(model, example_inputs=inputs)
    except EslError:
        return []
    made = [g.producers for g in graph.groups if g.protected == "the model's output"]
    names = {name for producers in made for name in producers}
    known = dict(model.named_modules())
    return sorted(
        n for n in names if isinstance(known.get(n), (nn.Linear, nn.modules.conv._ConvNd))
    )
