"""What `eslkit-tsdn denoise` takes for a file of 4256x2848: memory, and time beside the network's.

    python benchmarks/denoise.py [--rounds 3] [--backend torch]

A DNG of that size is made, with noise. The command's whole process (reading, denoising with the
paper's TSDN of random weights, writing a DNG) is started once and its peak resident memory read.
Then, in one process, the parts and the bare network on the whole frame are timed in turns, and the
medians compared. Both in the same layout (channels last) and number of threads.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from eslkit_tsdn.backends import make_backend
from eslkit_tsdn.denoise import restore_large
from eslkit_tsdn.dng import write_dng
from eslkit_tsdn.models import TSDN
from eslkit_tsdn.raw import RawImage, read_raw
from eslkit_tsdn.shot import Shot
from eslkit_tsdn.weights import save_network

HEIGHT, WIDTH = 2848, 4256
MEMORY, TIME = 1.5, 1.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", default="torch", choices=("torch", "onnxruntime"))
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, ", end=""
    )
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {time.strftime('%F')}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photo, weights = folder / "dark.dng", folder / "net.safetensors"
        network = TSDN().eval()
        save_network(network, weights)
        write_photograph(photo)
        out = folder / "out.dng"
        command = [Path(sys.executable).with_name("eslkit-tsdn"), "denoise", photo, "-o", out]
        command += ["--weights", weights, "--backend", options.backend]
        began = time.perf_counter()
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        assert read_raw(out).mosaic.shape == (HEIGHT, WIDTH)
        print(f"whole command: peak {peak:.2f} GiB (limit {MEMORY}), {seconds:.1f} s")
    ratio, apart = beside_the_bare_network(network, options.backend, options.rounds)
    print(f"tiled / bare: {ratio:.3f} (limit {TIME}); largest difference {apart:.1e}")
    if peak > MEMORY or ratio > TIME or apart > 1e-5:
        sys.exit("a limit is exceeded")


def write_photograph(path: Path) -> None:
    rng = np.random.default_rng(0)
    mosaic = (512 + rng.poisson(40, (HEIGHT, WIDTH)) + rng.normal(0, 4, (HEIGHT, WIDTH))).round()
    raw = RawImage(
        *(mosaic.astype(np.uint16), ((0, 1), (3, 2)), (512.0,) * 4, 16383.0, (2.0, 1.0, 2.5)),
        *(None, 0.1, 1600, path),
    )
    write_dng(raw.mosaic, path, raw=raw, shot=Shot("Sony", "ILCE-7SM2"))


def beside_the_bare_network(network: TSDN, backend: str, rounds: int) -> tuple[float, float]:
    """The ratio of the medians, and the largest difference between both results."""
    ready = make_backend(network, backend=backend)
    image = torch.rand(1, 4, HEIGHT // 2, WIDTH // 2)
    bare = network.to(memory_format=torch.channels_last)
    whole = image.contiguous(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {"bare": [], "tiled": []}
    with torch.inference_mode():
        apart = float((restore_large(image, ready) - bare(whole)).abs().max())
        for _ in range(rounds):
            times["bare"].append(timed(lambda: bare(whole)))
            times["tiled"].append(timed(lambda: restore_large(image, ready)))
    for name, values in times.items():
        print(
            f"{name}: median {statistics.median(values):.1f} s of {[round(v, 1) for v in values]}"
        )
    return statistics.median(times["tiled"]) / statistics.median(times["bare"]), apart


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
