from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from eslkit import files
from eslkit.driver import Event, walk
from eslkit.errors import ResizeError, StoreError, TrainingError
from eslkit.plan import Step
from eslkit.store import RunStore
from eslkit.trainer import StepContext, as_trainer
from tests.eslkit.small_walk import (
    WIDTHS,
    Loop,
    Small,
    final_bytes,
    run,
    small_model,
    small_plan,
    surgery,
)


def failing_at(name: str, error: BaseException) -> Loop:
    class Failing(Loop):
        def fit(self, model: nn.Module, step: StepContext) -> Mapping[str, float]:
            metrics = super().fit(model, step)
            if step.name == name:
                raise error
            return metrics

    return Failing()


def test_a_run_ends_in_the_small_model_and_leaves_the_given_one_alone(tmp_path: Path) -> None:
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    network, records = run(tmp_path / "run", model=model)
    assert isinstance(network, Small)
    assert network.state_dict().keys() == before.keys()
    assert [tuple(v.shape) for v in network.state_dict().values()] == [
        tuple(v.shape) for v in before.values()
    ]
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
    assert [record.name for record in records] == ["EL", "CSL1", "CSL2"]
    assert [record.seed for record in records] == [1, 2, 3]
    assert all(record.versions["torch"] == torch.__version__ for record in records)
    assert all("loss" in record.metrics for record in records)


def test_in_memory_and_in_a_folder_end_in_the_same_bits(tmp_path: Path) -> None:
    inside, _ = run(tmp_path / "run")
    without, _ = run(None)
    stored = RunStore(tmp_path / "run").weights(3)
    for key, value in without.state_dict().items():
        assert torch.equal(value, inside.state_dict()[key])
        assert torch.equal(value, stored[key])


@pytest.mark.parametrize("name", ["EL", "CSL1", "CSL2"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), ValueError("no data")])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    tmp_path: Path, name: str, error: BaseException
) -> None:
    run(tmp_path / "whole")
    raised = TrainingError if isinstance(error, Exception) else type(error)
    with pytest.raises(raised, match=r"^$|^1$|raised ValueError: no data"):
        run(tmp_path / "parts", failing_at(name, error))
    # The model may come back with other values: the run goes on from those that it started from.
    again = Loop()
    run(tmp_path / "parts", again, model=small_model(seed=9))
    assert again.fitted == ["EL", "CSL1", "CSL2"][["EL", "CSL1", "CSL2"].index(name) :]
    assert final_bytes(tmp_path / "parts") == final_bytes(tmp_path / "whole")


def test_a_finished_run_answers_without_training(tmp_path: Path) -> None:
    first, records = run(tmp_path)
    loop = Loop()
    second, again = run(tmp_path, loop)
    assert loop.fitted == []
    assert again == records
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])


def test_a_finished_run_that_ends_in_another_form_is_rebuilt(tmp_path: Path) -> None:
    plan = small_plan()
    plan = plan.model_copy(update={"steps": plan.steps[:2]})
    first, records = run(tmp_path, plan=plan)
    second, again = run(tmp_path, plan=plan)
    assert again == records
    assert second.get_parameter("first.weight").shape == (WIDTHS[1], 3)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])


def test_a_finished_run_needs_no_surgery(tmp_path: Path) -> None:
    run(tmp_path)
    events: list[Event] = []

    def refuse(network: nn.Module, step: object) -> nn.Module:
        raise AssertionError(step)

    network, _ = walk(
        small_model(1),
        small_plan(),
        surgery=refuse,
        trainer=as_trainer(Loop()),
        store=RunStore(tmp_path),
        callbacks=[events.append],
    )
    assert [event.kind for event in events] == ["resumed"] * 3
    stored = RunStore(tmp_path).weights(3)
    assert all(torch.equal(value, stored[key]) for key, value in network.state_dict().items())


def test_what_a_trainer_leaves_on_a_network_goes_no_further() -> None:
    def untidy(model: nn.Module, step: StepContext) -> dict[str, float]:
        assert isinstance(model, Small)
        assert not hasattr(model, "leftover")
        assert not model.first._forward_hooks
        assert model.first.weight.requires_grad
        assert model.training
        model.leftover = 1  # type: ignore[assignment]
        model.first.register_forward_hook(lambda *_: None)
        model.requires_grad_(False).eval()
        return {}

    network, _ = run(None, untidy)
    assert not hasattr(network, "leftover")


def test_training_is_seeded_and_the_callers_generators_are_given_back() -> None:
    drawn: list[tuple[float, float, float]] = []

    def draw(model: nn.Module, step: StepContext) -> None:
        drawn.append((random.random(), np.random.rand(), float(torch.rand(()))))  # noqa: NPY002

    states = random.getstate(), torch.get_rng_state()
    run(None, draw)
    torch.manual_seed(123)
    run(None, draw)
    assert drawn[:3] == drawn[3:]
    assert len(set(drawn)) == 3
    torch.set_rng_state(states[1])
    assert random.getstate() == states[0]


def test_the_context_says_which_step_it_is(tmp_path: Path) -> None:
    seen: list[StepContext] = []

    def look(model: nn.Module, step: StepContext) -> None:
        assert step.folder is not None
        assert step.folder.is_dir()
        seen.append(step)

    run(tmp_path, look)
    assert [step.folder for step in seen] == [
        tmp_path / "steps" / name / "trainer" for name in ("01-EL", "02-CSL1", "03-CSL2")
    ]
    assert [(step.seed, step.num_steps, step.index) for step in seen] == [
        (1, 3, 1),
        (2, 3, 2),
        (3, 3, 3),
    ]
    run(None, lambda model, step: seen.append(step))
    assert seen[-1].folder is None


def test_divergence_is_refused_and_finished_steps_stay(tmp_path: Path) -> None:
    def diverge(model: nn.Module, step: StepContext) -> dict[str, float]:
        if step.name == "CSL1":
            with torch.no_grad():
                next(model.parameters())[0] = float("nan")
        return {"loss": 1.0}

    with pytest.raises(TrainingError, match=r"Step CSL1 \(2 of 3\): 'first.weight' holds NaN"):
        run(tmp_path, diverge)
    store = RunStore(tmp_path)
    states = [(entry.name, entry.state) for entry in store.manifest().steps]
    assert states == [("EL", "finished"), ("CSL1", "failed"), ("CSL2", "waiting")]
    assert "holds NaN" in store.manifest().steps[1].reason
    assert store.weights(1)["first.weight"].shape == (WIDTHS[0], 3)
    with pytest.raises(StoreError, match=r"Step CSL1 .* is not finished .it is failed"):
        store.weights(2)
    with pytest.raises(TrainingError, match="metric 'loss' is nan"):
        run(tmp_path, lambda model, step: {"loss": float("nan")})
    run(tmp_path)


def test_infinities_that_were_there_before_are_no_divergence() -> None:
    model = small_model()
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    plan = small_plan()

    def masked(network: nn.Module, step: object) -> nn.Module:
        return small_model_with_mask(model)

    network, _ = walk(model, plan, surgery=masked, trainer=as_trainer(lambda m, s: None))
    assert torch.equal(network.get_buffer("mask"), model.get_buffer("mask"))


def small_model_with_mask(model: nn.Module) -> nn.Module:
    network = small_model()
    network.register_buffer("mask", model.get_buffer("mask").clone())
    return network


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda model: model.register_buffer("extra", torch.zeros(1)), "added 'extra'"),
        (lambda model: delattr(model, "last"), "removed 'last.bias'"),
        (lambda model: setattr(model, "last", nn.Linear(6, 5)), "shape of 'last.bias'"),
    ],
)
def test_a_trainer_must_keep_the_form(change: Callable[[nn.Module], object], match: str) -> None:
    def fit(model: nn.Module, step: StepContext) -> None:
        change(model)

    with pytest.raises(TrainingError, match=match):
        run(None, fit)


def test_callbacks_and_the_log_tell_what_happens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []
    with caplog.at_level(logging.INFO, "eslkit"), pytest.raises(TrainingError, match="gone"):
        run(tmp_path, failing_at("CSL1", OSError("gone")), events=events)
    kinds = [(event.kind, event.step.name) for event in events]
    assert kinds == [("started", "EL"), ("finished", "EL"), ("started", "CSL1"), ("failed", "CSL1")]
    assert events[1].record is not None
    assert "gone" in events[3].reason
    assert "step CSL1 (2 of 3) failed: the trainer raised OSError: gone" in caplog.messages
    events.clear()
    run(tmp_path, events=events)
    assert [event.kind for event in events] == ["resumed", *["started", "finished"] * 2]


def test_a_start_from_other_weights_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        run(tmp_path, failing_at("EL", KeyboardInterrupt()))
    run(tmp_path, model=small_model(seed=3))
    assert any("differ from those that" in message for message in caplog.messages)


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    full = [False]

    def fsync(descriptor: int) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    def fill(model: nn.Module, step: StepContext) -> None:
        full[0] = step.name == "CSL1"

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(StoreError, match=r"No space left to write .*weights\.safetensors"):
        run(tmp_path, fill)
    full[0] = False
    assert not list(tmp_path.rglob("*.part"))
    assert RunStore(tmp_path).num_finished() == 1
    run(tmp_path)
    assert RunStore(tmp_path).num_finished() == 3


def test_too_little_space_is_said_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: usage)
    loop = Loop()
    with pytest.raises(StoreError, match=r"0\.0 KiB free, the weights .* need 0\.\d KiB"):
        run(tmp_path, loop)
    assert loop.fitted == []


@pytest.mark.parametrize(
    "code, match",
    [
        (errno.EACCES, "No permission to write"),
        (errno.EROFS, "mounted read-only"),
        (errno.EIO, "cannot be written"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, match: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreError, match=match):
        run(tmp_path / "run")


def test_a_finished_run_is_answered_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = run(tmp_path)

    def refuse(*_: object, **__: object) -> str:
        raise StoreError("mounted read-only")

    monkeypatch.setattr("eslkit.files.FolderLock.acquire", refuse)
    monkeypatch.setattr("eslkit.store.write_atomically", refuse)
    again, _ = run(tmp_path)
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    with pytest.raises(StoreError, match="another plan"):
        run(tmp_path, plan=small_plan(iterations=77))


def test_a_disk_that_is_full_before_a_step_marks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, num_bytes: int) -> None:
        raise StoreError("The disk is full")

    monkeypatch.setattr("eslkit.store.check_free_space", full)
    events: list[Event] = []
    with pytest.raises(StoreError, match="The disk is full"):
        run(tmp_path, events=events)
    assert [(event.kind, event.reason) for event in events] == [("failed", "The disk is full")]
    assert RunStore(tmp_path).manifest().steps[0].state == "failed"


def test_the_reason_of_a_failed_step_does_not_name_the_step_again(tmp_path: Path) -> None:
    def fit(model: nn.Module, step: StepContext) -> dict[str, float]:
        return {"loss": float("nan")}

    with pytest.raises(TrainingError, match=r"Step EL \(1 of 3\): metric 'loss' is nan"):
        run(tmp_path, fit)
    assert RunStore(tmp_path).manifest().steps[0].reason.startswith("metric 'loss' is nan")


def limited(folder: Path, **how: Any) -> subprocess.CompletedProcess[str]:
    """The small walk in a process that the system keeps from writing as it would."""
    command = [sys.executable, "-m", "tests.eslkit.small_walk", str(folder), "4", "0"]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, **how)


@pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")
def test_the_systems_own_limit_on_files_is_one_sentence(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))

    done = limited(tmp_path, preexec_fn=limit)
    assert done.returncode == 1
    assert "is larger than this process may write" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"
)
def test_a_folder_of_somebody_else_is_one_sentence() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary).chmod(0o755)
        folder = Path(temporary) / "run"
        run(folder)
        store = RunStore(folder)
        store.rewind(store.manifest().steps[-1].name)  # a finished run needs no writing
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        processes = multiprocessing.get_context("forkserver")
        processes.set_forkserver_preload(["tests.eslkit.test_driver"])
        here, there = processes.Pipe()
        child = processes.Process(target=run_as_nobody, args=(folder, there))
        child.start()
        assert here.poll(60)
        assert re.fullmatch(r"StoreError: No permission to write .*\. Grant it, or .*", here.recv())
        child.join()
        assert {path: path.read_bytes() for path in before} == before


def run_as_nobody(folder: Path, answer: Connection) -> None:
    os.seteuid(65534)
    try:
        run(folder)
    except Exception as error:  # noqa: BLE001  told to the other process
        answer.send(f"{type(error).__name__}: {error}")
    else:
        answer.send("it could be written")


def test_a_disk_that_is_really_full_loses_nothing(tmp_path: Path) -> None:
    """A file system of 256 KiB in memory, where the system lets us mount one."""
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path)],
            capture_output=True,
            check=False,
        ).returncode
    ):
        pytest.skip("file systems cannot be mounted here")
    try:
        filler = tmp_path / "filler"

        def fill(model: nn.Module, step: StepContext) -> None:
            if step.name == "CSL1":
                with suppress(OSError), filler.open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))

        with pytest.raises(StoreError, match=r"No space left to write .*CSL1"):
            run(tmp_path / "run", fill)
        filler.unlink()
        assert RunStore(tmp_path / "run").num_finished() == 1
        loop = Loop()
        run(tmp_path / "run", loop)
        assert loop.fitted == ["CSL1", "CSL2"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_surgery_that_fails_marks_the_step(tmp_path: Path) -> None:
    def refuse(network: nn.Module, step: Step) -> nn.Module:
        if step.name == "CSL2":
            raise ResizeError("the network does not go along")
        return surgery(network, step)

    with pytest.raises(ResizeError, match="does not go along"):
        walk(
            small_model(),
            small_plan(),
            surgery=refuse,
            trainer=as_trainer(Loop()),
            store=RunStore(tmp_path),
        )
    entry = RunStore(tmp_path).manifest().steps[2]
    assert (entry.state, entry.reason) == ("failed", "the network does not go along")
    loop = Loop()
    run(tmp_path, loop)
    assert loop.fitted == ["CSL2"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number_marks_the_step(tmp_path: Path, value: float) -> None:
    def diverge(model: nn.Module, step: StepContext) -> dict[str, float]:
        return {"loss": value if step.name == "CSL1" else 1.0}

    with pytest.raises(TrainingError, match=r"Step CSL1 \(2 of 3\): metric 'loss' is -?(nan|inf)"):
        run(tmp_path, diverge)
    states = [(entry.state, entry.reason[:24]) for entry in RunStore(tmp_path).manifest().steps]
    assert states[0] == ("finished", "")
    assert states[1][0] == "failed"
    assert "metric 'loss' is" in RunStore(tmp_path).manifest().steps[1].reason


def test_a_file_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(StoreError, match="a file is in the way"):
        run(tmp_path / "run")
