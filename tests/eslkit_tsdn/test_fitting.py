"""`fit`: the bits of a plain loop, killed or not, and nothing left behind on the network."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from eslkit.errors import InputError, StoreError, TrainingError
from eslkit_tsdn.budget import Budget, Machine
from eslkit_tsdn.data.crops import BatchSource
from eslkit_tsdn.fitting import fit
from eslkit_tsdn.losses import stage_l1
from eslkit_tsdn.models import TSDN
from eslkit_tsdn.optimizer import make_optimizer
from tests.eslkit_tsdn.fakes import drawn_photos

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

BUDGET = Budget(iterations=8, lr=1e-2)
CPU = Machine(device="cpu")


def source() -> BatchSource:
    return BatchSource(drawn_photos(2), batch_size=2, crop=8, gain=4.0, seed="test")


def network() -> TSDN:
    torch.manual_seed(3)
    return TSDN((2, 3, 4))


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in one.state_dict().items())


def plain(model: nn.Module, *, budget: Budget = BUDGET, loss=None) -> float:
    """The same training by hand."""
    model.train().to(memory_format=torch.channels_last)
    optimizer, scheduler = make_optimizer(model, lr=budget.lr, iterations=budget.iterations)
    value = torch.zeros(())
    for batch in source().batches(0, budget.iterations):
        optimizer.zero_grad()
        value = loss(model, batch) if loss else stage_l1(model(batch.noisy), batch.clean)
        value.backward()
        optimizer.step()
        scheduler.step()
    return float(value.detach())


train = partial(fit, budget=BUDGET, machine=CPU)


def test_it_trains_what_a_plain_loop_trains():
    trained, expected = network(), network()
    told: list[int] = []
    metrics = train(trained, source(), listener=lambda iteration, loss: told.append(iteration))
    assert metrics == {"loss": plain(expected)}
    assert same_bits(trained, expected)
    assert told == [*range(1, 9)]


def generators() -> list[object]:
    legacy = np.random.get_state()[1].tolist()  # noqa: NPY002
    return [torch.get_rng_state().tolist(), random.getstate(), legacy]


def test_the_caller_finds_everything_as_it_was(capfd):
    model = network().eval()
    model.stages[1].out.bias.requires_grad_(False)
    model.stages[0].train()
    before = generators()
    train(model, source())
    assert generators() == before
    assert (model.training, model.stages[0].training, model.stages[1].training) == (0, 1, 0)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["stages.1.out.bias"]
    assert all(p.is_contiguous() and p.grad is None for p in model.parameters())
    assert torch.equal(model.stages[1].out.bias, network().stages[1].out.bias)
    assert capfd.readouterr() == ("", "")


def test_a_loss_of_ones_own():
    def last_only(model: nn.Module, batch) -> torch.Tensor:
        return (model(batch.noisy)[-1] - batch.clean).square().mean()

    trained, expected = network(), network()
    train(trained, source(), loss=last_only)
    plain(expected, loss=last_only)
    assert same_bits(trained, expected)
    with pytest.raises(InputError, match=r"weights=\(1.0, 0.5\) are factors of the default loss"):
        train(
            network(),
            source(),
            loss=last_only,
            budget=Budget(iterations=1, weights=(1.0, 0.5)),
        )


def test_the_loss_may_draw_and_its_seed_decides():
    def noisy(model: nn.Module, batch) -> torch.Tensor:
        return stage_l1(model(batch.noisy + torch.randn(()) / 10), batch.clean)

    one, again, other = network(), network(), network()
    train(one, source(), loss=noisy, seed=1)
    train(again, source(), loss=noisy, seed=1)
    train(other, source(), loss=noisy, seed=2)
    assert same_bits(one, again)
    assert not same_bits(one, other)


@pytest.mark.parametrize("how", ["names", "predicate"])
def test_only_what_is_trainable_is_trained(how):
    start, model = network(), network()
    chosen = [name for name, _ in start.named_parameters() if name.startswith("stages.1.")]
    train(
        model,
        source(),
        trainable=chosen if how == "names" else lambda name: name.startswith("stages.1."),
    )
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, start.get_parameter(n))}
    assert moved == set(chosen)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_names_that_are_not_there_are_refused():
    with pytest.raises(InputError, match=r"names 'stage', which is no parameter of the TSDN"):
        train(network(), source(), trainable=["stage"])
    with pytest.raises(InputError, match="No parameter of the TSDN is left to train"):
        train(network(), source(), trainable=lambda name: False)


def stop_at(iteration: int, at: int = 0) -> None:
    if iteration == at:
        raise KeyboardInterrupt("now")


@pytest.mark.parametrize("at", [1, 5, 8])
def test_interrupted_it_goes_on_to_the_same_bits(tmp_path, at):
    def noisy(model: nn.Module, batch) -> torch.Tensor:
        return stage_l1(model(batch.noisy + torch.randn(()) / 10), batch.clean)

    go = partial(train, loss=noisy, folder=tmp_path, checkpoint_every=2)
    whole, parts = network(), network()
    expected = train(whole, source(), loss=noisy)
    with pytest.raises(KeyboardInterrupt, match="now"):
        go(parts, source(), listener=lambda iteration, loss: stop_at(iteration, at))
    told: list[int] = []
    again = network() if at == 1 else TSDN((2, 3, 4))  # a checkpoint brings weights along
    assert go(again, source(), listener=lambda i, loss: told.append(i)) == expected
    assert same_bits(again, whole)
    assert told[0] == 1 + (at - 1) // 2 * 2  # a checkpoint follows the update that it holds

    read = TSDN((2, 3, 4))
    assert go(read, source(), listener=lambda i, loss: stop_at(i, i)) == expected  # is not called
    assert same_bits(read, whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "trained.safetensors",
        "training.json",
    ]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from tests.eslkit_tsdn import test_fitting as here

    def listener(iteration, loss):
        if iteration == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    here.torch.set_num_threads(1)
    here.train(
        here.network(), here.source(), folder=Path(sys.argv[1]), checkpoint_every=2,
        listener=listener,
    )
"""


def test_killed_it_goes_on_to_the_same_bits(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    whole, parts = network(), TSDN((2, 3, 4))
    train(whole, source())
    told: list[int] = []
    train(parts, source(), folder=tmp_path, listener=lambda iteration, loss: told.append(iteration))
    assert told == [5, 6, 7, 8]
    assert same_bits(parts, whole)


def test_another_training_in_the_same_folder_is_refused(tmp_path):
    train(network(), source(), folder=tmp_path)
    kept = load_file(tmp_path / "trained.safetensors")
    with pytest.raises(StoreError, match=r"other settings \(iterations 8, now 9; lr 0.01, now 0.1"):
        train(network(), source(), folder=tmp_path, budget=Budget(iterations=9, lr=0.1))
    assert kept.keys() == network().state_dict().keys()
    (tmp_path / "trained.safetensors").write_bytes(b"nothing")
    with pytest.raises(StoreError, match=r"trained.safetensors is damaged"):
        train(network(), source(), folder=tmp_path)
    (tmp_path / "training.json").unlink()
    with pytest.raises(StoreError, match=r"no training.json says of which"):
        train(network(), source(), folder=tmp_path)
    (tmp_path / "training.json").write_text("{")
    with pytest.raises(StoreError, match=r"training.json cannot be read"):
        train(network(), source(), folder=tmp_path)


def test_a_training_that_diverges_says_so():
    with pytest.raises(TrainingError, match=r"at update \d of 8: the training diverged. Lower"):
        train(network(), source(), budget=Budget(iterations=8, lr=1e30))
    with pytest.raises(TrainingError, match=r"holds NaN or infinity after the last update"):
        train(network(), source(), loss=infinite_slope, budget=Budget(iterations=1))


def infinite_slope(model: nn.Module, batch) -> torch.Tensor:
    """0, with a gradient of infinity."""
    return (model(batch.noisy)[-1].mean() * 0).sqrt()


@pytest.mark.parametrize(
    "settings",
    [{"fused": True}, {"channels_last": False}, {"weights": (1.0, 1.0)}],
    ids=str,
)
def test_how_it_is_run_hardly_changes_what_comes_out(settings):
    one, other = network(), network()
    train(one, source())
    train(other, source(), budget=BUDGET.model_copy(update=settings))
    for key, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, atol=1e-4, rtol=1e-3)


def test_bf16_computes_in_bfloat16_and_keeps_weights_and_loss_in_float32():
    seen = set[torch.dtype]()
    model = network()
    model.stages[0].register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    metrics = train(model, source(), budget=BUDGET.model_copy(update={"precision": "bf16"}))
    assert seen == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    exact = network()
    assert metrics["loss"] == pytest.approx(plain(exact), rel=0.1)
    assert not same_bits(model, exact)


def test_batches_prepared_ahead_are_the_same_ones(tmp_path):
    one, other = network(), network()
    train(one, source())
    train(other, source(), machine=Machine(device="cpu", workers=1))
    assert same_bits(one, other)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="device=cuda, but this PyTorch sees no CUDA GPU"):
        train(network(), source(), machine=Machine(device="cuda"))
