"""What a network is run by: PyTorch, or ONNX Runtime, or the faster one of both on this machine.

A TSDN is run stage by stage: every stage looks only half as far as the whole network, so that
parts of a large picture overlap half as much.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from eslkit.cost import cost
from eslkit.errors import InputError, TraceError
from eslkit.files import write_atomically
from eslkit_tsdn.export import INPUT, session_of, to_onnx
from eslkit_tsdn.models import TSDN
from eslkit_tsdn.reach import Reach, measure_reach

__all__ = [
    "BACKENDS",
    "MEASURED_SIDE",
    "Backend",
    "BackendName",
    "Part",
    "make_backend",
    "parts_of",
]

BackendName = Literal["auto", "torch", "onnxruntime"]
BACKENDS: tuple[BackendName, ...] = ("auto", "torch", "onnxruntime")
"""What can be asked for."""

MEASURED_SIDE = 512
"""Packed pixels a side of what `auto` is measured on. Smaller ones mislead: their activations fit
into memory that the allocator hands out again, which those of a camera's picture do not."""

_WARMING_SIDE = 64
_BYTES_PER_PIXEL = 1024
"""Of a network whose memory cannot be counted."""
_OVERHEAD = {"torch": 2.4, "onnxruntime": 3.8}
"""Memory in use at the peak, as a multiple of the activations that must be alive at once; measured
on the paper's TSDN on CPUs: 1.6 to 2.3 and 3.5. Kernels lay their inputs out anew."""
_OVERHEAD_BF16 = 5.0
"""The same for bfloat16 on a CPU without instructions for it, where it is computed in float32."""


@dataclass(frozen=True)
class Part:
    """One network of a chain, and how it is to be cut."""

    run: Callable[[Tensor], Tensor]
    """(1, planes, height, width) float32 on the CPU to the same."""
    reach: Reach
    """How far it looks."""
    bytes_per_pixel: float
    """Memory that one pixel of its input takes at the peak."""


@dataclass(frozen=True)
class Backend:
    """A network ready to be run, part after part."""

    name: str
    """What runs it: torch or onnxruntime."""
    device: str
    """Where: cpu, cuda ..."""
    parts: tuple[Part, ...]
    """What is run, one after the other."""
    seconds: dict[str, float]
    """Seconds for a picture of `MEASURED_SIDE` packed pixels a side by each that was measured."""


def parts_of(network: nn.Module) -> tuple[nn.Module, ...]:
    """The networks that a network runs one after the other: a TSDN's stages, else itself."""
    return tuple(network.stages) if type(network) is TSDN else (network,)


def make_backend(
    network: nn.Module,
    *,
    backend: BackendName = "auto",
    device: str = "cpu",
    bf16: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Backend:
    """Makes a network ready to be run.

    Args:
        network: takes (1, 4, height, width) and gives one image in inference; it is copied.
        backend: torch, onnxruntime, or auto for the faster one, measured on a part of a picture.
            Off the CPU and in bfloat16, auto is torch.
        device: a device of PyTorch's; onnxruntime runs on the CPU, and on cuda where its package
            for it is installed.
        bf16: weights and activations in bfloat16 (torch alone): half the memory, and faster
            where the processor has instructions for it.
        tell: is told what takes a while.

    Returns:
        The backend, which holds its own copy of the weights.

    Raises:
        InputError: a backend or a device that there is not, or bfloat16 in onnxruntime.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend={backend!r} is not known; known are {', '.join(BACKENDS)}.")
    _check_device(device)
    if backend == "onnxruntime" and bf16:
        raise InputError("onnxruntime has no bfloat16 here; leave --bf16 out, or take torch.")
    parts = [part.eval() for part in parts_of(copy.deepcopy(network).float())]
    reaches = [measure_reach(part) for part in parts]
    choices: list[Backend] = []
    if backend != "onnxruntime":
        choices.append(_in_torch(parts, reaches, device=device, bf16=bf16))
    plain = device == "cpu" and not bf16 and importlib.util.find_spec("onnxruntime") is not None
    if backend == "onnxruntime" or (backend == "auto" and plain):
        choices.append(_in_onnxruntime(parts, reaches, device=device, tell=tell))
    if len(choices) == 1:
        return choices[0]
    seconds = {choice.name: _measured(choice) for choice in choices}
    fastest = min(choices, key=lambda choice: seconds[choice.name])
    return Backend(fastest.name, fastest.device, fastest.parts, seconds)


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"device={device!r} cannot be used ({first}); take cpu, or install the PyTorch for it."
        ) from error


def _in_torch(
    parts: Sequence[nn.Module], reaches: Sequence[Reach], *, device: str, bf16: bool
) -> Backend:
    dtype = torch.bfloat16 if bf16 else torch.float32
    overhead = _OVERHEAD_BF16 if bf16 and device == "cpu" else _OVERHEAD["torch"]
    memory = [
        _activations(part, reach) * overhead for part, reach in zip(parts, reaches, strict=True)
    ]
    made = [part.to(device, dtype, memory_format=torch.channels_last) for part in parts]  # type: ignore[call-overload]

    def runner(part: nn.Module) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            # Channels last: convolutions of these sizes take two thirds of the time.
            with torch.inference_mode():
                x = x.to(device, dtype).contiguous(memory_format=torch.channels_last)
                return part(x).float().cpu()

        return run

    ready = zip(made, reaches, memory, strict=True)
    return Backend(
        "torch", device, tuple(Part(runner(part), reach, size) for part, reach, size in ready), {}
    )


def _in_onnxruntime(
    parts: Sequence[nn.Module],
    reaches: Sequence[Reach],
    *,
    device: str,
    tell: Callable[[str], None] | None,
) -> Backend:
    provider = "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"

    def runner(part: nn.Module, reach: Reach) -> Callable[[Tensor], Tensor]:
        session = session_of(_cached_onnx(part, reach, tell=tell), providers=[provider])
        if provider not in session.get_providers():
            raise InputError(
                f"This ONNX Runtime cannot use {device}; install onnxruntime-gpu, or take torch."
            )

        def run(x: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {INPUT: x.contiguous().numpy()})[0])

        return run

    made = [
        Part(runner(part, reach), reach, _activations(part, reach) * _OVERHEAD["onnxruntime"])
        for part, reach in zip(parts, reaches, strict=True)
    ]
    return Backend("onnxruntime", device, tuple(made), {})


def _cached_onnx(
    part: nn.Module, reach: Reach, *, tell: Callable[[str], None] | None = None
) -> bytes:
    """The ONNX model of a network: made once (it takes seconds), then kept in the user's cache."""
    digest = hashlib.sha256(f"{part} {torch.__version__} {reach}".encode())
    for key, value in part.state_dict().items():
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "eslkit" / "onnx" / f"{digest.hexdigest()}.onnx"
    if path.is_file():
        return path.read_bytes()
    if tell is not None:
        tell("Preparing the network for ONNX Runtime (once; kept in the cache) ...")
    model = to_onnx(part, reach=reach)
    write_atomically(path, model)
    return model


def _activations(part: nn.Module, reach: Reach) -> float:
    """Bytes of activations that are alive at once, per pixel of the input."""
    side = 16 * reach.multiple
    try:
        counted = cost(part, example_inputs=torch.zeros(1, 4, side, side))
    except TraceError:
        return _BYTES_PER_PIXEL
    return counted.peak_activation_bytes / side**2


def _measured(backend: Backend) -> float:
    """Seconds for one picture through all parts, after a small one that warms up."""
    seconds = 0.0
    for asked in (_WARMING_SIDE, MEASURED_SIDE):
        start = time.perf_counter()
        for part in backend.parts:
            multiple = part.reach.multiple
            side = -(-asked // multiple) * multiple
            part.run(torch.zeros(1, 4, side, side))
        seconds = time.perf_counter() - start
    return seconds
