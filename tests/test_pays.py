"""The study of when Expand-Shrink-Learning pays: its page says what its records say."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import fields
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

import eslkit
from benchmarks.pays.catalogue import PRESET
from benchmarks.pays.page import PAGES, filled
from benchmarks.pays.pools import Pool
from benchmarks.pays.progress import Progress
from benchmarks.pays.study import PARTS, known_data, read, runs_of
from benchmarks.pays.tasks import Task
from benchmarks.pays.ways import Outcome, Way, carry_out, counts_of
from eslkit.trainer import StepContext
from eslkit_tsdn.models import UNet

COUNTS = ("task", "size", "way", "budget", "seed", "data")


def test_records_are_known_by_what_they_are() -> None:
    for identity, record in read().items():
        told = json.dumps({name: record[name] for name in COUNTS}, sort_keys=True)
        assert hashlib.sha256(told.encode()).hexdigest()[:12] == identity
        assert {field.name for field in fields(Way)} >= record["way"].keys()


def test_every_record_belongs_to_a_part_and_none_cost_more_than_its_budget() -> None:
    meant = {run.id for part in PARTS for run in runs_of(part, known_data())}
    for identity, record in read().items():
        assert identity in meant, record["name"]
        assert record["cost"] <= record["budget"] + 1e-6


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_pages_have_the_tables_of_the_records(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "<!-- table: " in text
    assert filled(text) == text, "run: python -m benchmarks.pays write"


@pytest.mark.parametrize("budget", [50, 1000, 64000])
def test_the_preset_that_is_measured_is_the_librarys(budget: int) -> None:
    way, x = PRESET["thrifty"], torch.zeros(1, 4, 8, 8)
    plan = eslkit.schedule(UNet((2, 3)), recipe="thrifty", budget=budget, example_inputs=x).plan
    assert way.walk is not None
    costs = [plan.update_macs(step) / plan.base_macs for step in plan.steps]
    counts = counts_of(way.spread, costs, budget)
    again = eslkit.schedule(
        UNet((2, 3)),
        **way.walk,
        scale_rates=way.by_width,
        iterations=counts,
        example_inputs=x,
    ).plan
    assert again == plan


def test_linear_expansion_that_is_measured_is_the_librarys_recipe() -> None:
    way, x = PRESET["linear"], torch.zeros(1, 4, 8, 8)
    plan = eslkit.schedule(UNet((2, 3)), recipe="linear", budget=60, example_inputs=x).plan
    assert way.walk is not None
    again = eslkit.schedule(UNet((2, 3)), **way.walk, iterations=60, example_inputs=x).plan
    free = {"scale_rates": False, "granularity": again.granularity}
    assert again == plan.model_copy(update=free)
    asked = StepContext(plan.steps[0], 1, None, 0, plan)
    control = StepContext(again.steps[0], 1, None, 0, again)
    for done in range(60):
        assert Way().lr * asked.rate(done) == pytest.approx(way.lr * control.rate(done))


def a_task(batches: list[int], *, most: float = math.inf) -> Task:
    """A small one that costs milliseconds.

    Args:
        batches: is told of each batch.
        most: the machine goes down before the next one.
    """

    class Drawn:
        def batch(self, index: int, *, size: int, seed: int) -> tuple[torch.Tensor, ...]:
            if len(batches) >= most:
                raise KeyboardInterrupt("down")
            batches.append(index)
            drawn = np.random.default_rng((seed, index)).normal(size=(2, size, 1, 8, 8))
            return tuple(torch.from_numpy(drawn).half())

    def score(network: nn.Module) -> dict[str, float]:
        return {"figure": float(sum(p.detach().double().sum() for p in network.parameters()))}

    return Task(
        name="drawn",
        sizes={"2-3": (2, 3)},
        build=lambda widths: UNet(widths, in_channels=1, out_channels=1),
        example=torch.zeros(1, 1, 8, 8),
        batch_size=2,
        pool=cast("Pool", Drawn()),
        loss=nn.functional.l1_loss,
        agree=nn.functional.l1_loss,
        validate=score,
        test=score,
        measure="figure",
    )


WAYS = {
    "restarts": Way(restarts=2),
    "averaged": Way(average=0.9),
    "distillation": Way(distil=True, by_width=True),
    "walk": Way(walk={"width": 1.5, "depth": 0, "granularity": "direct"}, start=0.2),
    "linear": PRESET["linear"],
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_an_interrupted_run_ends_with_the_same_numbers(way: Way, tmp_path: Path) -> None:
    def carried_out(folder: str, batches: list[int], most: float = math.inf) -> Outcome:
        task, progress = a_task(batches, most=most), Progress(tmp_path / folder, every=0)
        return carry_out(way, task, "2-3", budget=36, seed=3, progress=progress)

    needed: list[int] = []
    whole = carried_out("whole", needed)
    assert len(needed) == whole.iterations
    made = 0
    for most in (2, len(needed) // 3):
        tried: list[int] = []
        with pytest.raises(KeyboardInterrupt, match="down"):
            carried_out("stopped", tried, most)
        assert len(tried) == most
        made += most
    again = carried_out("stopped", rest := [])
    assert len(rest) == len(needed) - made
    assert (again.steps, again.cost) == (whole.steps, whole.cost)
    for mine, its in zip(again.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(mine, its)
