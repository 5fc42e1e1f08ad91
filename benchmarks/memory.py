"""Peak memory of a forward pass of every network, for a packed raw image of 512x512.

Each runs once on the CPU, in a process of its own; what is measured is the most memory that the
process ever held, PyTorch itself included. None may need more than 6 GiB.
Run: PYTHONPATH=. python benchmarks/memory.py [network ...]
"""

from __future__ import annotations

import platform
import sys

import torch

from eslkit_tsdn.complexity import NETWORKS, measure

LIMIT = 6 * 2**30


def main(names: list[str]) -> int:
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}")
    too_much = 0
    for name in names or [listed.name for listed in NETWORKS]:
        took = measure(name, repeats=1, warmup=0)
        print(
            f"{name:16} {took.peak_bytes / 2**20:7.0f} MiB, of which PyTorch "
            f"{took.idle_bytes / 2**20:4.0f} MiB; {took.median / 1000:6.1f} s, {took.threads} "
            f"thread(s)",
            flush=True,
        )
        too_much += took.peak_bytes > LIMIT
    return too_much


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
