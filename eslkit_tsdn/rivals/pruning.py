"""Prune and finetune: from a trained large network to the widths of the small one.

Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (the norm of the filters); Molchanov
et al., ICLR 2017, and Frankle and Carbin, ICLR 2019 (in steps, training in between). What is taken
out is chosen by Torch-Pruning, or by eslkit's own surgery, so that both can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

import eslkit
from eslkit.errors import InputError, UnsupportedError
from eslkit.surgery.depth import clone
from eslkit.surgery.policies import Policy
from eslkit_tsdn.budget import Budget, Machine
from eslkit_tsdn.data.source import Source
from eslkit_tsdn.fitting import Listener
from eslkit_tsdn.losses import Loss
from eslkit_tsdn.rivals.costs import TrainedPart, TrainingCost, batch_like, macs_of
from eslkit_tsdn.rivals.running import Run, divided
from eslkit_tsdn.rivals.torch_pruning import prune_channels

__all__ = ["Engine", "prune_and_finetune", "pruned", "pruning_cost"]

Engine = Literal["torch-pruning", "eslkit"]


def prune_and_finetune(
    small: nn.Module,
    large: nn.Module,
    source: Source,
    *,
    budget: Budget,
    importance: str | Policy = "l2",
    engine: Engine = "torch-pruning",
    steps: int = 1,
    seed: int = 0,
    loss: Loss | None = None,
    folder: Path | None = None,
    listener: Listener | None = None,
    machine: Machine | None = None,
) -> nn.Module:
    """Take channels out of a trained network until it is the small one, training after each step.

    Args:
        small: says what shall come out; its weights do not count, and it is not touched.
        large: the trained network, of the same form with wider layers; it is not touched.
        source: training batches.
        budget: of all steps together, each getting the same number of iterations.
        importance: which channels stay: "l1" or "l2" (the norm of their weights); with
            `engine="eslkit"` any of eslkit's policies.
        engine: what takes them out: "torch-pruning" (the extra `pruning`) or "eslkit".
        steps: 1 prunes at once; more prune in even steps ("iterative pruning").
        seed: of the trainings.
        loss: of the network and a batch, for networks that need one of their own; None for L1 on
            the image of every stage.
        folder: where it is kept; the same call goes on there after an interruption.
        listener: is told (updates made, loss).
        machine: where it runs; a GPU if there is one.

    Returns:
        A network with the class, keys and shapes of `small`.

    Raises:
        InputError: numbers that cannot be, networks that differ in more than widths, or
            Torch-Pruning is not installed.
        UnsupportedError: Torch-Pruning cannot prune this network.
        ResizeError: eslkit cannot.
        StoreError: the folder holds something else.
        TrainingError: it diverged.
    """
    counts = _iterations(budget.iterations, steps)
    run = Run("prune_and_finetune", source, budget, seed, folder, listener, machine, loss)
    run.claim(
        {"large": large},
        importance=importance if isinstance(importance, str) else _name(importance),
        engine=engine,
        steps=steps,
        widths=[list(parameter.shape) for parameter in small.parameters()],
    )
    x = source.batch(0).noisy[:1]
    network = large
    for step, iterations in enumerate(counts, start=1):
        network = pruned(
            network,
            small,
            large=large,
            step=step,
            steps=steps,
            example_input=x,
            importance=importance,
            engine=engine,
        )
        part = None if steps == 1 else f"step-{step}"
        run.fit(network, part=part, iterations=iterations, done=sum(counts[: step - 1]))
    return network


def pruned(
    network: nn.Module,
    small: nn.Module,
    *,
    large: nn.Module,
    step: int,
    steps: int,
    example_input: Tensor,
    importance: str | Policy = "l2",
    engine: Engine = "torch-pruning",
) -> nn.Module:
    """The network after one of several even steps from the large one's widths to the small one's.

    Args:
        network: the network after the step before (`large` itself before the first); untouched.
        small: the widths at the end.
        large: the widths at the start.
        step: which one, from 1.
        steps: of how many.
        example_input: what the networks run on.
        importance: which channels stay.
        engine: what takes them out.

    Returns:
        A network that is not trained yet; after the last step one of `small`'s class and shapes.

    Raises:
        InputError: networks that differ in more than widths, or no such engine; also as
            `prune_channels`.
        UnsupportedError: Torch-Pruning cannot prune this network.
        ResizeError: eslkit cannot.
    """
    if engine == "eslkit":
        if step == steps:
            return eslkit.inherit(small, network, init=importance, example_inputs=(example_input,))
        ends = [eslkit.trace(end, example_inputs=(example_input,)) for end in (large, small)]
        widths = _between(ends[0].widths, ends[1].widths, step=step, steps=steps)
        return eslkit.resize(network, widths, init=importance, example_inputs=(example_input,))
    if engine != "torch-pruning":
        raise InputError(f"engine={engine!r}: expected 'torch-pruning' or 'eslkit'.")
    if not isinstance(importance, str):
        raise InputError("A policy of eslkit's needs engine='eslkit'; Torch-Pruning takes a name.")
    widths = _between(_layer_widths(large), _layer_widths(small), step=step, steps=steps)
    made = prune_channels(network, widths, example_input=example_input, importance=importance)
    return _into(small, made) if step == steps else made


def pruning_cost(
    small: nn.Module,
    large: nn.Module,
    source: Source,
    *,
    iterations: int,
    steps: int = 1,
) -> TrainingCost:
    """What `prune_and_finetune` costs; the training of the large network is not in it.

    The widths of every step are the same for both engines and all importances.

    Args:
        small: as there.
        large: as there.
        source: as there.
        iterations: the budget's.
        steps: as there.

    Raises:
        InputError: fewer iterations than steps; also as `pruned`.
        ResizeError: eslkit, which is asked for the sizes, cannot resize this network.
    """
    x = batch_like(source)
    example = source.batch(0).noisy[:1]
    parts: list[TrainedPart] = []
    for step, count in enumerate(_iterations(iterations, steps), start=1):
        network = small
        if step < steps:
            network = pruned(
                large,
                small,
                large=large,
                step=step,
                steps=steps,
                example_input=example,
                importance="first",
                engine="eslkit",
            )
        parts.append(TrainedPart(f"step {step}", count, trained=macs_of(network, x)))
    return TrainingCost(tuple(parts))


def _iterations(iterations: int, steps: int) -> tuple[int, ...]:
    if steps < 1:
        raise InputError(f"steps={steps}: pruning takes one step or more.")
    return divided(iterations, parts=steps)


def _between(
    large: Mapping[str, int], small: Mapping[str, int], *, step: int, steps: int
) -> dict[str, int]:
    """Widths after a step, on a straight line from the large network to the small one."""
    for name in (*large, *small):
        if name not in large or name not in small:
            raise InputError(
                f"The networks are not of one form: {name!r} is only in the "
                f"{'large' if name in large else 'small'} one. They may differ in widths alone."
            )
        if small[name] > large[name]:
            raise InputError(
                f"{name!r} has {large[name]} channels in the large network and {small[name]} in "
                "the small one: pruning takes channels out only. Are the two the wrong way round?"
            )
    return {name: round(large[name] + (small[name] - large[name]) * step / steps) for name in large}


def _layer_widths(network: nn.Module) -> dict[str, int]:
    """Output channels of every convolution and linear layer."""
    widths: dict[str, int] = {}
    for name, layer in network.named_modules():
        for attribute in ("out_channels", "out_features"):
            if isinstance(value := getattr(layer, attribute, None), int):
                widths[name] = value
    return widths


def _into(small: nn.Module, made: nn.Module) -> nn.Module:
    """The small network's own class with the pruned weights."""
    result, weights = clone(small), made.state_dict()
    for name, tensor in result.state_dict().items():
        got = weights.get(name)
        if got is None or got.shape != tensor.shape:
            shape = "nothing" if got is None else f"{tuple(got.shape)}"
            raise UnsupportedError(
                f"Torch-Pruning does not reach the {type(small).__name__}: {name} shall have "
                f"{tuple(tensor.shape)} and has {shape}. Prune with engine='eslkit', or choose "
                "widths that its groups allow."
            )
    result.load_state_dict(weights)
    return result


def _name(policy: object) -> str:
    return getattr(policy, "__qualname__", repr(type(policy).__qualname__))
