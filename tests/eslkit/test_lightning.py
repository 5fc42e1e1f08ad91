from __future__ import annotations

import logging
import multiprocessing
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from eslkit.driver import walk
from eslkit.errors import InputError
from eslkit.plan import Plan
from eslkit.store import RunStore
from eslkit.trainer import StepContext
from tests.eslkit.small_walk import small_model, small_plan, surgery

pl = pytest.importorskip("lightning.pytorch")
from eslkit.lightning import LightningTrainer  # noqa: E402


class Module(pl.LightningModule):  # type: ignore[misc]
    """Regression with dropout, so that the generators matter inside an iteration too."""

    def __init__(self, network: nn.Module, step: StepContext) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (x,) = batch
        x = nn.functional.dropout(x, 0.1)
        loss = (self.network(x) - x[:, :2]).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)  # counts epochs
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def epochs(step: StepContext) -> DataLoader[Any]:
    """24 examples, shuffled anew in every epoch of 6 batches."""
    x = torch.linspace(-1, 1, 72).reshape(24, 3)
    return DataLoader(TensorDataset(x), batch_size=4, shuffle=True)


class Stream:
    """One pass of batches, each a function of its number alone."""

    def __init__(self, module: list[Any], stop: int) -> None:
        self.module, self.stop = module, stop

    def __iter__(self) -> Iterator[list[Tensor]]:
        for number in range(self.module[-1].global_step, self.stop):
            yield [torch.randn(4, 3, generator=torch.Generator().manual_seed(number))]


class Validated(Module):
    """The same with a validation after every epoch, which draws too."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("error", (self.network(batch[0]) + torch.rand(())).square().mean())

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(torch.ones(8, 3)), batch_size=4)


class Stop(pl.Callback):  # type: ignore[misc]
    """Raises at a given update of a given step."""

    def __init__(self, step: StepContext, name: str, at: int, error: BaseException) -> None:
        self.active, self.at, self.error = step.name == name, at, error

    def on_train_batch_start(self, trainer: Any, *_: object) -> None:
        if self.active and trainer.global_step == self.at:
            raise self.error


def run(folder: Path | None, trainer: LightningTrainer, *, plan: Plan | None = None) -> nn.Module:
    network, _ = walk(
        small_model(),
        plan or small_plan(iterations=15),
        surgery=surgery,
        trainer=trainer,
        store=None if folder is None else RunStore(folder),
    )
    return network


def shuffled(**settings: Any) -> LightningTrainer:
    return LightningTrainer(Module, epochs, accelerator="cpu", **settings)


def validated(**settings: Any) -> LightningTrainer:
    return LightningTrainer(Validated, epochs, accelerator="cpu", **settings)


def streamed(**settings: Any) -> LightningTrainer:
    modules: list[Any] = []

    def make_module(network: nn.Module, step: StepContext) -> Module:
        modules.append(Module(network, step))
        return modules[-1]

    def data(step: StepContext) -> Stream:
        return Stream(modules, step.iterations or 0)

    every = 4
    return LightningTrainer(
        make_module, data, accelerator="cpu", checkpoint_every=every, **settings
    )


def final_bytes(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("steps/*/weights.safetensors"))]


@pytest.mark.parametrize("make", [shuffled, validated, streamed])
@pytest.mark.parametrize("name, at", [("EL", 3), ("EL", 13), ("CSL1", 6), ("CSL1", 11)])
def test_resumed_inside_a_step_it_ends_in_the_same_bits(
    tmp_path: Path, make: Any, name: str, at: int
) -> None:
    run(tmp_path / "whole", make())
    stop = make(callbacks=lambda step: [Stop(step, name, at, KeyboardInterrupt())])
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        run(tmp_path / "parts", stop)
    assert signal.getsignal(signal.SIGINT) is handler
    run(tmp_path / "parts", make())
    assert final_bytes(tmp_path / "parts") == final_bytes(tmp_path / "whole")
    records = RunStore(tmp_path / "parts").records()
    assert [r.metrics for r in records] == [
        r.metrics for r in RunStore(tmp_path / "whole").records()
    ]


def test_layers_that_are_expanded_inside_resume_in_the_same_bits(tmp_path: Path) -> None:
    plan = small_plan(iterations=15).model_copy(update={"linear": 2})
    run(tmp_path / "whole", streamed(), plan=plan)
    stop = streamed(callbacks=lambda step: [Stop(step, "CSL1", 11, KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        run(tmp_path / "parts", stop, plan=plan)
    run(tmp_path / "parts", streamed(), plan=plan)
    assert final_bytes(tmp_path / "parts") == final_bytes(tmp_path / "whole")


def test_it_goes_on_from_its_checkpoint_and_not_from_the_start(tmp_path: Path) -> None:
    seen: list[int] = []

    class Count(pl.Callback):  # type: ignore[misc]
        def on_train_batch_start(self, trainer: Any, *_: object) -> None:
            seen.append(trainer.global_step)

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        run(tmp_path, shuffled(callbacks=lambda s: [Stop(s, "EL", 14, KeyboardInterrupt())]))
    run(tmp_path, shuffled(callbacks=Count()), plan=small_plan(iterations=15))
    assert seen[:4] == [12, 13, 14, 0]


def test_a_step_that_was_trained_but_not_stored_keeps_its_metrics(tmp_path: Path) -> None:
    whole = streamed()
    run(tmp_path / "whole", whole, plan=small_plan(iterations=8))
    expected = RunStore(tmp_path / "whole").records()[0].metrics

    class Late(LightningTrainer):
        def fit(self, model: nn.Module, step: StepContext) -> Any:
            super().fit(model, step)
            raise KeyboardInterrupt

    late = streamed()
    late.__class__ = Late
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        run(tmp_path / "late", late, plan=small_plan(iterations=8))
    run(tmp_path / "late", streamed(), plan=small_plan(iterations=8))
    assert RunStore(tmp_path / "late").records()[0].metrics == expected
    assert final_bytes(tmp_path / "late") == final_bytes(tmp_path / "whole")


def test_lightning_says_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    level = logging.getLogger("lightning.pytorch").level
    run(tmp_path / "run", shuffled())
    run(None, shuffled())
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    names = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    stored = {"plan.json", "manifest.json", "start.safetensors", "lock"}
    assert names == {*stored, "weights.safetensors", "record.json", "last.ckpt"}
    assert logging.getLogger("lightning.pytorch").level == level


def test_callbacks_loggers_and_a_trainer_of_the_users_own(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logs = shuffled(
        logger=lambda step: CSVLogger(str(step.folder)), log_every_n_steps=5, max_epochs=1
    )
    run(tmp_path / "a", logs)
    assert len(list((tmp_path / "a").rglob("metrics.csv"))) == 3

    def make_trainer(step: StepContext) -> Any:
        return pl.Trainer(
            max_steps=2,
            logger=False,
            enable_progress_bar=False,
            accelerator="cpu",
            enable_model_summary=False,
            enable_checkpointing=False,
        )

    run(tmp_path / "b", LightningTrainer(Module, epochs, make_trainer=make_trainer))
    assert RunStore(tmp_path / "b").num_finished() == 3


def test_a_datamodule_is_taken_as_it_is() -> None:
    class Data(pl.LightningDataModule):  # type: ignore[misc]
        def train_dataloader(self) -> Any:
            return epochs(None)  # type: ignore[arg-type]

    with_module = run(None, LightningTrainer(Module, Data(), accelerator="cpu"))
    with_loader = run(None, shuffled())
    for key, value in with_module.state_dict().items():
        assert torch.equal(value, with_loader.state_dict()[key])


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(InputError, match=r"make_trainer= and \['max_epochs'\] exclude"):
        LightningTrainer(Module, epochs, make_trainer=lambda step: None, max_epochs=1)
    with pytest.raises(InputError, match="checkpoint_every=0: expected 1 or more"):
        LightningTrainer(Module, epochs, checkpoint_every=0)
    with pytest.raises(InputError, match="Step EL: nothing says how long to train"):
        run(None, shuffled(), plan=small_plan(iterations=None))


def train_in_child(folder: str) -> None:
    torch.set_num_threads(1)  # as in the tests: another number of threads adds in another order
    run(Path(folder), shuffled())


def test_killed_at_random_moments_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    run(tmp_path / "whole", shuffled())
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.eslkit.test_lightning"])
    draw = random.Random(1)
    for repeat in range(3):
        folder = tmp_path / str(repeat)
        for _ in range(2):
            child = processes.Process(target=train_in_child, args=(str(folder),))
            child.start()
            child.join(draw.uniform(0.3, 1.5))
            child.kill()
            child.join()
        run(folder, shuffled())
        assert final_bytes(folder) == final_bytes(tmp_path / "whole")
