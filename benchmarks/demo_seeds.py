"""The demo's three trainings for several seeds, as plain function calls.

(a) the small network from scratch for the iterations of one step, (b) from scratch for as many
iterations as all steps of ESL together, (c) ESL. The same networks, batches, surgery and
measures as `eslkit-tsdn demo`, without its run folder and without Lightning; on a GPU the
batches are the same too, they are drawn on the CPU.

    python benchmarks/demo_seeds.py --seeds 0 1 2 --iterations 600 --processes 2 --out seeds.json

Where scikit-image and scikit-learn are not at hand, take the photographs along:

    python benchmarks/demo_seeds.py --save-photos photos.safetensors     (here)
    python benchmarks/demo_seeds.py --photos photos.safetensors ...      (there)

Prints and writes one JSON object: hardware, versions, settings, date, and for every seed PSNR
and SSIM per ratio after (a), (b) and every step of (c), with milliseconds per iteration.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import multiprocessing
import platform
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from eslkit.planners import apply_step, make_plan
from eslkit_tsdn.data.crops import BatchSource
from eslkit_tsdn.data.photos import packaged_photos, split
from eslkit_tsdn.evaluation import evaluate, test_pairs
from eslkit_tsdn.losses import stage_l1
from eslkit_tsdn.models import TSDN
from eslkit_tsdn.optimizer import make_optimizer


@dataclass(frozen=True)
class Setting:
    """One (a), (b), (c) with one seed."""

    seed: int
    widths: tuple[int, ...]
    stages: int
    iterations: int
    batch: int
    crop: int
    lr: float
    shrink_lr: float
    init: str
    expand_init: str
    granularity: str
    gain: float | None
    device: str
    threads: int
    photos: str | None
    only: tuple[str, ...]


def load_photos(path: str | None) -> tuple[list[Any], list[Any]]:
    """Training and test photographs, from the wheels or from a file of --save-photos."""
    if path is None:
        train, test = split(packaged_photos())
        return list(train), list(test)
    groups: dict[str, list[Any]] = {"train": [], "test": []}
    for key, packed in sorted(load_file(path).items()):
        _, group, name = key.split("/", 2)
        groups[group].append(SimpleNamespace(name=name, packed=packed))
    return groups["train"], groups["test"]


def save_photos(path: str) -> None:
    train, test = split(packaged_photos())
    names = [*(("train", photo) for photo in train), *(("test", photo) for photo in test)]
    save_file(
        {f"{i:02d}/{group}/{photo.name}": photo.packed for i, (group, photo) in enumerate(names)},
        path,
    )


def train(network: nn.Module, source: BatchSource, setting: Setting, *, iterations: int, lr: float):
    """The demo's training in a plain loop; seconds."""
    network.to(setting.device, memory_format=torch.channels_last).train()
    optimizer, scheduler = make_optimizer(network, lr=lr, iterations=iterations)
    began = time.monotonic()
    for batch in source.batches(0, iterations):
        noisy, clean = batch.noisy.to(setting.device), batch.clean.to(setting.device)
        optimizer.zero_grad()
        stage_l1(network(noisy), clean).backward()
        optimizer.step()
        scheduler.step()
    if setting.device != "cpu":
        torch.cuda.synchronize()
    return time.monotonic() - began


def run(setting: Setting) -> dict[str, Any]:
    torch.set_num_threads(setting.threads)
    photos, tests = load_photos(setting.photos)
    pairs = test_pairs(tests, gain=setting.gain, multiple=2 ** len(setting.widths))
    torch.manual_seed(setting.seed)
    small = TSDN(setting.widths, setting.stages)
    inputs = (torch.zeros(1, 4, setting.crop, setting.crop),)
    plan = make_plan(
        small,
        width=2,
        depth=1,
        init=setting.init,
        granularity=setting.granularity,
        expand_init=setting.expand_init,
        example_inputs=inputs,
        iterations=setting.iterations,
        seed=setting.seed,
    )

    def trained(network: nn.Module, *, name: str, index: int, seed: int, length: int, lr: float):
        source = BatchSource(
            photos,
            batch_size=setting.batch,
            crop=setting.crop,
            gain=setting.gain,
            seed=f"{setting.seed}/{index}",
        )
        torch.manual_seed(seed)
        seconds = train(network, source, setting, iterations=length, lr=lr)
        network.to("cpu", memory_format=torch.contiguous_format)
        metrics = evaluate(network.to(setting.device), pairs)
        network.to("cpu")
        row = {"name": name, "iterations": length, "ms": 1e3 * seconds / length, **metrics}
        print(f"seed {setting.seed} {row}", flush=True)
        return row

    rows = []
    once, lengths = setting.iterations, {"a": 1, "b": len(plan.steps)}
    for name, factor in lengths.items():
        if name in setting.only:
            network = copy.deepcopy(small)
            seed = plan.steps[0].seed
            rows.append(
                trained(network, name=name, index=1, seed=seed, length=factor * once, lr=setting.lr)
            )
    network: nn.Module = copy.deepcopy(small)
    for step in plan.steps if "c" in setting.only else ():
        network = apply_step(network, step, plan=plan, example_inputs=inputs)
        lr = setting.lr if step.phase == "expand" else setting.shrink_lr
        rows.append(
            trained(network, name=step.name, index=step.index, seed=step.seed, length=once, lr=lr)
        )
    return {"setting": asdict(setting), "rows": rows, "differences": compare(rows)}


def compare(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """PSNR of the last row above (a) and above (b), in dB per ratio."""
    named = {row["name"]: row for row in rows}
    last = rows[-1]
    return {
        other: {
            key: round(last[key] - named[other][key], 3) for key in last if key.startswith("psnr_")
        }
        for other in ("a", "b")
        if other in named and last is not named[other]
    }


def settings_of(arguments: argparse.Namespace) -> list[Setting]:
    """Every combination of the lists that were given."""
    lists = itertools.product(
        arguments.iterations, arguments.lr, arguments.widths, arguments.batch, arguments.crop
    )
    return [
        Setting(
            seed=seed,
            widths=tuple(map(int, widths.split(","))),
            stages=arguments.stages,
            iterations=iterations,
            batch=batch,
            crop=crop,
            lr=lr,
            shrink_lr=arguments.shrink_lr or lr,
            init=arguments.init,
            expand_init=arguments.expand_init,
            granularity=arguments.granularity,
            gain=arguments.gain or None,
            device=arguments.device,
            threads=arguments.threads,
            photos=arguments.photos,
            only=tuple(arguments.only),
        )
        for iterations, lr, widths, batch, crop in lists
        for seed in arguments.seeds
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, nargs="+", default=[600])
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--shrink-lr", type=float, help="of the steps after EL; else as --lr")
    parser.add_argument("--widths", nargs="+", default=["8,16,32"])
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--batch", type=int, nargs="+", default=[16])
    parser.add_argument("--crop", type=int, nargs="+", default=[32])
    parser.add_argument("--gain", type=float, default=4.0, help="system gain K; 0 draws it")
    parser.add_argument("--init", default="first")
    parser.add_argument("--expand-init", default="random")
    parser.add_argument("--granularity", default="fine")
    parser.add_argument("--only", nargs="+", default=["a", "b", "c"], choices=["a", "b", "c"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of every process")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--photos", help="file written by --save-photos")
    parser.add_argument("--save-photos", metavar="FILE")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.save_photos:
        save_photos(arguments.save_photos)
        return
    settings = settings_of(arguments)
    began = time.monotonic()
    if arguments.processes > 1:
        with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
            runs = list(pool.imap(run, settings, chunksize=1))
    else:
        runs = [run(setting) for setting in settings]
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": torch.cuda.get_device_name() if arguments.device != "cpu" else cpu_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seconds": round(time.monotonic() - began, 1),
        "runs": runs,
    }
    text = json.dumps(report, indent=1)
    if arguments.out:
        arguments.out.write_text(text)
    for each in runs:
        print(json.dumps({"seed": each["setting"]["seed"], **each["differences"]}))


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


if __name__ == "__main__":
    main()
