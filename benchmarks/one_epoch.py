"""What one epoch on the demo's data does to every network of Table I, at the paper's sizes.

An epoch is one pass over the crops of 32x32 packed pixels of the photographs that come with
scikit-image and scikit-learn (those that are trained on), in batches of four. PSNR is that of the
other photographs at x100, x250 and x300, before and after; a network learns if it rises.

    python benchmarks/one_epoch.py --out one-epoch.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from eslkit_tsdn.budget import Budget
from eslkit_tsdn.datasets import PACKAGED, open_dataset
from eslkit_tsdn.evaluation import evaluate, evaluate_input
from eslkit_tsdn.fitting import fit
from eslkit_tsdn.metrics import illuminance_correct, psnr
from eslkit_tsdn.presets import NETWORKS, PRESETS, build_network

CROP, BATCH = 32, 4
RATES = {"cbdnet": 2e-4, "nbnet": 2e-4}
"""Where the rate of the others, 1e-3, is too high for so few updates."""
NAMES = ("cbdnet", "nbnet", "deamnet", "unet", "sunet", "tsdn", "tsdn4")


def psnr_only(pred: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"psnr": psnr(illuminance_correct(pred, target).clamp(0, 1), target)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NAMES), choices=list(NETWORKS))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    dataset = open_dataset(PACKAGED)
    source = dataset.source(batch_size=BATCH, crop=CROP, seed="one epoch", gain=4.0)
    updates = dataset.num_crops(crop=CROP) // BATCH
    pairs = dataset.pairs(largest=64, gain=4.0, multiple=32)
    rows: list[dict[str, Any]] = []
    print(f"noisy {evaluate_input(pairs)['psnr_x100']:.2f} dB at x100; {updates} updates")
    for name in asked.networks:
        network = build_network(name, widths=PRESETS["paper"].widths, seed=0)
        before = evaluate(network, pairs, compare=psnr_only)
        budget = Budget(
            iterations=updates, lr=RATES.get(name, 1e-3), weights=NETWORKS[name].weights
        )
        began = time.perf_counter()
        loss = fit(network, source, budget=budget)["loss"]
        seconds = time.perf_counter() - began
        after = evaluate(network, pairs, compare=psnr_only)
        row = {"network": name, "lr": budget.lr, "before": before, "after": after}
        rows.append({**row, "loss": loss, "seconds": seconds})
        told = ", ".join(f"{key[5:]} {before[key]:.2f} -> {after[key]:.2f}" for key in before)
        print(f"{name} (lr {budget.lr:g}): {told} dB in {seconds:.0f} s", flush=True)
    if asked.out is not None:
        report = {
            "updates": updates,
            "rows": rows,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        asked.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
