"""What each init policy keeps of a trained network that is halved at once.

A U-Net is trained to denoise packed raw crops of the photographs that lie in the wheels of
scikit-image and scikit-learn. Then every policy halves all of its channels, and for each it is
measured, on batches and photographs that nothing was trained, scored or solved on:

- features: for every convolution that was narrowed, the squared difference between what it gives
  and what the wide network's gives in the channels kept, relative to the latter; the mean over
  layers, and the output's;
- PSNR before and after a short training, the same batches for every policy.

    python benchmarks/policies.py --seeds 0 1 --out policies.json

Prints a table, and writes one JSON object: hardware, versions, settings, date, every figure.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import eslkit
from eslkit.surgery import policies
from eslkit.surgery.inherit import named_tensors
from eslkit.surgery.optimizers import inherit_optimizer
from eslkit_tsdn.data.crops import BatchSource
from eslkit_tsdn.data.photos import packaged_photos, split
from eslkit_tsdn.evaluation import evaluate, test_pairs
from eslkit_tsdn.losses import stage_l1
from eslkit_tsdn.models import UNet
from eslkit_tsdn.optimizer import make_optimizer

Loss = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]


def loss(network: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
    return stage_l1(network(pair[0]), pair[1])


def policies_of(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, policies.Policy]:
    """Every policy that narrows; those with data get the same calibration batches."""
    taylor = policies.taylor(pairs, loss)
    solve: dict[str, policies.Policy] = {
        "first": policies.first,
        "l1": policies.l1,
        "taylor": taylor,
    }
    return {
        "random": policies.random,
        "first": policies.first,
        "last": policies.last,
        "combined": policies.combined,
        "literal_first": policies.literal("first"),
        "l1": policies.l1,
        "l2": policies.l2,
        "bn_scale": policies.bn_scale,
        "taylor": taylor,
        **{
            f"least_squares ({name})": policies.least_squares(
                pairs, selection=selection, inputs=lambda pair: pair[0]
            )
            for name, selection in solve.items()
        },
    }


class Normed(nn.Module):
    """The U-Net with a batch norm behind every 3x3 convolution."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.net = UNet(widths)
        for name, module in list(self.net.named_modules()):
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                parent, _, child = name.rpartition(".")
                layers = nn.Sequential(module, nn.BatchNorm2d(module.out_channels))
                setattr(self.net.get_submodule(parent), child, layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def train(network: nn.Module, source: BatchSource, count: int, lr: float, optimizer: Any = None):
    """A plain loop; returns the optimizer."""
    network.train()
    made, scheduler = make_optimizer(network, lr=lr, iterations=count)
    if optimizer is not None:
        optimizer(made)
    for batch in source.batches(0, count):
        made.zero_grad()
        loss(network, (batch.noisy, batch.clean)).backward()
        made.step()
        scheduler.step()
    network.eval()
    return made


def outputs(network: nn.Module, layers: list[str], x: Tensor) -> dict[str, Tensor]:
    """What layers give, and the network itself under the name of nothing."""
    found: dict[str, Tensor] = {}
    handles = []
    for name in layers:

        def note(module: nn.Module, args: Any, result: Tensor, name: str = name) -> None:
            found[name] = result

        handles.append(network.get_submodule(name).register_forward_hook(note))
    with torch.no_grad():
        found[""] = network(x)
    for handle in handles:
        handle.remove()
    return found


def feature_error(
    wide: nn.Module, narrow: nn.Module, policy: policies.Policy, xs: list[Tensor]
) -> dict[str, float]:
    """Relative squared differences: the mean over narrowed layers, and the output's."""
    graph = eslkit.trace(wide, example_inputs=xs[0])
    asked = policy.bind(wide) if isinstance(policy, policies.NeedsModel) else policy
    maps: dict[str, Tensor] = {}
    for group in graph.resizable:
        change = policies.GroupChange(group, group.width, group.width // 2, named_tensors(wide))
        for layer in group.producers:
            maps[layer] = asked(change).producer.float()
    far = dict.fromkeys([*maps, ""], 0.0)
    size = dict.fromkeys(far, 0.0)
    for x in xs:
        before, after = (outputs(m, list(maps), x) for m in (wide, narrow))
        for name in far:
            want = before[name]
            if name:
                want = torch.tensordot(maps[name], want.movedim(1, 0), dims=1).movedim(0, 1)
            far[name] += float((after[name] - want).square().sum())
            size[name] += float(want.square().sum())
    ratio = {name: far[name] / size[name] for name in far if size[name]}
    inner = [value for name, value in ratio.items() if name]
    output = {"output": ratio[""]}
    return {"features": sum(inner) / len(inner), **output} if inner else output


def run(seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    photos, tests = split(packaged_photos())
    pairs = test_pairs(tests, gain=4.0, multiple=2 ** len(arguments.widths))

    def source(use: str) -> BatchSource:
        return BatchSource(photos, batch_size=16, crop=32, gain=4.0, seed=f"{seed}/{use}")

    torch.manual_seed(seed)
    widths = tuple(arguments.widths)
    wide = Normed(widths) if arguments.norm else UNet(widths)
    optimizer = train(wide, source("train"), arguments.iterations, arguments.lr)
    calibration = [(b.noisy, b.clean) for b in source("calibration").batches(0, arguments.batches)]
    unseen = [b.noisy for b in source("unseen").batches(0, 4)]
    rows = [{"policy": "the wide network", "seed": seed, "before": psnr(wide, pairs)}]
    say(rows[-1])
    for name, policy in policies_of(calibration).items():
        torch.manual_seed(seed)
        began = time.monotonic()
        narrow = eslkit.shrink(wide, init=policy, example_inputs=unseen[0])
        row: dict[str, Any] = {"policy": name, "seed": seed, "seconds": time.monotonic() - began}
        row |= feature_error(wide, narrow, policy, unseen)
        row["before"] = psnr(narrow, pairs)

        def fill(
            made: torch.optim.Optimizer, narrow: nn.Module = narrow, init: Any = policy
        ) -> None:
            inherit_optimizer(
                made,
                optimizer,
                model=narrow,
                source_model=wide,
                init=init,
                example_inputs=unseen[0],
            )

        again = copy.deepcopy(narrow)
        train(again, source("again"), arguments.again, arguments.lr)
        row["after"] = psnr(again, pairs)
        if arguments.state:
            train(narrow, source("again"), arguments.again, arguments.lr, fill)
            row["after, state carried"] = psnr(narrow, pairs)
        rows.append(row)
        say(row)
    return rows


def psnr(network: nn.Module, pairs: Any) -> float:
    """Mean over photographs and ratios, dB."""
    found = [value for key, value in evaluate(network, pairs).items() if key.startswith("psnr")]
    return sum(found) / len(found)


def say(row: dict[str, Any]) -> None:
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds, as Markdown."""
    names = list(dict.fromkeys(row["policy"] for row in rows))
    keys = ["features", "output", "before", "after", "after, state carried", "seconds"]
    lines = ["| policy | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for name in names:
        cells = []
        for key in keys:
            values = [row[key] for row in rows if row["policy"] == name and key in row]
            digits = 2 if key in ("before", "after", "after, state carried", "seconds") else 3
            cells.append(f"{sum(values) / len(values):.{digits}f}" if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--iterations", type=int, default=1500, help="of the wide network")
    parser.add_argument("--again", type=int, default=200, help="iterations after the halving")
    parser.add_argument("--batches", type=int, default=4, help="for calibration, of 16 crops")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--norm", action="store_true", help="a batch norm behind each convolution")
    parser.add_argument("--state", action="store_true", help="carry Adam's state, too")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error", eslkit.ResizeWarning)
    began = time.monotonic()
    rows = [row for seed in arguments.seeds for row in run(seed, arguments)]
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seconds": round(time.monotonic() - began, 1),
        "settings": {key: str(value) for key, value in vars(arguments).items()},
        "rows": rows,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
