from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from eslkit.driver import walk
from eslkit.errors import StoreError
from eslkit.plan import Plan
from eslkit.store import RunStore, tensors_of
from eslkit.trainer import as_trainer
from tests.eslkit.small_walk import Loop, Small, small_model, small_plan, surgery


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "run"
    run(folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run: a store may be moved and copied whole."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def run(folder: Path, *, plan: Plan | None = None, model: nn.Module | None = None) -> Loop:
    loop = Loop()
    trainer = as_trainer(loop)
    walk(
        model or small_model(),
        plan or small_plan(),
        surgery=surgery,
        trainer=trainer,
        store=RunStore(folder),
    )
    return loop


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_copied_store_is_as_good(folder: Path) -> None:
    RunStore(folder).verify()
    assert run(folder).fitted == []


def test_it_holds_what_it_was_given(folder: Path) -> None:
    store = RunStore(folder)
    assert store.plan() == small_plan()
    assert store.num_finished() == 3
    assert [record.name for record in store.records()] == ["EL", "CSL1", "CSL2"]
    start = small_model().state_dict()
    assert all(torch.equal(value, start[key]) for key, value in store.start_weights().items())
    Small().load_state_dict(store.weights(3), strict=True)
    assert not store.is_running()


WEIGHTS = "steps/02-CSL1/weights.safetensors"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def better_metric(path: Path) -> None:
    text = path.read_text()
    path.write_text(text.replace('"interrupted"', '"finished"').replace("1", "2", 1))


@pytest.mark.parametrize(
    "name, damage, match",
    [
        (WEIGHTS, cut, r"was cut short: \d+ of \d+ bytes.*eslkit rewind .*run CSL1`; nothing"),
        (WEIGHTS, flip, r"was changed since eslkit wrote it.*eslkit rewind"),
        (WEIGHTS, Path.unlink, r"is missing; the folder was perhaps copied in part"),
        ("steps/03-CSL2/record.json", flip, r"03-CSL2/record.json was changed.*CSL2`"),
        ("start.safetensors", cut, r"start.safetensors was cut short.*start in another folder"),
        ("plan.json", flip, r"plan.json was changed since"),
        ("manifest.json", cut, r"manifest.json was cut short"),
        ("manifest.json", better_metric, r"manifest.json was (changed|cut short)"),
        ("manifest.json", Path.unlink, r"manifest.json is missing, though there are trained"),
        ("manifest.json", lambda p: p.write_bytes(b"\xff\xfe"), r"cannot be read"),
    ],
)
def test_a_damaged_store_is_refused_and_left_as_it_is(
    folder: Path, name: str, damage: Callable[[Path], object], match: str
) -> None:
    damage(folder / name)
    before = snapshot(folder)
    with pytest.raises(StoreError, match=match):
        run(folder)
    assert snapshot(folder) == before


def test_an_edited_manifest_does_not_pass_for_whole(folder: Path) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    data["steps"] = data["steps"][:2]
    path.write_text(json.dumps(data))
    with pytest.raises(StoreError, match=r"manifest\.json was changed since eslkit wrote it"):
        RunStore(folder).manifest()


def test_a_file_where_a_folder_was_meant_holds_no_run(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no run")
    with pytest.raises(StoreError, match=r"notes\.txt holds no run"):
        RunStore(path).manifest()


def test_another_plan_or_model_is_refused(folder: Path) -> None:
    with pytest.raises(StoreError, match=r"step EL: iterations is \d+ there and 5 here; step"):
        run(folder, plan=small_plan(iterations=5))
    shorter = small_plan().model_copy(update={"steps": small_plan().steps[:2]})
    with pytest.raises(StoreError, match=r"steps are \['EL', .*\] there and \['EL', 'CSL1'\] here"):
        run(folder, plan=shorter)
    wider = small_plan().model_copy(update={"width": 3.0})
    with pytest.raises(StoreError, match=r"another plan: width is 2.0 there and 3.0 here"):
        run(folder, plan=wider)
    other = small_plan().model_copy(update={"fingerprint": "f" * 64})
    with pytest.raises(StoreError, match=r"was made for another model \(small_walk.Small, param"):
        run(folder, plan=other)


def test_a_plan_that_is_only_drawn_otherwise_is_the_same(folder: Path) -> None:
    plan = small_plan()
    told = {"picture": (), "training_bytes": 5, "peak_activation_bytes": 6}
    steps = tuple(step.model_copy(update=told) for step in plan.steps)
    other = plan.model_copy(update={"steps": steps, "base_training_bytes": 7})
    assert run(folder, plan=other).fitted == []


def test_rewind_moves_steps_aside_and_they_are_trained_again(folder: Path) -> None:
    before = snapshot(folder)
    flip(folder / WEIGHTS)
    aside = RunStore(folder).rewind("CSL1")
    assert sorted(path.name for path in aside.iterdir()) == ["02-CSL1", "03-CSL2"]
    assert RunStore(folder).num_finished() == 1
    assert run(folder).fitted == ["CSL1", "CSL2"]
    after = snapshot(folder)
    assert after[WEIGHTS] == before[WEIGHTS]
    with pytest.raises(StoreError, match=r"has no step 'CSL9'; its steps are \['EL'"):
        RunStore(folder).rewind("CSL9")


def test_what_was_left_before_the_first_manifest_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("half a pl")
    (tmp_path / "manifest.json.part").write_text("{")
    (tmp_path / "notes.txt").write_text("mine")
    run(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds no run: manifest.json is missing"):
        RunStore(tmp_path).records()


def test_tied_weights_are_stored_for_every_key(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    tensors = tensors_of(model)
    assert tensors["0.weight"].data_ptr() != tensors["1.weight"].data_ptr()


def test_state_that_is_no_tensor_is_refused() -> None:
    class Odd(nn.Module):
        def get_extra_state(self) -> object:
            return {"a": 1}

    with pytest.raises(StoreError, match="'_extra_state' is a dict; only tensors can be stored"):
        tensors_of(Odd())


def test_a_rank_that_waits_in_vain_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"Waited 0 s for .* to be opened, but rank 0 is not"):
        RunStore(tmp_path).join(small_plan(), patience=0)
