"""The two countings against the facts, section 0 and 1, and against counting by hand."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import eslkit
from eslkit.errors import InputError, UnsupportedError
from eslkit_tsdn.cli import app
from eslkit_tsdn.complexity import (
    NETWORKS,
    Measurement,
    complexity_notes,
    complexity_rows,
    file_bytes,
    measure,
    paper_flops,
    true_flops,
)
from eslkit_tsdn.models import TSDN, CBDNet, DeamNet, DrawnNBNet, UNet

QUARTER = (1, 4, 256, 256)


def on_meta(make) -> nn.Module:
    with torch.device("meta"):
        return make()


def wide_output(make) -> nn.Module:
    """With a last convolution of 3x3, as the paper's text has it."""
    model = on_meta(make)
    for stage in getattr(model, "stages", [model]):
        stage.out = nn.Conv2d(stage.out.in_channels, 4, 3, padding=1, device="meta")
    return model


@pytest.mark.parametrize(
    "model, shape, gflops",
    [
        (lambda: TSDN(), (1, 4, 512, 512), 37.3125),
        (lambda: UNet(), (1, 4, 512, 512), 96.771),
        (lambda: CBDNet(), (1, 4, 512, 512), 297.6289),
        (lambda: DeamNet(), (1, 4, 512, 512), 429.9450),
        (lambda: DrawnNBNet(), QUARTER, 54.1079),
        (lambda: DrawnNBNet(), (1, 4, 512, 512), 216.4316),
        (lambda: wide_output(TSDN), (1, 4, 512, 512), 37.849),
        (lambda: wide_output(UNet), (1, 4, 512, 512), 97.308),
    ],
    ids=["TSDN", "U-Net", "CBDNet", "DeamNet", "NBNet 256", "NBNet 512", "TSDN 3x3", "U-Net 3x3"],
)
def test_the_paper_s_counting(model, shape, gflops):
    counted = paper_flops(on_meta(model), shape=shape) / 1e9
    assert counted == pytest.approx(gflops, abs=0.6 * 10 ** -len(str(gflops).partition(".")[2]))


def by_hand(layer: nn.Module, x: Tensor) -> int:
    """Every output's operations, one after the other."""
    y, count = layer(x), 0
    if isinstance(layer, nn.Conv2d):
        for _ in itertools.product(*map(range, y.shape[1:])):
            products = layer.weight[0].numel()
            count += products + (products - 1) + (layer.bias is not None)
    elif isinstance(layer, nn.ConvTranspose2d):  # as if each input position were an output
        for _ in itertools.product(range(y.shape[1]), *map(range, x.shape[2:])):
            products = layer.weight[:, 0].numel()
            count += products + (products - 1) + (layer.bias is not None)
    elif isinstance(layer, nn.MaxPool2d):
        count = sum(3 for _ in range(y.numel()))
    elif isinstance(layer, nn.AvgPool2d):
        count = sum(3 + 1 for _ in range(y.numel()))
    elif isinstance(layer, nn.ReLU):
        count = sum(1 for _ in range(x.numel()))
    return count


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 3, 3, padding=1),
        nn.Conv2d(4, 3, 3, stride=2, bias=False),
        nn.Conv2d(4, 6, (1, 5), groups=2),
        nn.ConvTranspose2d(4, 3, 2, stride=2),
        nn.MaxPool2d(2),
        nn.AvgPool2d((2, 2)),
        nn.ReLU(),
        nn.LeakyReLU(),
        nn.Sigmoid(),
    ],
    ids=repr,
)
def test_a_layer_counts_what_counting_by_hand_gives(layer):
    x = torch.rand(1, 4, 6, 8)
    assert paper_flops(layer, shape=tuple(x.shape)) == by_hand(layer, x)
    assert paper_flops(layer, shape=(3, 4, 6, 8)) == by_hand(layer, x)


def test_functions_hide_and_shared_modules_count_their_last_call():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(torch.relu(self.relu(x))[:, :2])

    model = Shared()
    assert paper_flops(model, shape=(1, 4, 6, 8)) == 2 * 6 * 8
    assert not model.relu._forward_hooks


def test_deamnet_s_u_net_is_counted_once_of_four_times():
    model = on_meta(DeamNet)
    whole = true_flops(model) / 1e9
    once = true_flops(model.operator, shape=(1, 64, 512, 512)) / 1e9
    assert f"{whole:.2f} {once:.3f}" == "1167.34 245.866"
    assert whole - 3 * once == pytest.approx(429.744, abs=5e-4)


class Joined(nn.Module):
    """A near miss of CBDNet's denoiser: skip connections are joined instead of added."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.inner = denoiser
        denoiser.decoder2[0] = nn.Conv2d(256, 128, 3, padding=1)
        denoiser.decoder1[0] = nn.Conv2d(128, 64, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner
        first = inner.encoder1(x)
        second = inner.encoder2(inner.pool1(first))
        x = inner.middle(inner.pool2(second))
        x = inner.decoder2(torch.cat([inner.up2(x), second], 1))
        return inner.out(inner.decoder1(torch.cat([inner.up1(x), first], 1)))


def test_cbdnet_s_near_misses():
    """Facts, section 2: what the paper's 297.63 GFLOPs and 16.7 MiB rule out."""
    with torch.device("meta"):
        wide = CBDNet()
        wide.denoiser.out = nn.Conv2d(64, 4, 3, padding=1)
        joined = CBDNet()
        joined.denoiser = Joined(joined.denoiser)
        narrow = CBDNet()
        narrow.estimator.out[0] = nn.Conv2d(32, 1, 3, padding=1)
        narrow.denoiser.encoder1[0] = nn.Conv2d(5, 64, 3, padding=1)
    gflops = [round(true_flops(each) / 1e9, 2) for each in (wide, joined, narrow)]
    assert gflops == [298.50, 336.08, 296.07]
    size = 4 * sum(p.numel() for p in joined.parameters()) / 2**20
    assert round(size, 3) == 17.363


@pytest.mark.parametrize("make", [lambda: TSDN((2, 4)), lambda: UNet((3, 5, 7)), CBDNet])
def test_the_size_of_a_file_is_that_of_a_file(make, tmp_path):
    model = make()
    file = tmp_path / "archive.pt"  # the name stands in the file, many times
    torch.save(model.state_dict(), file)
    assert file_bytes(model) == file.stat().st_size
    assert file_bytes(model.to("meta")) == file_bytes(make())


@pytest.fixture(scope="module")
def rows():
    return complexity_rows()


def test_the_table_has_the_paper_s_digits(rows):
    """Every figure that the paper prints, in the paper's counting; TSDN's 3.8 MB has no file."""
    for row in rows:
        if row.paper_gflops is not None:
            assert f"{row.counted_as_paper:.2f}" == f"{row.paper_gflops:.2f}", row.network
        if row.paper_size is not None and row.network != "TSDN":
            assert f"{row.file_bytes / 2**20:.1f}" == f"{row.paper_size}", row.network
    printed = {row.paper_gflops for row in rows} - {None}
    assert printed == {96.77, 297.63, 429.95, 216.44, 37.31}
    tsdn = rows[0]
    assert round(tsdn.file_bytes / 2**20, 3) == pytest.approx(3.702, abs=3e-3)


def test_the_notes_say_where_the_paper_s_figures_hide_cost(rows):
    deamnet, nbnet, tsdn = complexity_notes(rows)
    assert "429.95" in deamnet and "1,167.34" in deamnet
    assert all(figure in nbnet for figure in ("50.8", "697.28", "216.44"))
    assert all(figure in tsdn for figure in ("3.8 MB", "3.68 MiB", "3.86 MB", "3.70 MiB"))
    assert complexity_notes(rows[1:2]) == ()


# Widths of the U-Net after the paper's channel steps, where up-sampling halves with the level
# that it feeds (facts, section 1, "target"): group -> channels, each step on top of the last.
TARGET = [
    ({"middle.conv1": 256, "middle.conv2": 256}, 10_277_064, 182.805),
    (("3", 128), 5_458_888, 148.579),
    (("2", 64), 4_254_024, 114.354),
    (("1", 32), 3_952_648, 80.128),
]
BLOCK = (193.542, 177.436, 143.210, 108.985, 74.759, 48.721)
"""The other reading, which `eslkit.schedule` has and its own tests hold."""


def test_the_other_reading_of_the_walk_is_a_matter_of_widths():
    x = torch.zeros(1, 4, 32, 32)
    network, gflops = UNet(), []
    for change, parameters, expected in TARGET:
        if isinstance(change, tuple):
            level, width = change
            layers = [f"{side}.{level}.conv{i}" for side in ("encoder", "decoder") for i in (1, 2)]
            change = dict.fromkeys([*layers, f"decoder.{level}.up"], width)
        network = eslkit.resize(network, change, init="first", example_inputs=x)
        assert 2 * sum(p.numel() for p in network.parameters()) == parameters
        gflops.append(2 * true_flops(network) / 1e9)
        assert gflops[-1] == pytest.approx(expected, abs=5e-4)
    assert esl_cost(gflops, reading_b=False) == 22.72
    assert esl_cost(gflops, reading_b=True) == 22.79
    assert esl_cost(list(BLOCK[1:5]), reading_b=False) == 22.14
    assert esl_cost(list(BLOCK[1:5]), reading_b=True) == 22.21


def esl_cost(channel_steps: list[float], *, reading_b: bool) -> float:
    """Of all eight trainings, in trainings of the small network from scratch."""
    after_layers = 2 * true_flops(without_middle(both=reading_b)) / 1e9
    return round((BLOCK[0] + sum(channel_steps) + 48.721 + after_layers + 37.3125) / 37.3125, 2)


def without_middle(*, both: bool) -> nn.Module:
    """One stage after LSL1: the two convolutions gone, and with them, unless `both`, the level."""
    with torch.device("meta"):
        stage = UNet((16, 32, 64, 128, 256))
        stage.middle = nn.Identity()
        stage.decoder[3].up = nn.ConvTranspose2d(128, 128, 2, stride=2)
        if both:
            return stage
        without = UNet((16, 32, 64, 128))
        without.middle = nn.Sequential(
            *(nn.Conv2d(64 if i == 0 else 128, 128, 3, padding=1) for i in range(4))
        )
    return without


def test_two_readings_of_the_first_layer_step():
    sizes = {
        both: 2 * sum(p.numel() for p in without_middle(both=both).parameters())
        for both in (False, True)
    }
    assert sizes == {False: 1_554_792, True: 1_981_032}
    gflops = [2 * true_flops(without_middle(both=both)) / 1e9 for both in (False, True)]
    assert gflops == pytest.approx([42.144, 44.829], abs=5e-4)


def test_what_a_training_costs_in_flops():
    """Facts, section 1: a backward pass as two forward ones, 2,240 updates an epoch."""
    tiny, unet, sunet = (true_flops(make()) / 1e9 for make in (TSDN, UNet, lambda: UNet(HALF)))
    training = 3 * 300 * 2240 / 1e6  # GFLOPs a pass -> PFLOPs
    assert round(tiny * training) == 75
    assert round(unet * training) == 195
    assert round(22.14 * tiny * training) == pytest.approx(1665, abs=1)
    assert 8 * 300 * 2240 == 5_376_000
    assert round((3 * sunet + unet) / (3 * sunet), 2) == 2.32  # distillation: a teacher's forward
    assert round(unet / sunet, 2) == 3.97  # and the teacher's own training


HALF = (16, 32, 64, 128, 256)


def test_a_network_is_measured_in_a_process_of_its_own():
    took = measure("TSDN", repeats=2, shape=(1, 4, 32, 32))
    assert len(took.milliseconds) == 2
    assert 0 < min(took.milliseconds) <= took.median <= max(took.milliseconds)
    assert 2**25 < took.idle_bytes < took.peak_bytes < 2**31
    assert (took.network, took.kind, took.shape) == ("TSDN", "cpu", (1, 4, 32, 32))


def test_a_process_that_fails_says_so(monkeypatch):
    def failed(*args: object, **keywords: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], -9, stdout="", stderr="first\nkilled\n")

    monkeypatch.setattr(subprocess, "run", failed)
    with pytest.raises(UnsupportedError, match=r"NBNet could not be measured .*code -9 \(killed\)"):
        measure("NBNet")


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"network": "VDN"}, "'VDN' is none of the networks; known are TSDN"),
        ({"network": "TSDN", "repeats": 0}, "repeats=0"),
        ({"network": "TSDN", "warmup": -1}, "warmup=-1"),
    ],
)
def test_what_cannot_be_measured_is_refused(asked, message):
    with pytest.raises(InputError, match=message):
        measure(**asked)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told():
    with pytest.raises(InputError, match="sees no CUDA GPU"):
        measure("TSDN", device="cuda")


@pytest.mark.gpu
def test_a_network_is_measured_on_a_gpu():
    took = measure("TSDN", device="cuda", shape=(1, 4, 64, 64))
    assert took.kind == "cuda"
    assert 4 * 964_456 < took.peak_bytes < 2**30


def test_the_command_prints_both_countings_and_what_they_are(rows, monkeypatch):
    monkeypatch.setattr("eslkit_tsdn.complexity.complexity_rows", lambda networks: rows)
    result = CliRunner().invoke(app, ["complexity"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    for figure in ("96.77", "297.63", "429.95", "216.44", "37.31", "1,167.34", "13,309,860"):
        assert figure in text
    assert "every call counted" in text
    assert "its last call alone" in text


def test_the_command_gives_json_with_what_was_measured(monkeypatch):
    def measured(network: str, *, device: str, repeats: int) -> Measurement:
        return Measurement(
            network=network,
            kind="cpu",
            device="a processor",
            threads=1,
            shape=(1, 4, 512, 512),
            milliseconds=(3.0, 1.0, 2.0)[:repeats],
            peak_bytes=2**30,
            idle_bytes=2**28,
        )

    monkeypatch.setattr("eslkit_tsdn.complexity.measure", measured)
    arguments = ["complexity", "--only", "SU-Net", "--measure", "--repeats", "3"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    [network] = found["networks"]
    assert network["parameters"] == 1_941_300
    assert network["measured"]["milliseconds"] == [3.0, 1.0, 2.0]
    assert set(found["countings"]) == {"true", "paper"}
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    text = " ".join(result.output.split())
    assert "1,024" in text and "median of 3 forward passes" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--only", "VDN"], "'VDN' is none of the networks: TSDN"),
        (["--device", "tpu"], "'tpu': expected cpu or cuda"),
        (["--measure", "--repeats", "0", "--only", "TSDN"], "repeats=0"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, message):
    result = CliRunner().invoke(app, ["complexity", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_help_does_not_load_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from eslkit_tsdn.cli import app; "
        "r = CliRunner().invoke(app, ['complexity', '--help']); "
        "sys.exit(r.exit_code or ('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert len({listed.name for listed in NETWORKS}) == len(NETWORKS)
