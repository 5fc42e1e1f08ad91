"""How good the weights that come with eslkit are, and where they do harm.

Test pictures are those of a folder that the weights were not trained on (`--data`, the last quarter
of every folder), and the photographs that come with scikit-image and scikit-learn, none of which
were. Their noise is drawn from the calibration of the Sony A7S II, at ratios from 1 (a picture that
is bright enough) to 300, with a system gain drawn for every picture; PSNR and SSIM after ELD's
correction of brightness, for the noisy picture as it is.

    python benchmarks/shipped.py --data FOLDER --out docs/results/shipped.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from eslkit_tsdn.data.folders import folder_photos, split_by_folder
from eslkit_tsdn.data.photos import packaged_photos
from eslkit_tsdn.evaluation import evaluate, evaluate_input, test_pairs
from eslkit_tsdn.weights import SHIPPED, load_network, read_metadata

RATIOS = (1, 4, 16, 32, 48, 64, 100, 250, 300)


def measured(network: torch.nn.Module, photos: Any) -> dict[str, Any]:
    """Means over pictures: before and after."""
    pairs = test_pairs(photos, ratios=RATIOS)
    return {
        "pictures": [photo.name for photo in photos],
        "noisy": evaluate_input(pairs),
        "denoised": evaluate(network, pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the folder that the weights were trained on")
    parser.add_argument("--weights", type=Path, default=SHIPPED)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    network = load_network(asked.weights)
    sets = {"packaged": packaged_photos()}
    if asked.data is not None:
        sets["folder"] = split_by_folder(folder_photos(asked.data))[1]
    results = {
        "weights": hashlib.sha256(asked.weights.read_bytes()).hexdigest(),
        "settings": json.loads(read_metadata(asked.weights)["settings"]),
        **{name: measured(network, photos) for name, photos in sets.items()},
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for name in sets:
        told = results[name]
        print(f"{name}: {len(told['pictures'])} pictures, PSNR / SSIM")
        for ratio in RATIOS:
            before, after = (
                f"{told[which][f'psnr_x{ratio}']:.2f} / {told[which][f'ssim_x{ratio}']:.3f}"
                for which in ("noisy", "denoised")
            )
            print(f"  x{ratio}: {before} -> {after}")
    if asked.out is not None:
        asked.out.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
