from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import eslkit
from eslkit.arguments import load_model, parse_shape, parse_step, parse_table
from eslkit.cli import app
from eslkit.driver import walk
from eslkit.errors import InputError
from eslkit.plan import Plan
from eslkit.store import RunStore
from eslkit.trainer import as_trainer
from tests.eslkit.small_walk import Loop, small_model, small_plan, surgery
from tests.eslkit.test_schedule import UNet

MODEL = "tests.eslkit.test_schedule:UNet"
ready = UNet()


def large() -> UNet:
    return UNet(6, 8)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """What is said of arguments that cannot be used: one line, exit code 2, no traceback."""
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("eslkit: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def run(tmp_path: Path) -> Path:
    trainer = as_trainer(Loop())
    store = RunStore(tmp_path / "run")
    walk(small_model(), small_plan(), surgery=surgery, trainer=trainer, store=store)
    return tmp_path / "run"


def test_inspect_shows_groups_and_costs() -> None:
    result = call("inspect", MODEL, "--input", "1,1,16,16")
    assert result.exit_code == 0, result.output
    assert "enter" in result.stdout
    count = sum(p.numel() for p in UNet().parameters())
    assert f"{count:,} parameters" in result.stdout


def test_plan_prints_draws_and_writes(tmp_path: Path) -> None:
    svg, out_json, out_yaml = (tmp_path / name for name in ("a.svg", "a.json", "a.yaml"))
    result = call(
        *("plan", MODEL, "-i", "1,1,16,16", "--iterations", 5, "--seed", 3),
        *("--draw", svg, "--json", out_json, "--yaml", out_yaml),
    )
    assert result.exit_code == 0, result.output
    assert "EL" in result.stdout
    plan = Plan.from_json(out_json.read_text())
    assert plan == Plan.from_yaml(out_yaml.read_text())
    assert plan.steps[0].iterations == 5
    assert svg.read_text().startswith("<svg")


def test_plan_to_standard_output_is_a_plan_alone() -> None:
    result = call("plan", MODEL, "-i", "1,1,16,16", "--depth", 0, "--json", "-")
    assert json.loads(result.stdout)["depth"] == 0


def test_plan_takes_tables_steps_and_budgets() -> None:
    shape = ("-i", "1,1,16,16", "--depth", 0, "--json", "-")
    result = call(
        "plan", MODEL, *shape, "--width", "*=1.5", "--width", "level 1=3", "--budget", 900
    )
    assert result.exit_code == 0, result.output
    plan = Plan.from_json(result.stdout)
    assert plan.steps[0].widths == {"enter": 3, "low.0": 12, "low.2": 12, "up": 6}
    assert all(step.iterations for step in plan.steps)
    result = call(
        *("plan", MODEL, *shape, "--step", "enter,up", "--step", "low.0=6,low.2=0.75"),
        *("--step", "channels", "--iterations", "EL=7", "--iterations", "CSL*=9"),
    )
    plan = Plan.from_json(result.stdout)
    assert [step.widths for step in plan.steps[1:]] == [
        {"enter": 2, "up": 2},
        {"low.0": 6, "low.2": 6},
        {"low.0": 4, "low.2": 4},
    ]
    assert [step.iterations for step in plan.steps] == [7, 9, 9, 9]
    share = ("--budget", 900, "--share", "last=70%", "--share", "EL=2")
    plan = Plan.from_json(call("plan", MODEL, *shape, *share).stdout)
    shares = {"last": "70%", "EL": 2}
    x = torch.zeros(1, 1, 16, 16)
    expected = eslkit.schedule(UNet(), depth=0, budget=900, shares=shares, example_inputs=x)
    assert [s.iterations for s in plan.steps] == [s.iterations for s in expected.steps]
    assert "--share 'last=%': expected NAME=NUMBER" in refused(
        "plan", MODEL, *shape, "--share", "last=%"
    )


def test_plan_knows_the_papers_rows_and_large_models() -> None:
    shape = ("-i", "1,1,16,16")
    result = call("plan", MODEL, *shape, "--paper", "ESL5")
    assert "2 trainings" in result.stdout
    assert "MiB training" in result.stdout
    result = call("plan", MODEL, *shape, "--source", "tests.eslkit.test_cli:large")
    assert "the large model as it is" in result.stdout
    assert "leave --depth, --paper out" in refused(
        "plan", MODEL, "--source", MODEL, "--depth", 1, "--paper", "ESL1"
    )


@pytest.mark.parametrize(
    "texts, expected", [(["2"], 2), (["a=1"], {"a": 1}), (["a.*=1", "b=3"], {"a.*": 1, "b": 3})]
)
def test_tables_are_read(texts: list[str], expected: object) -> None:
    assert parse_table(texts, option="--x", kind=int) == expected


@pytest.mark.parametrize("texts", [["a"], ["a=b"], ["=2"], ["1", "2"], ["a=1", "2"], [""]])
def test_what_is_no_table_is_refused(texts: list[str]) -> None:
    with pytest.raises(InputError, match=r"--x '.*': expected a number, or NAME=NUMBER"):
        parse_table(texts, option="--x", kind=int)
    with pytest.raises(InputError, match=r"--x '.*': expected NAME=NUMBER"):
        parse_table(["2"], option="--x", kind=int, plain=False)


def test_steps_are_read() -> None:
    assert parse_step("channels") == "channels"
    assert parse_step("enter, down.*") == ["enter", "down.*"]
    assert parse_step("enter=12,down=0.75") == {"enter": 12, "down": 0.75}
    for text in ("enter=1,down", "enter=x", "=3"):
        with pytest.raises(InputError, match=r"expected names .* or a width or multiplier"):
            parse_step(text)


def test_status_shows_states_and_metrics(run: Path) -> None:
    result = call("status", run)
    assert result.exit_code == 0, result.output
    assert "finished, 3 steps" in result.stdout
    assert "loss" in result.stdout
    store = RunStore(run)
    store.rewind("CSL1")
    store.begin(small_plan().steps[1], num_bytes=1)
    result = call("status", run)
    assert "1 of 3 steps finished, not running; start it again to go on" in result.stdout
    text = " ".join(result.stdout.split())
    assert "CSL1: interrupted (the process is gone); no checkpoint inside the step" in text
    assert f"torch: {torch.__version__}" in text
    (store.trainer_folder(small_plan().steps[1]) / "last.pt").write_bytes(b"x")
    assert "checkpoints: 1 file, 0.0 MiB, 20" in " ".join(call("status", run).stdout.split())


def test_report_writes_a_page(run: Path, tmp_path: Path) -> None:
    assert call("report", run).stdout.strip() == str(run / "report.html")
    assert "<!doctype html>" in (run / "report.html").read_text()
    assert call("report", run, "--out", tmp_path / "x.html").exit_code == 0
    assert (tmp_path / "x.html").exists()


def test_rewind_says_where_the_files_are(run: Path) -> None:
    result = call("rewind", run, "CSL2")
    assert "train from CSL2 on. The old files are in" in result.stdout
    assert "has no step 'CSL7'" in refused("rewind", run, "CSL7")


def test_a_damaged_run_is_one_sentence(run: Path) -> None:
    path = run / "steps" / "01-EL" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    for command in ("status", "report"):
        assert "was cut short: 100 of" in refused(command, run)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (("inspect", "nothing.here:Model"), "nothing.here cannot be imported"),
        (("inspect", "eslkit"), "'eslkit' names no model; expected package.module:factory"),
        (("inspect", "eslkit.plan:Nothing"), "eslkit.plan has no 'Nothing'"),
        (("inspect", "eslkit.plan:PLAN_VERSION"), "gives a int, expected a torch.nn.Module"),
        (("inspect", "torch.nn:Linear"), "could not be called without arguments (TypeError"),
        (("inspect", MODEL, "-i", "1,a"), "--input '1,a' is no shape"),
        (("plan", MODEL, "-i", "1,3,16,16"), "did not run on example inputs"),
        (("plan", MODEL, "--granularity", "coarse"), "granularity='coarse' must be"),
        (("plan", MODEL, "--init", "best"), "init='best' is no policy"),
        (("status", "/nowhere"), "/nowhere holds no run: manifest.json is missing"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(arguments: tuple[str, ...], expected: str) -> None:
    assert expected in refused(*arguments)


def test_models_are_classes_functions_or_instances() -> None:
    assert isinstance(load_model(MODEL), UNet)
    assert isinstance(load_model("tests.eslkit.small_walk:small_model"), nn.Module)
    assert isinstance(load_model("tests.eslkit.test_cli:ready"), nn.Module)


def test_shapes_are_read() -> None:
    assert parse_shape("1,4,64,64") == (1, 4, 64, 64)
    assert parse_shape("1x4x8") == (1, 4, 8)
    assert torch.zeros(parse_shape("2")).shape == (2,)
    for text in ("", "1,,2", "1,-4", "0", "a"):
        with pytest.raises(InputError, match="is no shape; expected positive whole numbers"):
            parse_shape(text)
