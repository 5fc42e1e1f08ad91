"""Recipes carried out: shared, resumed, killed, in one process and in several."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from eslkit.errors import InputError, StoreError
from eslkit_tsdn.budget import Budget
from eslkit_tsdn.cli import app
from eslkit_tsdn.presets import Preset
from eslkit_tsdn.recipes.scale import Scale
from eslkit_tsdn.recipes.values import Recipe, in_order
from eslkit_tsdn.tables.pictures import Pictures, open_pictures
from eslkit_tsdn.tables.pool import is_ready
from eslkit_tsdn.tables.reproduce import reproduce
from eslkit_tsdn.tables.results import Results
from eslkit_tsdn.tables.runs import RunsFolder
from eslkit_tsdn.tables.settings import (
    Reproduction,
    asked_for,
    planner_of,
    recipes_of,
    tables_of,
)
from eslkit_tsdn.tables.workshop import Workshop
from tests.eslkit_tsdn.published import check_published

TINY = Scale(preset=Preset(name="tiny", widths=(2, 4), iterations=2, lr=1e-3, crop=16, largest=32))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Reproduction:
    """Two tables on five small pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(5):
        pixels = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 80)).save(folder / f"{seed}.png")
    return Reproduction(tables=("table2", "table5"), scale=TINY, data=str(folder))


@pytest.fixture(scope="module")
def few(asked: Reproduction) -> Reproduction:
    """One table of five trainings."""
    return asked.model_copy(update={"tables": ("table2",)})


@pytest.fixture(scope="module")
def pictures(asked: Reproduction) -> Pictures:
    return open_pictures(TINY.preset, asked.data)


@pytest.fixture(scope="module")
def whole(asked: Reproduction, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """A finished reproduction in one process."""
    out = tmp_path_factory.mktemp("whole")
    return out, run(asked, out)


@pytest.fixture
def begun(tmp_path: Path, whole: tuple[Path, Results]) -> Path:
    """A folder in which the schedules are planned already, which takes most of the time."""
    shutil.copytree(whole[0] / "plans", tmp_path / "plans")
    return tmp_path


def run(asked: Reproduction, out: Path, *, processes: int = 1) -> Results:
    return reproduce(
        asked, out=out, processes=processes, command="test", console=Console(file=StringIO())
    )


def all_recipes(asked: Reproduction, out: Path, pictures: Pictures) -> tuple[Recipe, ...]:
    planner = planner_of(out)
    return recipes_of(tables_of(asked, pictures, planner=planner), asked, planner=planner)


def figures(results: Results) -> dict[str, object]:
    """Everything that does not tell time or place."""
    return json.loads(results.model_dump_json(exclude={"finished", "command", "machine"}))


def test_every_row_is_measured(whole: tuple[Path, Results]) -> None:
    out, results = whole
    for table in results.tables:
        for row in table.rows:
            assert row.missing == 0, row.name
            assert {f"psnr_x{ratio}" for ratio in (100, 250, 300)} <= row.metrics.keys()
            assert row.parameters
            assert row.training_flops > 0
            for identity in row.runs:
                assert (out / "runs" / identity / "weights.safetensors").is_file()
    assert Results.model_validate_json((out / "results.json").read_text()) == results
    assert "Table V" in (out / "results.md").read_text()


def test_every_figure_names_its_run(whole: tuple[Path, Results]) -> None:
    out, results = whole
    told = check_published(out / "results.json", out / "results.md", out / "runs.jsonl")
    assert told == results


def test_figures_can_be_traced_to_their_weights(
    asked: Reproduction, whole: tuple[Path, Results], pictures: Pictures
) -> None:
    """Weights read from a run's folder give the record's figures again."""
    from eslkit_tsdn.evaluation import evaluate

    out, _ = whole
    workshop = Workshop(RunsFolder(out), pictures, planner=planner_of(out))
    for recipe in all_recipes(asked, out, pictures):
        network = workshop.trained(recipe)
        record = RunsFolder(out).record(recipe)
        for name, value in evaluate(network, pictures.pairs).items():
            assert value == pytest.approx(record.metrics[name], abs=1e-6), (recipe.label, name)


def test_costs_foretold_are_those_recorded(
    asked: Reproduction, whole: tuple[Path, Results], pictures: Pictures
) -> None:
    from eslkit_tsdn.recipes.estimate import training_flops

    out, _ = whole
    for recipe in all_recipes(asked, out, pictures):
        if recipe.method in ("scratch", "step", "chain"):
            foretold = training_flops(recipe, planner_of(out))
            assert RunsFolder(out).record(recipe).training_flops == pytest.approx(foretold)


def test_a_second_call_trains_nothing(
    asked: Reproduction, whole: tuple[Path, Results], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, results = whole

    def carry_out(self: Workshop, recipe: Recipe) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Workshop, "carry_out", carry_out)
    assert figures(run(asked, out)) == figures(results)


@pytest.mark.slow
def test_two_processes_end_in_the_same_bits(
    asked: Reproduction, begun: Path, whole: tuple[Path, Results]
) -> None:
    """Also after one of the workers and then everything was killed."""
    out, results = whole
    script = (
        "import sys; from pathlib import Path\n"
        "from eslkit_tsdn.tables.settings import Reproduction\n"
        "from tests.eslkit_tsdn.test_reproduce import run\n"
        "asked = Reproduction.model_validate_json(sys.argv[2])\n"
        "run(asked, Path(sys.argv[1]), processes=2)"
    )
    command = [sys.executable, "-c", script, str(begun), asked.model_dump_json()]
    process = subprocess.Popen(command, start_new_session=True)
    wait_for_records(begun, 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = len(list((begun / "runs").glob("*/record.json")))
    assert left < len(list((out / "runs").iterdir())), "it was killed too late to test anything"
    assert figures(run(asked, begun, processes=2)) == figures(results)
    for path in (out / "runs").glob("*/weights.safetensors"):
        assert path.read_bytes() == (begun / path.relative_to(out)).read_bytes()


def wait_for_records(out: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 240
    while len(list((out / "runs").glob("*/record.json"))) < count:
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < end, "nothing was finished in time"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(few: Reproduction, begun: Path, pictures: Pictures) -> None:
    """The first worker kills itself in its first training; the work is done all the same."""
    from eslkit_tsdn.tables.crew import Crew

    killed: list[int] = []

    def tell(message: dict[str, object]) -> None:
        if message["kind"] == "begin" and not killed:
            [worker] = [each for each in crew.workers.values() if each.number == message["worker"]]
            killed.append(worker.process.pid)
            os.kill(worker.process.pid, signal.SIGKILL)

    crew = Crew(out=begun, size=1, tell=tell, arguments=(few.model_dump_json(),))
    crew.work()
    assert killed
    recipes = all_recipes(few, begun, pictures)
    assert all(RunsFolder(begun).is_finished(recipe) for recipe in recipes)


def test_changed_weights_are_noticed(few: Reproduction, begun: Path, pictures: Pictures) -> None:
    planner, runs = planner_of(begun), RunsFolder(begun)
    recipes = all_recipes(few, begun, pictures)
    [first] = next(r for r in in_order(recipes) if r.method == "chain").before
    Workshop(runs, pictures, planner=planner).carry_out(first)
    path = runs.of(first) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))
    with pytest.raises(StoreError, match="was changed since it was written"):
        Workshop(runs, pictures, planner=planner).trained(first)
    (runs.of(first) / "record.json").write_text("{")
    with pytest.raises(StoreError, match=r"record\.json cannot be read"):
        runs.record(first)


def test_what_somebody_works_on_is_left_alone(tmp_path: Path, pictures: Pictures) -> None:
    runs, planner = RunsFolder(tmp_path), planner_of(tmp_path)
    recipe = Recipe(
        method="scratch",
        network=TINY.network("tsdn"),
        data=pictures.real,
        budget=Budget(iterations=1),
    )
    lock = runs.lock(recipe)
    assert is_ready(recipe, runs)
    lock.acquire()
    assert not is_ready(recipe, runs)
    with pytest.raises(StoreError, match="Another process is running"):
        Workshop(runs, pictures, planner=planner).carry_out(recipe)
    lock.release()
    assert Workshop(runs, pictures, planner=planner).carry_out(recipe).iterations == 1


def test_a_training_that_fails_costs_only_what_needs_it(
    asked: Reproduction, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eslkit.errors import TrainingError
    from eslkit_tsdn.tables import methods

    def diverges(job: methods.Job) -> methods.Done:
        if job.recipe.label == "CSL1":
            raise TrainingError("the loss is NaN")
        return methods.trained_as_it_is(job)

    monkeypatch.setitem(methods.METHODS, "step", diverges)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="the loss is NaN"):
        run(asked.model_copy(update={"tables": ("table5",)}), begun)
    results = Results.model_validate_json((begun / "results.json").read_text())
    missing = {row.name: row.missing for row in results.tables[0].rows}
    assert missing == {"U-Net": 0, "U-Net-ESL": 1, "SU-Net": 0, "SU-Net-CD": 0, "SU-Net-ESL": 1}


def test_seeds_and_tables_in_words() -> None:
    asked = asked_for(["table5", "table2"], preset="mini", seeds=2, shard="2/3")
    assert asked.tables == ("table2", "table5")
    assert (asked.scale.seeds, asked.shard) == (2, (2, 3))
    assert len(asked_for(["all"]).tables) == 7
    longer = asked_for(["table1"], preset="paper", iterations=7).scale.preset
    assert (longer.iterations, longer.epochs, longer.batch_size) == (7, None, 1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["table9"], "There is no table 'table9'"),
        (["table5", "--preset", "huge"], "There is no preset 'huge'"),
        (["table5", "--shard", "3/2"], "expected i/n"),
        (["table5", "--seeds", "0"], "expected 1 or more"),
        (["table5", "--iterations", "0"], "iterations=0: expected 1 or more"),
        (["table5", "--preset", "paper"], "No picture is larger than a crop of 512x512"),
        (["table5", "--data", "/nowhere/at/all"], "is not a folder"),
    ],
)
def test_wrong_words_are_one_sentence(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["reproduce", *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_the_methods_leave_earlier_networks_alone(
    asked: Reproduction, whole: tuple[Path, Results], pictures: Pictures
) -> None:
    out, _ = whole
    workshop = Workshop(RunsFolder(out), pictures, planner=planner_of(out))
    for recipe in all_recipes(asked, out, pictures):
        for earlier in recipe.before:
            stored = RunsFolder(out).weights(earlier)
            for key, tensor in workshop.trained(earlier).state_dict().items():
                assert torch.equal(tensor, stored[key])


def test_no_word_is_refused_late() -> None:
    with pytest.raises(InputError, match="There is no preset"):
        asked_for(["all"], preset="large")


def test_ray_ends_in_the_same_bits(
    few: Reproduction, begun: Path, whole: tuple[Path, Results]
) -> None:
    pytest.importorskip("ray", reason="Ray is an extra, and large: pip install 'eslkit[ray]'")
    from eslkit_tsdn.tables.rays import carry_out_by_ray

    console = Console(file=StringIO())
    reproduce(
        few, out=begun, processes=2, command="test", console=console, through=carry_out_by_ray
    )
    for path in (begun / "runs").glob("*/weights.safetensors"):
        assert path.read_bytes() == (whole[0] / path.relative_to(begun)).read_bytes()


def test_ray_that_is_not_installed_is_told(
    few: Reproduction, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eslkit_tsdn.tables.rays import carry_out_by_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'eslkit\[ray\]'"):
        reproduce(
            few,
            out=begun,
            command="test",
            console=Console(file=StringIO()),
            through=carry_out_by_ray,
        )
