"""Exported networks: the same as the original on every size, and reported as they are."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from eslkit.errors import InputError
from eslkit_tsdn.cli import app
from eslkit_tsdn.export import (
    ExportReport,
    OnnxNetwork,
    calibration_pictures,
    deviation,
    operations,
    quantized,
    session_of,
    to_onnx,
    to_program,
)
from eslkit_tsdn.models import UNet
from eslkit_tsdn.reach import Reach, measure_reach
from eslkit_tsdn.weights import save_network
from tests.eslkit_tsdn.test_denoise import write_camera_file

EXPECTED = {"Conv": 11, "LeakyRelu": 10, "MaxPool": 2, "ConvTranspose": 2, "Concat": 2}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return UNet((4, 6, 8)).train()


@pytest.fixture(scope="module")
def model(network: nn.Module) -> bytes:
    level = logging.getLogger().level
    made = to_onnx(network)
    assert network.training and logging.getLogger().level == level
    return made


def test_onnx_is_the_network_on_every_size(network: nn.Module, model: bytes) -> None:
    onnx.checker.check_model(onnx.load_from_string(model))
    run = OnnxNetwork(model)
    reach = measure_reach(network)
    assert reach.multiple == 4
    assert deviation(run, network, reach=reach, num_sizes=8) < 1e-4
    for height, width in ((4, 4), (4, 72), (100, 12)):
        x = torch.rand(1, 4, height, width)
        with torch.inference_mode():
            expected = network.eval()(x)
        assert (run(x) - expected).abs().max() < 1e-4
    network.train()
    assert operations(model) == EXPECTED


def test_a_wrong_model_is_noticed(network: nn.Module) -> None:
    reach = measure_reach(network)
    network.eval()
    assert deviation(lambda x: network(x) + 0.01, network, reach=reach) == pytest.approx(
        0.01, rel=1e-3
    )
    network.train()


def test_torch_export_is_the_network_on_every_size(network: nn.Module) -> None:
    program = to_program(network)
    assert network.training
    assert deviation(program.module(), network, reach=Reach(4, 20)) < 1e-4
    assert operations(program)["aten.conv2d.default"] == 11


def test_integers_stay_close_and_small(network: nn.Module, model: bytes) -> None:
    pictures = [np.random.default_rng(i).random((1, 4, 32, 48), dtype=np.float32) for i in range(3)]
    made = quantized(model, pictures)
    assert operations(made)["QuantizeLinear"] > 20
    kinds = {each.data_type for each in onnx.load_from_string(made).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    weights = [w for w in onnx.load_from_string(made).graph.initializer if len(w.dims) == 4]
    assert weights and {w.data_type for w in weights} == {onnx.TensorProto.INT8}
    x = torch.from_numpy(pictures[0])
    with torch.inference_mode():
        expected = network.eval()(x)
    network.train()
    apart = (OnnxNetwork(made)(x) - expected).abs().max()
    assert 0 < apart < 0.1 * (expected.max() - expected.min())


def test_pictures_to_calibrate_on(tmp_path: Path) -> None:
    packaged = calibration_pictures(multiple=16, largest=64)
    assert len(packaged) == 21, "seven photographs at three ratios"
    assert all(p.shape[1] == 4 and not (p.shape[2] % 16 or p.shape[3] % 16) for p in packaged)
    assert all(p.min() >= 0 and p.max() <= 1 for p in packaged)
    photo = write_camera_file(tmp_path / "dark.dng")
    [own] = calibration_pictures([photo], multiple=8)
    assert own.shape == (1, 4, 24, 40)
    assert own.mean() > 0.05, "amplified"
    with pytest.raises(InputError, match="too small to calibrate on"):
        calibration_pictures([photo], multiple=64)


class Branching(nn.Module):
    """Decides by what it sees, which no exporter can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_exported_is_refused(network: nn.Module, model: bytes) -> None:
    reach = Reach(1, 0)
    with pytest.raises(InputError, match=r"Branching was refused by torch\.export"):
        to_program(Branching(), reach=reach)
    with pytest.raises(InputError, match=r"Branching was refused by torch\.onnx"):
        to_onnx(Branching(), reach=reach)
    with pytest.raises(InputError, match="no picture to calibrate"):
        quantized(model, [])
    with pytest.raises(InputError, match="ONNX Runtime refuses the model"):
        session_of(b"no model")


def test_the_command_writes_and_compares(tmp_path: Path) -> None:
    save_network(UNet((2, 3)), tmp_path / "net.safetensors")
    out = tmp_path / "out"
    photo = write_camera_file(tmp_path / "dark.dng")
    command = ["export", "-o", out, "--weights", tmp_path / "net.safetensors", "--calibrate", photo]
    result = CliRunner().invoke(app, [*map(str, command), "--no-measure"])
    assert result.exit_code == 0, result.output
    assert "calibrated on 1 pictures" in result.output
    assert "network.onnx: Conv 7, LeakyRelu 6" in result.output
    report = ExportReport.model_validate_json((out / "export.json").read_text())
    assert report.multiple == 2
    assert [file.path for file in report.files] == [
        *("network.pt2", "network.onnx", "network-int8.onnx"),
    ]
    for file in report.files:
        assert (out / file.path).stat().st_size == file.num_bytes
        assert file.deviation is None or file.deviation < 1e-4
    program = torch.export.load(out / "network.pt2")
    assert program.module()(torch.zeros(1, 4, 10, 14)).shape == (1, 4, 10, 14)
    result = CliRunner().invoke(app, ["export", "--weights", str(tmp_path / "none.pt")])
    assert result.exit_code == 2 and "none.pt does not exist" in result.output
