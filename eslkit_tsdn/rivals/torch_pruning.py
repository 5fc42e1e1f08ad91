"""Channels taken out by Torch-Pruning, an optional extra.

Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023. It finds by itself which layers
must be cut together, and scores each channel over all of them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import signal
import threading
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from eslkit.errors import InputError, UnsupportedError
from eslkit.surgery.depth import clone

__all__ = ["NORMS", "prune_channels"]

NORMS = {"l1": 1, "l2": 2}
"""Importance of a channel by name -> the p of its weights' norm."""


def prune_channels(
    model: nn.Module,
    widths: Mapping[str, int],
    *,
    example_input: Tensor,
    importance: str = "l2",
    patience: float = 300.0,
) -> nn.Module:
    """A copy in which the named layers have fewer output channels, the least important gone.

    Args:
        model: any module; it is not touched.
        widths: layer -> output channels. Layers left out keep theirs, unless Torch-Pruning
            couples them with one that does not.
        example_input: what it runs on.
        importance: "l1" or "l2": the norm of a channel's weights, the mean over all layers that
            are cut together (Torch-Pruning's own rule).
        patience: seconds of CPU time after which it is given up: on some networks (NBNet, whose
            projection couples everything) it does not come to an end. In threads other than
            the main one, and on Windows, there is no such limit.

    Raises:
        InputError: Torch-Pruning is not installed, or an importance that is not there.
        UnsupportedError: Torch-Pruning cannot prune this network; its own words are given.
    """
    if importance not in NORMS:
        raise InputError(
            f"importance={importance!r}: Torch-Pruning is asked for {' or '.join(NORMS)} here."
        )
    tp = _torch_pruning()
    made = clone(model).cpu().eval()
    for parameter in made.parameters():
        parameter.requires_grad_(True)  # it traces the graph of gradients
    with _in_its_words(type(model).__name__), _at_most(patience):
        graph = tp.DependencyGraph().build_dependency(made, example_inputs=example_input.cpu())
        score = tp.importance.GroupMagnitudeImportance(p=NORMS[importance])
        for name, width in widths.items():
            layer: Any = made.get_submodule(name)
            present = graph.get_pruner_of_module(layer).get_out_channels(layer)
            if present > width:
                _prune(graph, score, layer, present, present - width)
    return _as_before(made, model)


def _prune(graph: Any, score: Any, layer: Any, present: int, excess: int) -> None:
    pruner = graph.get_pruner_of_module(layer)
    everything = list(range(present))
    group = graph.get_pruning_group(layer, pruner.prune_out_channels, idxs=everything)
    scores: Tensor = score(group)
    gone = sorted(torch.argsort(scores)[:excess].tolist())
    group = graph.get_pruning_group(layer, pruner.prune_out_channels, idxs=gone)
    if not graph.check_pruning_group(group):
        raise ValueError(f"a layer coupled with {layer} would lose all its channels")
    group.prune()


def _as_before(made: nn.Module, model: nn.Module) -> nn.Module:
    """Flags and device as they were; Torch-Pruning makes new parameters."""
    device = next(model.parameters()).device
    frozen = dict(model.named_parameters())
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(frozen[name].requires_grad)
        parameter.grad = None
    for ours, theirs in zip(made.modules(), model.modules(), strict=True):
        ours.training = theirs.training
    return made.to(device)


@contextmanager
def _in_its_words(kind: str) -> Generator[None]:
    """Turn whatever Torch-Pruning raises into an error that quotes it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        version = importlib.metadata.version("torch-pruning")
        raise UnsupportedError(
            f"Torch-Pruning {version} cannot prune the {kind}: {type(error).__name__}: {error}. "
            "Prune it with engine='eslkit', or choose another method."
        ) from error


@contextmanager
def _at_most(seconds: float) -> Generator[None]:
    """Raise TimeoutError when the process has computed for so long."""
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        # Only in Torch-Pruning's own lines: raised in a destructor, Python would just print it.
        if frame is not None and "torch_pruning" in Path(frame.f_code.co_filename).parts:
            raise TimeoutError(f"it has come to no end in {seconds:g} seconds of CPU time")

    before = signal.signal(signal.SIGVTALRM, stop)
    # And again, until it gets through: Torch-Pruning has a bare `except` that may swallow one.
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _torch_pruning() -> Any:
    """The package, or how to get it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise InputError(
            "Pruning with engine='torch-pruning' needs Torch-Pruning, which is not installed: pip "
            "install 'eslkit[pruning]'. Or prune with engine='eslkit', which needs nothing."
        ) from error
