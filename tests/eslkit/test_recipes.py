"""The trainers of the how-to pages, interrupted inside a step: the same bits as in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import eslkit
from eslkit.trainer import StepContext
from tests.test_docs import ROOT, blocks_of

PLAIN = "train-with-your-own-loop.md"
ACCELERATE = "train-with-accelerate.md"


def page(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's first two blocks define, in a folder of its own."""
    if name == ACCELERATE:
        pytest.importorskip("accelerate", reason="the extra 'accelerate' is not installed")
    monkeypatch.chdir(folder)
    session: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of((ROOT / "docs" / "how-to" / name).read_text("utf-8"))[:2]:
        exec(compile(block.code, name, "exec"), session)
    return session


def trainer_of(session: dict[str, Any], name: str) -> Any:
    if name == PLAIN:
        return session["Trainer"](every=3)
    return session["AccelerateTrainer"](every=3, cpu=True)


@pytest.mark.parametrize("name", [PLAIN, ACCELERATE])
def test_a_recipe_goes_on_inside_a_step_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    session = page(name, tmp_path, monkeypatch)
    torch.manual_seed(0)
    schedule = eslkit.schedule(
        session["Denoiser"](), depth=0, iterations=8, example_inputs=torch.zeros(1, 1, 16, 16)
    )
    whole = schedule.run(trainer_of(session, name), out="whole")
    trained: list[int] = []
    real = nn.functional.l1_loss

    class Interrupted:
        """The page's trainer, interrupted in the seventh iteration of the second step."""

        def fit(self, model: nn.Module, step: StepContext) -> Any:
            count = [0]

            def counted(*inputs: Any) -> torch.Tensor:
                count[0] += 1
                if step.index == 2 and count[0] == 7:
                    raise KeyboardInterrupt
                return real(*inputs)

            with monkeypatch.context() as patch:
                patch.setattr(nn.functional, "l1_loss", counted)
                return trainer_of(session, name).fit(model, step)

    class Counted:
        def fit(self, model: nn.Module, step: StepContext) -> Any:
            with monkeypatch.context() as patch:
                patch.setattr(
                    nn.functional,
                    "l1_loss",
                    lambda *inputs: trained.append(step.index) or real(*inputs),
                )
                return trainer_of(session, name).fit(model, step)

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        schedule.run(Interrupted(), out="parts")
    parts = schedule.run(Counted(), out="parts")
    assert trained.count(1) == 0
    assert trained.count(2) == 2  # six of the eight were kept
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[key])
    assert [r.metrics for r in parts.records] == [r.metrics for r in whole.records]
