"""Networks for other programs: ONNX and torch.export with free height and width, and int8.

What is written is compared with the network on sizes that it was not exported with. Integer
arithmetic is post-training static quantisation by ONNX Runtime (QDQ form: int8 weights per output
channel, uint8 or int8 activations, ranges from calibration pictures).
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from eslkit.errors import InputError
from eslkit_tsdn.data.photos import packaged_photos, split
from eslkit_tsdn.evaluation import test_pairs
from eslkit_tsdn.exposure import choose_ratio
from eslkit_tsdn.raw import normalize, read_raw
from eslkit_tsdn.reach import Reach, measure_reach

__all__ = [
    "INPUT",
    "OUTPUT",
    "ExportReport",
    "Exported",
    "OnnxNetwork",
    "calibration_pictures",
    "deviation",
    "operations",
    "quantized",
    "session_of",
    "to_onnx",
    "to_program",
]

INPUT, OUTPUT = "noisy", "restored"
"""Names of the ONNX model's input and output."""

_PLANES = 4


def to_program(network: nn.Module, *, reach: Reach | None = None) -> torch.export.ExportedProgram:
    """Exports a network with torch.export, height and width free.

    Args:
        network: takes (1, 4, height, width); it is not touched.
        reach: of the network, where it is known.

    Returns:
        A program for (1, 4, m h, m w), m the network's multiple, in inference.

    Raises:
        InputError: the network's code cannot be exported.
    """
    with _inference(network), _quiet():
        example, shapes = _example(network, reach)
        try:
            return torch.export.export(network, (example,), dynamic_shapes=shapes)
        except Exception as error:
            raise _refused(network, "torch.export", error) from error


def to_onnx(network: nn.Module, *, reach: Reach | None = None) -> bytes:
    """Exports a network to ONNX, height and width free.

    Args:
        network: takes (1, 4, height, width); it is not touched.
        reach: of the network, where it is known.

    Returns:
        A serialised ONNX model from `noisy` to `restored`.

    Raises:
        InputError: the network's code cannot be exported, or onnx and onnxscript are missing.
    """
    with _inference(network), _quiet():
        example, shapes = _example(network, reach)
        try:
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
            assert program is not None
            return program.model_proto.SerializeToString()
        except ImportError as error:
            raise InputError(
                f"ONNX needs the package {error.name}; pip install 'eslkit[tsdn]'."
            ) from error
        except Exception as error:
            raise _refused(network, "torch.onnx.export", error) from error


def quantized(model: bytes, pictures: Sequence[NDArray[np.float32]]) -> bytes:
    """Turns an ONNX model into one that computes with integers of 8 bits.

    Weights are quantised per output channel and symmetrically; activations per tensor, by the
    range that they take on the calibration pictures.

    Args:
        model: what `to_onnx` returned.
        pictures: noisy inputs to calibrate on, each (1, 4, height, width) in [0, 1].

    Returns:
        The serialised model; its input and output stay float32.

    Raises:
        InputError: no pictures, or onnxruntime is missing.
    """
    if not pictures:
        raise InputError("There is no picture to calibrate integer arithmetic on: pass one.")
    quantization = _onnxruntime("onnxruntime.quantization")
    feed = iter([{INPUT: picture} for picture in pictures])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(feed, None)

    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, prepared, made = (Path(folder) / f"{name}.onnx" for name in "abc")
        source.write_bytes(model)
        quantization.shape_inference.quant_pre_process(
            str(source),
            str(prepared),
            skip_symbolic_shape=True,  # the free sides: 8 times something
        )
        quantization.quantize_static(
            str(prepared),
            str(made),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return made.read_bytes()


def session_of(model: bytes, *, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Any:
    """An ONNX Runtime session that keeps no memory between runs.

    Pictures are large and of changing sizes: an arena would keep the largest for good.

    Raises:
        InputError: onnxruntime is missing, or refuses the model.
    """
    runtime = _onnxruntime("onnxruntime")
    options = runtime.SessionOptions()
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return runtime.InferenceSession(model, options, providers=list(providers))
    except Exception as error:
        raise InputError(f"ONNX Runtime refuses the model: {error}") from error


class OnnxNetwork(nn.Module):
    """An ONNX model as a network, for what measures networks: same input, same output."""

    def __init__(self, model: bytes) -> None:
        super().__init__()
        self.session = session_of(model)
        # Where a network's parameters are is where its input goes: on the CPU.
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """What the model makes of (1, 4, height, width)."""
        return torch.from_numpy(self.session.run(None, {INPUT: x.contiguous().numpy()})[0])


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Exported(_Frozen):
    """One file that was written."""

    path: str
    """Its name."""
    what: str
    """Its form in words."""
    num_bytes: int
    """Its size."""
    operations: dict[str, int]
    """How often which operation occurs, the most frequent first."""
    deviation: float | None = None
    """Largest difference to the network on random sizes, for pictures in [0, 1]."""
    metrics: dict[str, float] | None = None
    """psnr_x100, ssim_x100 and so on: means over the test pictures."""


class ExportReport(_Frozen):
    """What `eslkit-tsdn export` wrote, and how it compares with the network."""

    version: Literal[1] = 1
    """Version of this form."""
    weights: str
    """Where the weights came from."""
    network: str
    """The network in words."""
    multiple: int
    """Height and width must be multiples of this."""
    metrics: dict[str, float] | None = None
    """psnr_x100 and so on of the network itself."""
    files: tuple[Exported, ...]
    """What was written."""


def calibration_pictures(
    files: Sequence[Path] = (), *, multiple: int, largest: int = 256
) -> list[NDArray[np.float32]]:
    """Noisy pictures whose activations fix the ranges of integer arithmetic.

    Args:
        files: camera files, each amplified as `choose_ratio` says; without any, the packaged
            training photographs with the noise of a Sony A7S II at the ratios 100, 250 and 300.
        multiple: sides are cut to multiples of this.
        largest: the centre of at most this many packed pixels a side is used.

    Returns:
        Pictures of shape (1, 4, height, width) in [0, 1].

    Raises:
        InputError: a file that cannot be read, or is too small.
    """
    if not files:
        train, _ = split(packaged_photos())
        pairs = test_pairs(train, seed=1, largest=largest, multiple=multiple)
        return [pair.noisy.numpy() for pair in pairs]
    pictures: list[NDArray[np.float32]] = []
    for file in files:
        raw = read_raw(file)
        planes = np.minimum(normalize(raw) * np.float32(choose_ratio(raw).ratio), 1.0)
        height, width = planes.shape[1:]
        rows, columns = (min(side, largest) // multiple * multiple for side in (height, width))
        if not rows or not columns:
            raise InputError(
                f"{file} is too small to calibrate on: {height}x{width} packed pixels."
            )
        top, left = (height - rows) // 2, (width - columns) // 2
        pictures.append(planes[None, :, top : top + rows, left : left + columns].copy())
    return pictures


def deviation(
    run: Callable[[Tensor], Tensor],
    network: nn.Module,
    *,
    reach: Reach,
    num_sizes: int = 4,
    seed: int = 0,
) -> float:
    """The largest difference between what was exported and the network, on random sizes.

    Args:
        run: what was exported, as a function of (1, 4, height, width).
        network: what it was made of.
        reach: of the network.
        num_sizes: how many sizes are drawn, up to 24 times the network's multiple.
        seed: of sizes and pictures.
    """
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    with _inference(network), torch.inference_mode():
        for _ in range(num_sizes):
            sides = torch.randint(2, 25, (2,), generator=generator) * reach.multiple
            x = torch.rand((1, _PLANES, *sides.tolist()), generator=generator)
            worst = max(worst, float((run(x) - network(x)).abs().max()))
    return worst


def operations(model: bytes | torch.export.ExportedProgram) -> dict[str, int]:
    """How often which operation occurs, the most frequent first."""
    if isinstance(model, torch.export.ExportedProgram):
        calls = (node for node in model.graph.nodes if node.op == "call_function")
        names = [str(node.target) for node in calls]
    else:
        import onnx

        names = [node.op_type for node in onnx.load_from_string(model).graph.node]
    return dict(Counter(names).most_common())


def _example(network: nn.Module, reach: Reach | None) -> tuple[Tensor, Any]:
    """A picture of two different sides, and which of its sides are free."""
    multiple = (reach or measure_reach(network)).multiple
    height, width = torch.export.Dim("h", min=2), torch.export.Dim("w", min=2)
    free = {2: multiple * height, 3: multiple * width}
    return torch.zeros(1, _PLANES, 4 * multiple, 6 * multiple), (free,)


def _onnxruntime(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"ONNX Runtime is not installed ({error}); pip install 'eslkit[tsdn]'."
        ) from error


def _refused(network: nn.Module, by: str, error: Exception) -> InputError:
    first = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(f"This {type(network).__name__} was refused by {by}: {first[0]}")


@contextmanager
def _inference(network: nn.Module) -> Generator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


@contextmanager
def _quiet() -> Generator[None]:
    """Keeps exporters from telling about packages that nobody uses here, and their own parts."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    loggers.append(logging.getLogger())  # ONNX Runtime's quantisation logs there
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
