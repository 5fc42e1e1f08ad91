"""One measurement on all strangers' networks in turn: gone on with where it was stopped."""

from __future__ import annotations

import argparse
import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.strangers import networks
from benchmarks.strangers.trial import call

__all__ = ["doubled", "fresh", "larger", "parser_of", "shapes", "sweep", "time_limit"]

Row = dict[str, Any]


class TooLongError(Exception):
    """The time limit of one network is over."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise after so many seconds of the processor, whatever else the machine does."""

    def stop(number: int, frame: Any) -> None:
        raise TooLongError(f"more than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def doubled(inputs: Any) -> Any:
    """A batch of two, so that batch norm can be trained at a single position."""
    return pytree.tree_map(lambda x: torch.cat([x, x]) if isinstance(x, Tensor) else x, inputs)


def larger(inputs: Any) -> Any:
    """Pictures and sounds of twice the side."""

    def grown(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() < 3 or not x.is_floating_point():
            return x
        return torch.rand(*x.shape[:2], *(2 * size for size in x.shape[2:]))

    return pytree.tree_map(grown, inputs)


def fresh(inputs: Any) -> Any:
    """A copy: some networks write into their inputs."""
    return pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)


def shapes(model: nn.Module, inputs: Any) -> list[tuple[int, ...]]:
    was = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        made = [tuple(x.shape) for x in call(model, inputs)]
    for module, training in was:
        module.training = training
    return made


def parser_of(told: str, *, limit: int) -> argparse.ArgumentParser:
    """The options that all sweeps have; `told` is the module's docstring."""
    parser = argparse.ArgumentParser(description=told.splitlines()[0])
    parser.add_argument("--match", default="*", help="only networks with such a name")
    parser.add_argument(
        "--limit", type=int, default=limit, help="seconds of the processor for one network"
    )
    parser.add_argument(
        "--out", type=Path, help="one JSON object a line; those there are not run again"
    )
    return parser


def sweep(
    options: argparse.Namespace,
    measure: Callable[[str, Callable[[], nn.Module], Any], Row],
    told: Callable[[Row], str],
) -> list[Row]:
    """The rows of all networks, those of an earlier run among them.

    Args:
        options: of `parser_of`.
        measure: name, factory and example inputs of a network -> its row.
        told: what is printed of a row behind the network's name.
    """
    torch.set_num_threads(1)
    file: Path | None = options.out
    rows: list[Row] = []
    if file is not None and file.exists():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    known = {row["name"] for row in rows}
    chosen = [network for network in networks(options.match) if network[0] not in known]
    random.Random(0).shuffle(chosen)  # so that a run cut short tells of all of them
    for network in chosen:
        row = measure(*network)
        rows.append(row)
        if file is not None:
            with file.open("a") as opened:
                opened.write(json.dumps(row) + "\n")
        print(f"{row['name']:42} {told(row)}", flush=True)
    return rows
