from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from eslkit.driver import Event, walk
from eslkit.errors import ResizeError, StoreError, TrainingError
from eslkit.plan import Step, fingerprint
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


class Told(nn.Module):
    """Counts its updates in a state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.updates = 0

    def get_extra_state(self) -> object:
        return {"updates": self.updates}

    def set_extra_state(self, state: object) -> None:
        assert isinstance(state, dict)
        self.updates = state["updates"]


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("folder", [False, True])
def test_state_that_is_no_tensor_goes_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, folder: bool, counts: bool
) -> None:
    class Counting(Loop):
        def fit(self, model: nn.Module, step: StepContext) -> Mapping[str, float]:
            model.norm.told.updates += counts
            return super().fit(model, step)

    def model(seed: int) -> Small:
        made = small_model(seed)
        made.norm.told = Told()
        return made

    def stopping(network: nn.Module, step: Step) -> nn.Module:
        if step.name == "CSL2":
            raise ResizeError("stopped here")
        return resized(network, step)

    def resized(network: nn.Module, step: Step) -> nn.Module:
        made = surgery(network, step)
        made.norm.told = Told()
        made.norm.told.set_extra_state(network.norm.told.get_extra_state())
        return made

    plan = small_plan().model_copy(update={"fingerprint": fingerprint(model(0))})
    store = RunStore(tmp_path) if folder else None
    how = {"trainer": as_trainer(Counting()), "store": store}
    with caplog.at_level(logging.WARNING, "eslkit"):
        if folder:
            with pytest.raises(ResizeError, match="stopped here"):
                walk(model(0), plan, surgery=stopping, **how)
        network, records = walk(model(0), plan, surgery=resized, **how)
    assert len(records) == 3
    assert network.norm.told.updates == counts * (1 if folder else 3)
    assert ("'norm.told._extra_state'" in caplog.text) == (folder and counts)


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


def test_the_reason_of_a_failed_step_does_not_name_the_step_again(tmp_path: Path) -> None:
    def fit(model: nn.Module, step: StepContext) -> dict[str, float]:
        return {"loss": float("nan")}

    with pytest.raises(TrainingError, match=r"Step EL \(1 of 3\): metric 'loss' is nan"):
        run(tmp_path, fit)
    assert RunStore(tmp_path).manifest().steps[0].reason.startswith("metric 'loss' is nan")


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
