"""The methods of `eslkit_tsdn.rivals` at equal iterations and at equal FLOPs, at toy scale.

One small U-Net and one of twice its widths, trained on noisy crops of the packaged photographs and
tested on those not trained on. A method that needs the large network gets it trained with as many
iterations as itself. "iterations": every method gets N of its own. "FLOPs": every method, the
large network's training included, costs what the small one costs with 8 N iterations from scratch
(`--longer 8`).

    python benchmarks/rivals.py --seeds 0 1 --iterations 400 --out rivals.json

Prints a table of means and writes one JSON object: versions, settings, date, and every value.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from eslkit_tsdn.budget import Budget
from eslkit_tsdn.data.crops import BatchSource
from eslkit_tsdn.data.photos import packaged_photos, split
from eslkit_tsdn.evaluation import TestPair, evaluate, test_pairs
from eslkit_tsdn.models import UNet
from eslkit_tsdn.rivals.collaborative import collaborative_cost, distil_collaboratively
from eslkit_tsdn.rivals.costs import TrainingCost, iterations_for, scratch_cost
from eslkit_tsdn.rivals.distillation import distil, distil_cost
from eslkit_tsdn.rivals.expandnets import expandnet_cost, train_expandnet
from eslkit_tsdn.rivals.pruning import prune_and_finetune, pruning_cost
from eslkit_tsdn.rivals.scratch import train_scratch

Train = Callable[..., nn.Module]
CostOf = Callable[..., TrainingCost]


@dataclass(frozen=True)
class Row:
    """One training of one method."""

    name: str
    equal: str
    seed: int
    iterations: int
    flops: float
    """Of the method's own training, and of the large network's before it."""
    values: dict[str, float]
    seconds: float


def methods(small: nn.Module, large: nn.Module, source: BatchSource) -> dict[str, tuple]:
    """Name -> (what trains, what it costs, whether it needs the large network trained)."""
    alone, both = (small, source), (small, large, source)
    faithful = {"form": "faithful"}
    rows: dict[str, tuple] = {
        "scratch": (partial(train_scratch, *alone), partial(scratch_cost, *alone), False),
        "distil, output 0.5": (partial(distil, *both), partial(distil_cost, *both), True),
        "distil, output 0.5, features 0.1": (
            partial(distil, *both, feature=0.1),
            partial(distil_cost, *both, feature=0.1),
            True,
        ),
        "collaborative, simple": (
            partial(distil_collaboratively, *both),
            partial(collaborative_cost, *both),
            True,
        ),
        "collaborative, simple, g = 0.1": (
            partial(distil_collaboratively, *both, embedding=0.1),
            partial(collaborative_cost, *both),
            True,
        ),
        "collaborative, faithful": (
            partial(distil_collaboratively, *both, **faithful),
            partial(collaborative_cost, *both, **faithful),
            True,
        ),
        "collaborative, faithful, from L1": (
            partial(distil_collaboratively, *both, init="l1", **faithful),
            partial(collaborative_cost, *both, **faithful),
            True,
        ),
    }
    for rate in (2, 4):
        for init in ("default", "same"):
            rows[f"ExpandNet CL r = {rate}, {init}"] = (
                partial(train_expandnet, *alone, rate=rate, init=init),
                partial(expandnet_cost, *alone, rate=rate),
                False,
            )
    for engine in ("torch-pruning", "eslkit"):
        for importance in ("l1", "l2"):
            for steps in (1, 4) if importance == "l2" else (1,):
                rows[f"pruned by {engine}, {importance}, {steps} steps"] = (
                    partial(
                        prune_and_finetune,
                        *both,
                        engine=engine,
                        importance=importance,
                        steps=steps,
                    ),
                    partial(pruning_cost, *both, steps=steps),
                    True,
                )
    return rows


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(1)
    train, test = split(packaged_photos())
    pairs = test_pairs(test, gain=arguments.gain)
    rows: list[Row] = []
    for seed in arguments.seeds:
        rows += of_seed(seed, train, pairs, arguments)
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "settings": {k: v for k, v in vars(arguments).items() if k != "out"},
        "rows": [asdict(row) for row in rows],
    }
    print(table(rows))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1))


def of_seed(seed: int, train: tuple, pairs: tuple[TestPair, ...], arguments) -> list[Row]:
    """All methods with one seed: one initial small network, one trained large one."""
    source = BatchSource(
        train, batch_size=arguments.batch, crop=arguments.crop, seed=seed, gain=arguments.gain
    )
    torch.manual_seed(seed)
    small, fresh = UNet(arguments.widths), UNet([2 * width for width in arguments.widths])
    n = arguments.iterations

    def budget(iterations: int) -> Budget:
        return Budget(iterations=iterations, lr=arguments.lr)

    began = time.perf_counter()
    large = train_scratch(fresh, source, budget=budget(n), seed=seed)
    first = scratch_cost(fresh, source, iterations=n)
    measured = evaluate(large, pairs)
    rows = [Row("the large network", "", seed, n, first.flops, measured, since(began))]
    print(rows[0], flush=True)
    allowed = scratch_cost(small, source, iterations=arguments.longer * n).flops
    for name, (run, cost_of, taught) in methods(small, large, source).items():
        if arguments.methods and name not in arguments.methods:
            continue
        before = first.flops if taught else 0
        costs = lambda count, cost_of=cost_of: cost_of(iterations=count)  # noqa: E731
        for equal in arguments.equal:
            count = n if equal == "iterations" else iterations_for(allowed - before, costs)
            began = time.perf_counter()
            made = run(budget=budget(count), seed=seed)
            flops = before + costs(count).flops
            rows.append(Row(name, equal, seed, count, flops, evaluate(made, pairs), since(began)))
            print(rows[-1], flush=True)
    return rows


def since(began: float) -> float:
    return round(time.perf_counter() - began, 1)


def table(rows: list[Row]) -> str:
    """Means over the seeds, as Markdown."""
    ratios = [name for name in rows[0].values if name.startswith("psnr")]
    lines = [f"| method | equal | iterations | TFLOPs | {' | '.join(ratios)} |"]
    lines.append("|---" * (4 + len(ratios)) + "|")
    for name, equal in dict.fromkeys((row.name, row.equal) for row in rows):
        same = [row for row in rows if (row.name, row.equal) == (name, equal)]
        psnr = [f"{fmean(row.values[ratio] for row in same):.2f}" for ratio in ratios]
        numbers = [str(same[0].iterations), f"{same[0].flops / 1e12:.2f}", *psnr]
        lines.append(f"| {name} | {equal} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--equal", nargs="+", default=["iterations", "FLOPs"])
    parser.add_argument("--longer", type=int, default=8)
    parser.add_argument("--methods", nargs="+", help="names as in the table; all if left out")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--gain", type=float, default=4.0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
