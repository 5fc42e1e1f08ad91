"""The study of when Expand-Shrink-Learning pays: its page says what its records say."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import eslkit
from benchmarks.pays.catalogue import PRESET
from benchmarks.pays.page import PAGES, filled
from benchmarks.pays.study import PARTS, known_data, read, runs_of
from benchmarks.pays.ways import Way, counts_of
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
