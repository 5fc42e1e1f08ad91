"""The whole demo at toy size: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from html import unescape
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from eslkit.errors import InputError, PlanError, StoreError, TrainingError
from eslkit.recipes import RECIPES
from eslkit.store import RunStore
from eslkit_tsdn.cli import app
from eslkit_tsdn.data.crops import to_mosaic
from eslkit_tsdn.data.photos import photos_digest
from eslkit_tsdn.demo import command, runs
from eslkit_tsdn.demo.command import read_photos, run_demo, usable
from eslkit_tsdn.demo.progress import DemoProgress
from eslkit_tsdn.demo.settings import LINEAR, LONG, SCRATCH, DemoResults, DemoSettings
from eslkit_tsdn.demo.verdict import verdict
from eslkit_tsdn.models import TSDN
from tests.eslkit_tsdn.dng import write_dng
from tests.eslkit_tsdn.fakes import drawn_photo, drawn_photos

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

SETTINGS = DemoSettings(widths=(2, 3), stages=2, iterations=3, batch_size=2, crop=8)
NAMES = ["noisy", SCRATCH, LONG, "EL", "CSL1", "CSL2", "CSL3", "LSL1", "LSL2", LINEAR]


@pytest.fixture(autouse=True)
def drawn(monkeypatch) -> None:
    monkeypatch.setattr(command, "packaged_photos", lambda: drawn_photos(3))


@pytest.fixture
def halfway(finished, tmp_path) -> Path:
    """A folder with settings and plan: what a run has before its first training."""
    out = tmp_path / "run"
    out.mkdir()
    for name in ("settings.json", "plan.json"):
        shutil.copy(finished[0] / name, out / name)
    return out


def run(out: Path, settings: DemoSettings = SETTINGS, *, fresh: bool = False) -> DemoResults:
    console = Console(file=StringIO(), width=160)
    return run_demo(settings, out=out, processes=1, fresh=fresh, console=console)


def measured(results: DemoResults) -> list[tuple[str, dict[str, float]]]:
    return [(row.name, row.metrics) for row in results.rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, DemoResults]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "packaged_photos", lambda: drawn_photos(3))
        out = tmp_path_factory.mktemp("demo") / "run"
        return out, run(out)


def test_the_table_has_every_network(finished):
    _, results = finished
    assert [row.name for row in results.rows] == NAMES
    assert results.ratios == (100, 250, 300)
    iterations = [row.iterations for row in results.rows]
    assert iterations == [None, 3, 3 * 6, *[3] * 6, 3 * 6]
    small = TSDN((2, 3), stages=2)
    parameters = sum(p.numel() for p in small.parameters())
    assert {results.row(n).parameters for n in (SCRATCH, LONG, "LSL2", LINEAR)} == {parameters}
    assert results.row("EL").parameters == sum(p.numel() for p in TSDN((4, 6, 12)).parameters())


def test_the_final_weights_load_strictly_into_a_new_network(finished):
    out, _ = finished
    small = [f"{name}/steps/01-{name}" for name in (SCRATCH, LONG, LINEAR)]
    for path in ("esl/steps/06-LSL2", *small):
        TSDN((2, 3), stages=2).load_state_dict(load_file(out / path / "weights.safetensors"))


def test_what_is_written_can_be_read(finished):
    out, results = finished
    assert DemoResults.model_validate_json((out / "results.json").read_text()) == results
    page = unescape((out / "report.html").read_text())
    assert page.count("data:image/png;base64,") == 7
    assert "<svg" in page
    assert all(sentence in page for sentence in verdict(results))


def test_costs_are_told_for_the_tables_picture_size():
    plan = runs.at_table_size(runs.esl_schedule(DemoSettings()).plan)
    assert plan.steps[0].parameters == 964_456  # the demo expands to the paper's TSDN
    assert f"{plan.steps[0].flops / 1e9:.2f}" == "37.31"


def test_larger_inside_is_the_longer_training_with_another_way_through_its_weights(finished):
    out, results = finished
    long, linear = results.row(LONG), results.row(LINEAR)
    assert linear.macs == long.macs
    assert linear.metrics != long.metrics
    plans = {name: RunStore(out / name).plan() for name in (LONG, LINEAR)}
    assert (plans[LONG].linear, plans[LINEAR].linear) == (0, RECIPES["linear"].linear)
    assert plans[LINEAR].scale_rates


def test_a_demo_from_before_the_fourth_training_gets_it(finished, tmp_path, monkeypatch):
    older = tmp_path / "run"
    shutil.copytree(finished[0], older)
    shutil.rmtree(older / LINEAR)
    told = json.loads((older / "results.json").read_text())
    told |= {"version": 1, "rows": told["rows"][:-1]}
    (older / "results.json").write_text(json.dumps(told))
    trained = []
    monkeypatch.setattr(DemoProgress, "begin", lambda self, name: trained.append(name))
    monkeypatch.setattr(DemoProgress, "update", lambda *_: None)
    monkeypatch.setattr(DemoProgress, "end", lambda *_: None)
    assert measured(run(older)) == measured(finished[1])
    assert trained == [LINEAR]


def test_a_finished_demo_answers_without_training(finished, monkeypatch):
    out, results = finished
    monkeypatch.setattr(command, "train_and_report", None)
    assert run(out) == results


@pytest.mark.parametrize("at", [(LONG, 7), ("CSL1", 2), ("LSL2", 1), (LINEAR, 9)])
def test_an_interrupted_demo_ends_in_the_same_numbers(finished, halfway, monkeypatch, at):
    name, iteration = at
    plain = DemoProgress.update

    def update(self, training, done, loss):
        plain(self, training, done, loss)
        if training == name and done == iteration:
            raise KeyboardInterrupt("now")

    monkeypatch.setattr(runs, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(DemoProgress, "update", update)
    with pytest.raises(KeyboardInterrupt, match="now"):
        run(halfway)
    monkeypatch.setattr(DemoProgress, "update", plain)
    assert measured(run(halfway)) == measured(finished[1])


def test_other_settings_are_refused_and_nothing_is_lost(finished):
    out, results = finished
    other = SETTINGS.model_copy(update={"iterations": 4})
    with pytest.raises(StoreError, match=r"other settings \(iterations 3, now 4\)"):
        run(out, other)
    assert run(out) == results


def test_other_photographs_are_refused(finished, monkeypatch):
    monkeypatch.setattr(command, "packaged_photos", lambda: drawn_photos(4))
    with pytest.raises(StoreError, match="the photographs have changed"):
        run(finished[0])


def test_fresh_moves_the_old_run_aside(tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(command, "train_and_report", lambda *_, **__: "trained")
    monkeypatch.setattr(command, "results_table", str)
    monkeypatch.setattr(command, "verdict", lambda _: ())
    run(out)
    (out / "precious").write_text("kept")
    assert run(out, SETTINGS.model_copy(update={"seed": 1}), fresh=True) == "trained"
    (aside,) = tmp_path.glob("run-*")
    assert (aside / "precious").read_text() == "kept"


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(StoreError, match="not empty and holds no demo"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_settings_that_were_edited_are_refused(tmp_path):
    (tmp_path / "settings.json").write_text('{"version": 1, "iterations"')
    with pytest.raises(StoreError, match=r"cannot be read as a demo's settings"):
        run(tmp_path)


def test_a_plan_that_was_cut_short_is_refused(halfway):
    (halfway / "plan.json").write_text('{"version": 1, "steps": ')
    with pytest.raises(PlanError, match="not JSON"):
        run(halfway)


def test_more_processes_than_cores_are_refused(tmp_path):
    console = Console(file=StringIO())
    with pytest.raises(InputError, match=r"processes=4096.*ask for 1"):
        run_demo(SETTINGS, out=tmp_path / "run", processes=4096, console=console)


def invoke(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["demo", *words])
    return result.exit_code, result.stderr


def test_bad_input_is_one_sentence_and_code_2(tmp_path):
    out = ["--out", str(tmp_path / "run")]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "photo.ARW").write_text("not a photo")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for words, said in [
        (["--raw", str(tmp_path / "raw")], "photo.ARW is a text file"),
        (["--raw", str(tmp_path / "empty")], "no camera file"),
        (["--raw", str(tmp_path / "absent")], "is not a folder"),
        (["--widths", "8,x"], "widths.1"),
        (["--crop", "36"], "multiple of 8"),
        (["--iterations", "0"], "iterations"),
        (["--processes", "0"], "processes=0"),
    ]:
        code, error = invoke(*out, *words)
        assert code == 2, words
        assert said in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()
    code, error = invoke("--out", str(tmp_path / "file" / "run"))
    assert code == 2
    assert "a file is in the way" in error


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "train_and_report", interrupted)
    code, error = invoke("--out", str(tmp_path / "run"))
    assert code == 130
    assert "the same command goes on from there" in error


KILLED = """
import os, signal, sys
from pathlib import Path
from rich.console import Console
from eslkit_tsdn.demo import command, progress, runs
from eslkit_tsdn.demo.settings import DemoSettings

runs.CHECKPOINT_EVERY = 2
plain = progress.DemoProgress.update

def update(self, training, done, loss):
    if training == "CSL2" and done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    plain(self, training, done, loss)

progress.DemoProgress.update = update
settings = DemoSettings.model_validate_json(sys.argv[2])
command.run_demo(settings, out=Path(sys.argv[1]), processes=2, console=Console())
"""


@pytest.fixture(scope="module")
def camera(tmp_path_factory) -> DemoSettings:
    """Settings for three camera files, which a worker can read for itself."""
    folder = tmp_path_factory.mktemp("camera")
    for seed in range(3):
        mosaic = 512 + 15000 * to_mosaic(drawn_photo("", seed=seed).packed)
        write_dng(folder / f"{seed}.dng", mosaic.numpy().astype("uint16"))
    return SETTINGS.model_copy(update={"raw": str(folder)})


two_cores = pytest.mark.skipif(usable(None) < 2, reason="two trainings at a time need two cores")


@two_cores
@pytest.mark.slow
def test_a_killed_demo_goes_on_and_processes_do_not_matter(camera, tmp_path):
    words = [sys.executable, "-c", KILLED, str(tmp_path / "two"), camera.model_dump_json()]
    killed = subprocess.run(words, check=False, capture_output=True, timeout=200, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "two" / "esl" / "steps" / "03-CSL2" / "trainer" / "last.ckpt").exists()
    (tmp_path / "one").mkdir()
    shutil.copy(tmp_path / "two" / "plan.json", tmp_path / "one" / "plan.json")
    shutil.copy(tmp_path / "two" / "settings.json", tmp_path / "one" / "settings.json")
    assert measured(run(tmp_path / "two", camera)) == measured(run(tmp_path / "one", camera))


@two_cores
@pytest.mark.slow
def test_what_is_wrong_in_the_other_process_is_told(camera, halfway):
    settings = camera.model_copy(update={"photos": photos_digest(read_photos(camera))})
    (halfway / "settings.json").write_text(settings.model_dump_json())
    (halfway / SCRATCH).write_text("in the way")
    with pytest.raises(TrainingError, match="a file is in the way"):
        run_demo(camera, out=halfway, processes=2, console=Console(file=StringIO()))
