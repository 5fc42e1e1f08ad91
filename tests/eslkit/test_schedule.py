from __future__ import annotations

import multiprocessing
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eslkit.errors import InputError, PlanError, StoreError
from eslkit.plan import Plan
from eslkit.schedule import Schedule, schedule
from eslkit.trainer import StepContext

SIDE = 16


class UNet(nn.Module):
    """Two levels, BatchNorm, a transposed convolution and a concat skip."""

    def __init__(self, first: int = 2, second: int = 4) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, first, 3, padding=1)
        self.norm = nn.BatchNorm2d(first)
        self.low = nn.Sequential(
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(second, second, 3, padding=1),
            nn.ReLU(),
        )
        self.up = nn.ConvTranspose2d(second, first, 2, stride=2)
        self.leave = nn.Conv2d(2 * first, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.norm(self.enter(x)))
        return self.leave(torch.cat([self.up(self.low(F.max_pool2d(skip, 2))), skip], dim=1))


def small_schedule() -> Schedule:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = UNet()
    return schedule(model, example_inputs=(torch.zeros(1, 1, SIDE, SIDE),), iterations=3)


@pytest.fixture(scope="module")
def planned() -> Schedule:
    return small_schedule()


def train(model: nn.Module, step: StepContext) -> Mapping[str, float]:
    """A plain loop, as in the README."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss = torch.zeros(())
    for _ in range(step.iterations or 1):
        clean = torch.rand(2, 1, SIDE, SIDE)
        loss = (model(clean + 0.1 * torch.randn_like(clean)) - clean).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"loss": float(loss.detach())}


def final_bytes(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("steps/*/weights.safetensors"))]


def test_a_run_gives_the_users_own_model_back(planned: Schedule, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in planned.model.state_dict().items()}
    result = planned.run(train, out=tmp_path)
    assert type(result.model) is UNet
    assert result.model is not planned.model
    UNet().load_state_dict(result.model.state_dict(), strict=True)
    assert all(torch.equal(planned.model.state_dict()[key], before[key]) for key in before)
    assert [record.name for record in result.records] == [step.name for step in planned.steps]
    assert [record.parameters for record in result.records] == [s.parameters for s in planned.steps]
    assert "loss=" in repr(result)
    in_memory = planned.run(train)
    for key, value in in_memory.model.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[key])


def test_the_networks_that_are_trained_are_those_of_the_plan(planned: Schedule) -> None:
    counts: list[int] = []

    def count(model: nn.Module, step: StepContext) -> None:
        counts.append(sum(p.numel() for p in model.parameters()))

    planned.run(count)
    assert counts == [step.parameters for step in planned.steps]
    assert counts[-1] == planned.plan.base_parameters


def test_the_same_schedule_twice_is_the_same(planned: Schedule) -> None:
    assert small_schedule().plan == planned.plan


def test_a_plan_from_disk_runs_for_its_model_and_no_other(planned: Schedule) -> None:
    plan = Plan.from_yaml(planned.plan.to_yaml())
    again = Schedule(planned.model, plan, planned.example_inputs).run(train)
    for key, value in planned.run(train).model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])
    with pytest.raises(PlanError, match=r"made for another model: .*UNet with parameters of other"):
        Schedule(UNet(3), plan)


def test_it_prints_every_step_with_its_figures(planned: Schedule) -> None:
    text = str(planned)
    for step in planned.steps:
        assert step.name in text
        assert f"{step.parameters:,}" in text
    total = sum(planned.plan.cost(step) for step in planned.steps)
    assert f"{total:.2f}" in text
    assert max(map(len, text.splitlines())) <= 120
    assert repr(planned) == f"Schedule(UNet, {len(planned.steps)} steps)"


def test_it_draws_itself(planned: Schedule, tmp_path: Path) -> None:
    planned.draw(tmp_path / "schedule.svg")
    assert (tmp_path / "schedule.svg").read_text().startswith("<svg")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="a file is in the way"):
        planned.draw(tmp_path / "file" / "schedule.svg")


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"The model is a type, expected a torch\.nn\.Module"):
        schedule(UNet)  # type: ignore[arg-type]


def test_two_policies_of_one_name_are_refused() -> None:
    policies = [lambda *_: None, lambda *_: None]
    with pytest.raises(InputError, match=r"two policies of one name, '<lambda>'"):
        schedule(UNet(), init=policies[0], expand_init=policies[1])  # type: ignore[arg-type]


def run_in_child(folder: str) -> None:
    torch.set_num_threads(1)
    small_schedule().run(train, out=folder)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_in_the_same_bits(
    planned: Schedule, tmp_path: Path
) -> None:
    planned.run(train, out=tmp_path / "whole")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.eslkit.test_schedule"])
    draw = random.Random(2)
    for repeat in range(3):
        folder = tmp_path / str(repeat)
        for _ in range(draw.randint(1, 3)):
            child = processes.Process(target=run_in_child, args=(str(folder),))
            child.start()
            child.join(draw.uniform(1.0, 6.0))
            child.kill()
            child.join()
        planned.run(train, out=folder)
        assert final_bytes(folder) == final_bytes(tmp_path / "whole")
