"""`eslkit-tsdn train` and `evaluate`, as their users call them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eslkit.store import RunStore
from eslkit_tsdn import datasets
from eslkit_tsdn.cli import app
from eslkit_tsdn.demo.progress import DemoProgress
from eslkit_tsdn.measuring import Evaluation
from eslkit_tsdn.metrics import PROTOCOLS
from eslkit_tsdn.models import TSDN
from eslkit_tsdn.weights import load_network, read_metadata
from tests.eslkit_tsdn.fakes import drawn_photos
from tests.eslkit_tsdn.sid_folder import make_sid
from tests.eslkit_tsdn.test_store_sources import store_of

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

SMALL = ["--preset", "smoke", "--widths", "2,3", "--crop", "8", "--batch", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def drawn(monkeypatch) -> None:
    photos = drawn_photos(3, height=72, width=80)
    monkeypatch.setattr(datasets, "packaged_photos", lambda: photos)
    monkeypatch.setenv("COLUMNS", "160")


def call(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == code, result.output
    return result.output


def train(out: Path, *words: object, data: object = "packaged", code: int = 0) -> str:
    return call("train", "--data", data, "--out", out, *SMALL, *words, code=code)


def test_a_training_says_what_came_out_of_it_and_is_read_when_called_again(tmp_path):
    out = tmp_path / "run"
    said = train(out, "--iterations", 12)
    assert "tsdn on 2 packaged photographs to train on, 1 others to test on: 12 updates" in said
    assert "scratch: 10 of 12 updates, PSNR" in said
    for name in ("noisy input", "x100", "x250", "x300", "network.safetensors is the network"):
        assert name in said
    metadata = read_metadata(out / "network.safetensors")
    assert json.loads(metadata["settings"])["budget"]["iterations"] == 12
    network = load_network(out)
    assert type(network).__name__ == "TSDN"
    written = (out / "network.safetensors").read_bytes()
    again = train(out, "--iterations", 12)
    assert "updates, PSNR" not in again
    assert (out / "network.safetensors").read_bytes() == written


def test_interrupted_it_goes_on_to_the_same_network(tmp_path, monkeypatch):
    train(tmp_path / "whole", "--model", "sunet", "--iterations", 4)
    plain = DemoProgress.update

    def update(self, name, done, loss):
        plain(self, name, done, loss)
        if done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(DemoProgress, "update", update)
    said = train(tmp_path / "parts", "--model", "sunet", "--iterations", 4, code=130)
    assert "the same command goes on from there" in said
    monkeypatch.setattr(DemoProgress, "update", plain)
    train(tmp_path / "parts", "--model", "sunet", "--iterations", 4)
    one, other = (load_network(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all((one[key] == other[key]).all() for key in one)


@pytest.mark.parametrize("how", [(), ("--model", "tsdn3")], ids=" ".join)
def test_layers_that_are_larger_inside_are_trained_at_half_the_rate(tmp_path, how):
    small, inside = tmp_path / "small", tmp_path / "inside"
    train(small, *how, "--iterations", 3)
    said = train(inside, *how, "--linear", "--iterations", 3)
    assert "network.safetensors is the network" in said
    plans = [RunStore(folder).plan() for folder in (small, inside)]
    assert [(plan.linear, plan.scale_rates) for plan in plans] == [(0, False), (4, True)]
    assert plans[0].steps == plans[1].steps
    one, other = (load_network(folder).state_dict() for folder in (small, inside))
    assert [(k, v.shape) for k, v in one.items()] == [(k, v.shape) for k, v in other.items()]
    assert not all((one[key] == other[key]).all() for key in one)


def test_so_they_are_in_every_step_of_esl(tmp_path):
    train(tmp_path, "--esl", "--linear", "--iterations", 1)
    plan = RunStore(tmp_path).plan()
    assert (plan.linear, plan.scale_rates) == (4, True)
    assert len(plan.steps) > 1
    assert load_network(tmp_path).state_dict().keys() == TSDN((2, 3), stages=2).state_dict().keys()


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    train(tmp_path, "--iterations", 1)
    said = train(tmp_path, "--iterations", 2, "--lr", 0.5, code=2)
    assert "holds a training with other settings (" in said
    assert "iterations 1, now 2" in said and "lr 0.002, now 0.5" in said
    assert "--fresh" in said


@pytest.mark.parametrize(
    "words, message",
    [
        (["--model", "resnet"], "--model resnet: expected one of tsdn, unet"),
        (["--preset", "huge"], "--preset huge: expected one of paper, paper-fast"),
        (["--batch", 0], "batch_size: Input should be greater than or equal to 1, got 0"),
        (["--noise", "real"], "packaged is no prepared store, so it has no real pairs"),
        (["--crop", 512], "Take smaller crops (--crop), another preset, such as mini"),
        (["--esl", "--model", "tsdn3"], "tsdn3 is trained stage by stage"),
        (["--devices", 0], "devices: Input should be greater than or equal to 1"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_told_in_a_sentence(tmp_path, words, message):
    said = train(tmp_path / "run", *words, code=2)
    assert message in " ".join(said.split())
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_on_a_store_real_pairs_are_learnt_and_measured(tmp_path):
    store, out = tmp_path / "store", tmp_path / "run"
    store_of(make_sid(tmp_path / "raw"), store)
    said = train(out, "--epochs", 1, data=store)
    assert "real pairs: 30 updates of 2 crops of 8x8" in said  # 60 crops in an epoch
    assert "on val-first" in said
    said = call("evaluate", out, "--data", store)
    assert "eld-crop on" in said and "eld15" in said
    path = out / "evaluation" / "eld-crop-store.csv"
    rows = [*csv.DictReader(path.read_text().splitlines())]
    assert [(row["name"], row["ratio"]) for row in rows] == [
        ("10185_00_0.033s", "300"),
        ("10185_00_0.04s", "250"),
        ("10185_00_0.1s", "100"),
        ("20188_00_0.1s", "100"),
    ]
    call("evaluate", out, "--data", store, "--split", "test", "--drop-misaligned")
    rows = [*csv.DictReader(path.with_name("eld-crop-store-test.csv").read_text().splitlines())]
    assert {row["name"][:5] for row in rows} == {"10185"}


def test_evaluate_prints_means_and_keeps_every_value(tmp_path):
    out = tmp_path / "run"
    train(out, "--iterations", 1)
    said = call("evaluate", out, "--data", "packaged", "--protocol", "eld-full")
    assert "TSDN of" in said and "noise left" in said and "middle" in said
    path = out / "evaluation" / "eld-full-packaged.json"
    evaluation = Evaluation.model_validate_json(path.read_text())
    assert [(p.name, p.ratio) for p in evaluation.pictures] == [
        ("drawn-2", ratio) for ratio in (100, 250, 300)
    ]
    (first, *_) = evaluation.pictures
    rows = [*csv.reader(path.with_suffix(".csv").read_text().splitlines())]
    assert rows[0][:4] == ["name", "ratio", "psnr", "ssim"]
    assert float(rows[1][2]) == first.values["psnr"]
    assert f"{evaluation.mean('psnr', ratio=100):.2f}" in said


def test_whole_frames_in_parts_give_the_same_values(tmp_path):
    train(tmp_path, "--iterations", 1)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ["--data", "packaged", "--protocol", "plain", "--step", "scratch"]
    call("evaluate", tmp_path, *options, "--out", whole)
    call("evaluate", tmp_path, *options, "--out", parts, "--tile", 48)
    one, other = (
        Evaluation.model_validate_json(path.with_suffix(".json").read_text()).pictures
        for path in (whole, parts)
    )
    for first, second in zip(one, other, strict=True):
        assert second.values == pytest.approx(first.values, abs=1e-5)
    said = call("evaluate", tmp_path, *options, "--tile", 0, code=2)
    assert "--tile 0: expected a number of packed pixels" in said


def test_evaluate_refuses_in_a_sentence(tmp_path):
    for words, message in (
        (["nowhere"], "nowhere does not exist"),
        (["nowhere", "--protocol", "mine"], "--protocol mine: expected one of eld-crop"),
    ):
        said = call("evaluate", *words, "--data", "packaged", code=2)
        assert message in " ".join(said.split())


def test_commands_say_what_they_take():
    for command in ("train", "evaluate"):
        said = call(command, "--help")
        assert "packaged" in said
    assert all(name in call("evaluate", "--help") for name in PROTOCOLS)
