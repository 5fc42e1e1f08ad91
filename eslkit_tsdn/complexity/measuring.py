"""Time and memory of a forward pass, measured in a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from eslkit.errors import InputError, UnsupportedError
from eslkit_tsdn.complexity.counting import PACKED
from eslkit_tsdn.complexity.networks import NETWORKS

__all__ = ["Measurement", "main", "measure"]


class Measurement(BaseModel):
    """What one network took on one machine, for a packed raw image, one at a time."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    network: str
    """As the paper calls it."""
    kind: Literal["cpu", "cuda"]
    """Where it ran."""
    device: str
    """The processor's or the GPU's name."""
    threads: int
    """Threads that PyTorch had on the CPU."""
    shape: tuple[int, ...]
    """Of the input."""
    milliseconds: tuple[float, ...]
    """Of every timed forward pass."""
    peak_bytes: int
    """On the CPU the most memory that the process ever held, PyTorch itself included; on a GPU the
    most that PyTorch had allocated there, weights included."""
    idle_bytes: int
    """The same before the network was built."""

    @property
    def median(self) -> float:
        """Of the milliseconds."""
        return statistics.median(self.milliseconds)


def measure(
    network: str,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    repeats: int = 5,
    warmup: int = 1,
    shape: tuple[int, ...] = PACKED,
) -> Measurement:
    """Run a network of Table I on this machine, in a process of its own.

    Args:
        network: its name in `NETWORKS`.
        device: where.
        repeats: timed forward passes.
        warmup: forward passes before them, which are not timed.
        shape: of the input, a packed raw image of 1024x1024 if left out.

    Raises:
        InputError: no network of that name, no repeats, a shape that does not fit, a device that
            is not there.
        UnsupportedError: the process ended without a result, for want of memory as a rule.
    """
    if network not in {listed.name for listed in NETWORKS}:
        known = ", ".join(listed.name for listed in NETWORKS)
        raise InputError(f"{network!r} is none of the networks; known are {known}.")
    if repeats < 1 or warmup < 0:
        raise InputError(
            f"repeats={repeats}, warmup={warmup}: one forward pass must be timed at least, and a "
            "number of passes is not negative."
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device=cuda, but this PyTorch sees no CUDA GPU: measure on the CPU (device=cpu), or "
            "install a PyTorch with CUDA and its driver."
        )
    asked = {
        "network": network,
        "device": device,
        "repeats": repeats,
        "warmup": warmup,
        "shape": shape,
    }
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import main; main()", json.dumps(asked)],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return Measurement.model_validate_json(done.stdout)
    except ValidationError as error:
        last = done.stderr.strip().rpartition("\n")[2] or "it said nothing"
        raise UnsupportedError(
            f"{network} could not be measured on {device} with an input of {shape}: its process "
            f"ended with code {done.returncode} ({last}). Where memory is short, take a smaller "
            "input."
        ) from error


def _measure_here(
    network: str,
    *,
    device: Literal["cpu", "cuda"],
    repeats: int,
    warmup: int,
    shape: tuple[int, ...],
) -> Measurement:
    """In this process, whose memory tells what the network took."""
    on_gpu = device == "cuda"
    idle = _peak(on_gpu=on_gpu)
    torch.manual_seed(0)
    [build] = [listed.build for listed in NETWORKS if listed.name == network]
    model = build().to(device).eval()
    x = torch.rand(shape, device=device)
    times: list[float] = []
    with torch.inference_mode():
        for _ in range(warmup + repeats):
            start = time.perf_counter()
            model(x)
            if on_gpu:
                torch.cuda.synchronize()
            times.append(1000 * (time.perf_counter() - start))
    return Measurement(
        network=network,
        kind=device,
        device=torch.cuda.get_device_name() if on_gpu else _processor(),
        threads=torch.get_num_threads(),
        shape=shape,
        milliseconds=tuple(times[warmup:]),
        peak_bytes=_peak(on_gpu=on_gpu),
        idle_bytes=idle,
    )


def _peak(*, on_gpu: bool) -> int:
    """The most bytes ever held.

    On Linux from /proc: what getrusage tells of a process includes the one it was started from.
    """
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text("ascii", errors="replace").splitlines()
        for line in lines:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError as error:  # Windows
        raise UnsupportedError(
            "This system does not tell how much memory a process held; measure on Linux or macOS."
        ) from error
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024


def _processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "CPU"


def main() -> None:
    """What the process does that `measure` starts: print the `Measurement` that it is asked for."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    asked["shape"] = tuple(asked["shape"])
    sys.stdout.write(_measure_here(**asked).model_dump_json())
