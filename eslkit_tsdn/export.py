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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eslkit.errors import InputError
from eslkit_tsdn.reach import Reach, measure_reach

__all__ = [
    "INPUT",
    "OUTPUT",
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
