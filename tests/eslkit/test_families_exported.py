"""What surgery makes leaves Python as any network does: as an exported program and as ONNX."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from torch import nn

import eslkit
from tests.eslkit.families.all import family
from tests.eslkit.families.family import Alone, inputs, settle
from tests.eslkit.families.laws import run

THOROUGH = int(os.environ.get("LAW_EXAMPLES", "6")) >= 20
FEW = ("scaled-product", "pixel-shuffle", "weight-norm")
MORE = (
    "grouped-transposed", "self-attention", "window", "simple-gate", "unpooled", "fourier",
    "layer-norm-last", "instance-norm", "squeeze-excite", "patch-merging", "dense", "tied",
)  # fmt: skip
NAMES = FEW + (MORE if THOROUGH else ())


def made(name: str, width: float) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model, x = settle(Alone(family(name), 2)).float(), inputs(3, 2).float()
    change = eslkit.shrink if width < 1 else eslkit.expand
    return change(model, width=width, example_inputs=x), x


@pytest.mark.parametrize("name", NAMES)
def test_exported_for_any_batch(name: str) -> None:
    model, x = made(name, 2)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(model, (x,), dynamic_shapes=shapes)
    more = torch.cat([x, x.flip(0), x])
    torch.testing.assert_close(run(program.module(), more), run(model, more))


@pytest.mark.parametrize("name", NAMES[:1] if not THOROUGH else NAMES)
def test_exported_as_onnx(name: str) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx and onnxscript")
    pytest.importorskip("onnxscript", reason="needs onnx and onnxscript")
    from onnx.reference import ReferenceEvaluator

    model, x = made(name, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
        proto = program.model_proto
        onnx.checker.check_model(proto)
        (got,) = ReferenceEvaluator(proto).run(None, {proto.graph.input[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), run(model, x)[0], atol=1e-4, rtol=1e-4)
