"""Networks written and read back, from every place that they lie in."""

from __future__ import annotations

import copy
import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import eslkit
from eslkit.errors import InputError, StoreError
from eslkit_tsdn.models import TSDN, CBDNet, DeamNet, DrawnNBNet, NBNet, SUNet, UNet
from eslkit_tsdn.weights import (
    ARCHITECTURES,
    NETWORK_FILE,
    load_network,
    read_metadata,
    save_network,
)

widths = st.lists(st.integers(1, 6), min_size=2, max_size=4)


few = st.integers(1, 4)


@st.composite
def rivals(draw: st.DrawFn) -> nn.Module:
    kind = draw(st.sampled_from([CBDNet, NBNet, DrawnNBNet, DeamNet]))
    more = {"in_channels": draw(few)}
    if kind is DeamNet:
        sizes = {name: draw(few) for name in ("gate_width", "levels", "iterations")}
        return DeamNet(draw(few), **sizes, **more, unused_layers=draw(st.booleans()))
    if kind is CBDNet:
        return CBDNet(draw(st.tuples(few, few, few)), estimator_width=draw(few), **more)
    more["basis"] = draw(few)
    if kind is NBNet:
        more["skip_width"] = draw(few)
    return kind(draw(widths), **more)


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    if draw(st.booleans()):
        return draw(rivals())
    kind = draw(st.sampled_from([TSDN, UNet, SUNet]))
    channels = {"in_channels": draw(st.integers(1, 5)), "out_channels": draw(st.integers(1, 5))}
    if kind is TSDN:
        channels["stages"] = draw(st.integers(1, 3))
    return kind(draw(widths), **channels)


def same(a: nn.Module, b: nn.Module) -> bool:
    there, here = a.state_dict(), b.state_dict()
    return list(there) == list(here) and all(torch.equal(there[k], here[k]) for k in there)


@settings(max_examples=30)
@given(networks())
def test_a_network_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, network) -> None:
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    state = torch.random.get_rng_state()
    save_network(network, path, metadata={"trained": "not at all"})
    read = load_network(path)
    assert type(read) is type(network) and same(read, network)
    assert not read.training and network.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert read_metadata(path)["trained"] == "not at all"
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"]


@settings(max_examples=30)
@given(networks())
def test_shapes_alone_tell_the_network(tmp_path_factory: pytest.TempPathFactory, network) -> None:
    folder = tmp_path_factory.mktemp("weights")
    bare, torches = folder / "net.safetensors", folder / "net.pt"
    safetensors.torch.save_file(network.state_dict(), bare)
    torch.save(network.state_dict(), torches)
    for path in (bare, torches):
        read = load_network(path)
        assert same(read, network)
        assert type(read) is (UNet if isinstance(network, SUNet) else type(network))
    if isinstance(network, SUNet):
        assert type(load_network(bare, model="sunet")) is SUNet


def keeping(seen: dict[str, nn.Module]):
    """A trainer that draws the weights anew, and keeps a copy of every step's network."""

    def fit(model: nn.Module, step: eslkit.StepContext) -> dict[str, float]:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        seen[step.name] = copy.deepcopy(model)
        return {}

    return fit


@pytest.mark.parametrize("prefix", ["network.", "module.", "_orig_mod.", "network._orig_mod."])
def test_checkpoints_of_trainers_are_read(tmp_path: Path, prefix: str) -> None:
    network = UNet((2, 3))
    held = {prefix + key: value for key, value in network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": held}, tmp_path / "last.ckpt")
    assert same(load_network(tmp_path / "last.ckpt"), network)


def test_the_default_networks_are_known() -> None:
    for name, architecture in ARCHITECTURES.items():
        with torch.device("meta"):
            network = architecture.build()
        shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        with torch.device("meta"):
            again = architecture.build(**architecture.arguments(shapes))
        assert {k: tuple(v.shape) for k, v in again.state_dict().items()} == shapes, name


def test_a_folder_of_a_training_or_a_run_is_read(tmp_path: Path) -> None:
    network = UNet((2, 3))
    save_network(network, tmp_path / "trained" / NETWORK_FILE)
    assert same(load_network(tmp_path / "trained"), network)

    seen: dict[str, nn.Module] = {}
    made = eslkit.schedule(network, width=2, depth=1, example_inputs=torch.zeros(1, 4, 8, 8))
    final = made.run(keeping(seen), out=tmp_path / "demo" / "esl").model
    for folder in (tmp_path / "demo", tmp_path / "demo" / "esl"):
        assert same(load_network(folder), final)
        for name in ("EL", "CSL1"):
            assert same(load_network(folder, step=name), seen[name])
    with pytest.raises(StoreError, match="no step 'CSL9'; its steps are EL"):
        load_network(tmp_path / "demo", step="CSL9")


def test_an_unfinished_run_says_how_far_it_is(tmp_path: Path) -> None:
    def stopped(model: nn.Module, step: eslkit.StepContext) -> dict[str, float]:
        if step.index == 2:
            raise KeyboardInterrupt
        return {}

    made = eslkit.schedule(TSDN((2, 3)), width=2, depth=0, example_inputs=torch.zeros(1, 4, 8, 8))
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        made.run(stopped, out=tmp_path)
    with pytest.raises(StoreError, match=r"not finished; finished are EL\. Start the run again"):
        load_network(tmp_path)
    assert load_network(tmp_path, step="EL").stages[0].encoder[0].conv1.out_channels == 4


def test_what_cannot_be_built_again_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="This Conv2d cannot be built again"):
        save_network(nn.Conv2d(4, 4, 3), tmp_path / "net.safetensors")
    deeper = eslkit.expand(UNet((2, 3)), depth=1, example_inputs=torch.zeros(1, 4, 8, 8))
    with pytest.raises(InputError, match="This UNet cannot be built again"):
        save_network(deeper, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match=r"\['model'\]"):
        save_network(UNet((2, 3)), tmp_path / "net.safetensors", metadata={"model": "mine"})
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    rng = random.Random(0)
    network = UNet((2, 3))
    save_network(network, tmp_path / "a.safetensors")
    torch.save(network.state_dict(), tmp_path / "a.pt")
    refused = 0
    for path in (tmp_path / "a.safetensors", tmp_path / "a.pt"):
        whole = path.read_bytes()
        for _ in range(100):
            broken = bytearray(whole[: rng.choice([len(whole), rng.randrange(len(whole))])])
            for _ in range(rng.randint(0, 8)):
                broken[rng.randrange(min(len(broken), 2000))] = rng.randrange(256)
            path.write_bytes(broken)
            try:
                load_network(path)
            except InputError as error:
                refused += path.name in str(error)
    assert 100 < refused < 200


class Evil:
    """Leaves a trace if it is ever unpickled."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Evil()))
    torch.save(UNet((2, 3)), tmp_path / "c.pt")
    for name in "abc":
        with pytest.raises(InputError, match="nothing else is unpickled"):
            load_network(tmp_path / f"{name}.pt")
    assert not Path("evil").exists()


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    def refused(name: str, match: str, **options: str) -> None:
        with pytest.raises(InputError, match=match):
            load_network(tmp_path / name, **options)

    refused("none.safetensors", r"none\.safetensors does not exist")
    refused("none.pt", r"none\.pt does not exist")
    refused("", "holds no network")
    (tmp_path / "text.safetensors").write_text("a shopping list")
    refused("text.safetensors", "cannot be read as a safetensors file")
    (tmp_path / "text.pt").write_text("a shopping list")
    refused("text.pt", "no PyTorch file")
    torch.save([1], tmp_path / "list.pt")
    refused("list.pt", "holds a list")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    refused("epoch.pt", "epoch is no tensor")
    torch.save(OrderedDict(nn.Linear(2, 3).state_dict()), tmp_path / "linear.pt")
    refused("linear.pt", r"2 tensors \(bias \(3,\), weight \(3, 2\), \.\.\.\) .* one of tsdn, unet")
    torch.save(UNet((2, 3)).state_dict(), tmp_path / "unet.pt")
    refused("unet.pt", "not those of a tsdn", model="tsdn")
    refused("unet.pt", "model='best' is not known", model="best")
    refused("unet.pt", "no folder of a run", step="EL")


def test_damaged_metadata_and_values_are_refused(tmp_path: Path) -> None:
    network, path = UNet((2, 3)), tmp_path / "net.safetensors"
    save_network(network, path)
    whole, metadata = network.state_dict(), read_metadata(path)

    def refused(match: str, **changes: str) -> None:
        safetensors.torch.save_file(whole, path, metadata={**metadata, **changes})
        with pytest.raises(InputError, match=match):
            load_network(path)

    refused("of version '2'", eslkit_network="2")
    refused("names the network 'oracle'", model="oracle")
    refused("does not fit its tensors", arguments='{"widths": [2, 4]}')
    refused("does not fit its tensors", arguments='{"depth": 3}')
    refused("does not fit its tensors", arguments="{")
    assert same(load_network(path, model="unet"), network)
    with torch.no_grad():
        network.out.bias[0] = float("nan")
    save_network(network, path)
    with pytest.raises(InputError, match=r"out\.bias holds values that are not finite"):
        load_network(path)
