"""Schedules trained by `fit`, and stages trained one after the other."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from eslkit.errors import StoreError
from eslkit.store import RunStore
from eslkit.trainer import StepContext
from eslkit_tsdn.budget import Budget, Machine
from eslkit_tsdn.data.crops import BatchSource
from eslkit_tsdn.esl import FitTrainer, plan_esl, train_esl, train_once
from eslkit_tsdn.fitting import fit
from eslkit_tsdn.models import TSDN
from tests.eslkit_tsdn.fakes import drawn_photos

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

BUDGET = Budget(iterations=3, lr=1e-2)
CPU = Machine(device="cpu")


def source(seed: int = 0) -> BatchSource:
    return BatchSource(drawn_photos(2), batch_size=2, crop=8, gain=4.0, seed=seed)


def network(stages: int = 2) -> TSDN:
    torch.manual_seed(3)
    return TSDN((2, 3), stages)


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in one.state_dict().items())


def bias(model: nn.Module) -> dict[str, float]:
    return {"bias": model.stages[0].out.bias[0].item()}


def test_trained_once_is_fit_in_a_run_s_folder(tmp_path):
    expected = network()
    losses = fit(expected, source(), budget=BUDGET, machine=CPU)
    go = partial(train_once, network(), source(), budget=BUDGET, machine=CPU, validate=bias)
    result = go(out=tmp_path / "run")
    assert same_bits(result.model, expected)
    (record,) = result.records
    assert record.metrics == {**losses, **bias(expected)}
    assert same_bits(go(out=tmp_path / "run").model, expected)  # read
    with pytest.raises(StoreError, match="iterations"):
        go(out=tmp_path / "run", budget=Budget(iterations=4, lr=1e-2))


def test_the_whole_schedule_ends_in_the_small_network_again(tmp_path):
    start, seen, told = network(1), list[int](), list[tuple[str, int]]()

    def batches(step):
        seen.append(step.index)
        return source(step.index)

    trainer = FitTrainer(
        batches,
        BUDGET,
        machine=CPU,
        listener=lambda step, done, loss: told.append((step.name, done)),
    )
    result = train_esl(start, source(), budget=BUDGET, out=tmp_path / "run", trainer=trainer)
    assert [record.name for record in result.records] == "EL CSL1 CSL2 CSL3 LSL1 LSL2".split()
    assert seen == [1, 2, 3, 4, 5, 6]
    assert told[-3:] == [("LSL2", 1), ("LSL2", 2), ("LSL2", 3)]
    shapes = {key: value.shape for key, value in start.state_dict().items()}
    assert {key: value.shape for key, value in result.model.state_dict().items()} == shapes
    assert same_bits(start, network(1))

    def stop(step, done, loss):
        if (step.name, done) == ("CSL3", 2):
            raise KeyboardInterrupt("now")

    parts = partial(train_esl, network(1), source(), budget=BUDGET, out=tmp_path / "parts")
    make = partial(FitTrainer, batches, BUDGET, machine=CPU, checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt, match="now"):
        parts(trainer=make(listener=stop))
    assert RunStore(tmp_path / "parts").num_finished() == 3
    told.clear()
    again = parts(trainer=make(listener=trainer.listener))
    assert same_bits(again.model, result.model)
    assert told[0] == ("CSL3", 2)


def test_a_row_of_the_paper_s_tables():
    result = train_esl(network(1), source(), budget=BUDGET, machine=CPU, row="ESL5", seed=1)
    first, _ = result.records
    assert first.name == "EL"


def test_layers_that_are_larger_inside_learn_at_the_lower_rate_that_is_asked_for():
    go = partial(train_esl, network(1), source(), machine=CPU, width=1, depth=0, linear=4)
    asked = go(budget=BUDGET, scale_rates=True).model
    half = go(budget=BUDGET.model_copy(update={"lr": BUDGET.lr / 2})).model
    assert same_bits(asked, half)
    assert not same_bits(asked, go(budget=BUDGET).model)


def test_a_teacher_and_a_falling_rate_are_those_of_a_plain_loop():
    """Two steps by hand: L1 against the truth and half as much against the step before."""
    start, data, rates = network(), source(), list[float]()
    options = {"granularity": "one-shot", "depth": 0, "teach": 0.5, "rates": "once"}
    result = train_esl(start, data, budget=BUDGET, machine=CPU, **options)

    def by_hand(model: nn.Module, step: StepContext) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=BUDGET.lr)
        model.train()
        for k in range(BUDGET.iterations):
            done = ((step.index - 1) * BUDGET.iterations + k) / (2 * BUDGET.iterations)
            [group] = optimizer.param_groups
            group["lr"] = BUDGET.lr * (1 if done < 1 / 2 else 0.5 if done < 5 / 6 else 0.1)
            rates.append(group["lr"])
            batch = data.batch(k)
            images = model(batch.noisy)
            loss = sum((image - batch.clean).abs().mean() for image in images)
            if step.index > 1:
                assert step.teacher is not None
                told = step.teacher(batch.noisy)
                loss = loss + 0.5 * sum((image - told).abs().mean() for image in images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    plan = plan_esl(start, data, budget=BUDGET, **options)
    expected = plan.run(by_hand)
    assert rates[:3] == [1e-2] * 3
    assert rates[3:] == pytest.approx([5e-3, 5e-3, 1e-3])
    theirs = expected.model.state_dict()
    for key, value in result.model.state_dict().items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=1e-6)
    plain = train_esl(start, data, budget=BUDGET, machine=CPU, **{**options, "teach": 0.0})
    assert not same_bits(plain.model, result.model)
