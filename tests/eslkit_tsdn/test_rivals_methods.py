"""The methods that train: what they start from is left alone, and what they say they do they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eslkit.errors import InputError, StoreError, UnsupportedError
from eslkit_tsdn.budget import Budget
from eslkit_tsdn.data.crops import BatchSource
from eslkit_tsdn.data.source import NoisyBatch
from eslkit_tsdn.evaluation import evaluate, test_pairs
from eslkit_tsdn.fitting import fit
from eslkit_tsdn.models import TSDN, CBDNet, SUNet, UNet
from eslkit_tsdn.rivals.collaborative import distil_collaboratively, num_embedding_parameters
from eslkit_tsdn.rivals.distillation import distil
from eslkit_tsdn.rivals.embeddings import Embedded, paired_taps
from eslkit_tsdn.rivals.expandnets import train_expandnet
from eslkit_tsdn.rivals.pruning import prune_and_finetune
from eslkit_tsdn.rivals.running import divided
from eslkit_tsdn.rivals.scratch import train_scratch
from tests.eslkit_tsdn.fakes import drawn_photos
from tests.tolerances import FLOAT32_FORWARD

PHOTOS = drawn_photos(3)


class Few:
    """Four batches, drawn once and shown again and again: drawing takes longer than training."""

    def __init__(self) -> None:
        drawn = BatchSource(PHOTOS, batch_size=2, crop=16)
        self.batch_size, self.crop = drawn.batch_size, drawn.crop
        self.few = [drawn.batch(index) for index in range(4)]

    def batch(self, index: int) -> NoisyBatch:
        return self.few[index % len(self.few)]

    def batches(self, start: int, stop: int) -> Iterator[NoisyBatch]:
        return map(self.batch, range(start, stop))


SOURCE = Few()
SMALL, LARGE = (3, 4, 5), (4, 6, 8)


def network(widths: tuple[int, ...] = SMALL, *, seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(widths)


Call = Callable[..., nn.Module]


def methods(small: nn.Module, large: nn.Module) -> dict[str, Call]:
    """Every method as a function of the budget and the folder."""
    return {
        "scratch": partial(train_scratch, small, SOURCE),
        "distil": partial(distil, small, large, SOURCE),
        "distil, features": partial(distil, small, large, SOURCE, feature=0.1),
        "collaborative": partial(distil_collaboratively, small, large, SOURCE),
        "collaborative, faithful": partial(
            distil_collaboratively, small, large, SOURCE, form="faithful", init="l1"
        ),
        "expandnet": partial(train_expandnet, small, SOURCE, rate=2, init="same"),
        "pruned": partial(prune_and_finetune, small, large, SOURCE, engine="eslkit", steps=2),
    }


NAMES = list(methods(network(), network(LARGE)))


@pytest.mark.parametrize("name", NAMES)
def test_a_method_gives_the_small_network_and_leaves_the_rest_alone(
    name: str, tmp_path: Path
) -> None:
    small, large = network().eval(), network(LARGE, seed=1)
    before = {id(m): {k: v.clone() for k, v in m.state_dict().items()} for m in (small, large)}
    state = torch.get_rng_state()
    call = methods(small, large)[name]
    told: list[int] = []
    made = call(
        budget=Budget(iterations=4, lr=1e-3),
        folder=tmp_path,
        listener=lambda update, loss: told.append(update),
    )
    assert told == [1, 2, 3, 4]
    assert type(made) is UNet
    shapes = {key: value.shape for key, value in small.state_dict().items()}
    assert {key: value.shape for key, value in made.state_dict().items()} == shapes
    assert not made.training and all(p.requires_grad for p in made.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    for given in (small, large):
        assert all(torch.equal(v, before[id(given)][k]) for k, v in given.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in given.parameters())
        assert not any(layer._forward_hooks for layer in given.modules())
    assert not small.training and large.training
    assert any(not torch.equal(v, small.state_dict()[k]) for k, v in made.state_dict().items())


class KilledError(Exception):
    """What a SIGKILL is here; that of a process is tested where `fit` is."""


def dies(update: int, loss: float, *, at: int) -> None:
    if update == at:
        raise KilledError("killed")


@pytest.mark.parametrize(
    "name, at",
    [
        ("distil, features", 3),
        ("collaborative, faithful", 3),
        ("collaborative, faithful", 9),
        ("pruned", 9),
    ],
)
def test_resumed_ends_in_the_bits_of_an_uninterrupted_run(
    name: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the first of two trainings, or in the second, past a checkpoint."""
    monkeypatch.setattr("eslkit_tsdn.rivals.running.fit", partial(fit, checkpoint_every=2))
    small, large = network((2, 3)), network((3, 4), seed=1)
    call = partial(methods(small, large)[name], budget=Budget(iterations=12, lr=1e-3))
    whole = call(folder=tmp_path / "whole")
    with pytest.raises(KilledError, match="killed"):
        call(folder=tmp_path / "killed", listener=partial(dies, at=at))
    told: list[int] = []
    resumed = call(folder=tmp_path / "killed", listener=lambda update, loss: told.append(update))
    assert told == list(range(at, 13))
    pairs = zip(whole.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    told.clear()
    again = call(folder=tmp_path / "killed", listener=lambda update, loss: told.append(update))
    assert told == []
    pairs = zip(whole.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_seed_decides_all() -> None:
    call = partial(
        distil, network(), network(LARGE), SOURCE, budget=Budget(iterations=3), feature=1.0
    )
    one, same, other = (call(seed=seed) for seed in (0, 0, 1))
    assert all(map(torch.equal, one.parameters(), same.parameters()))
    assert not all(map(torch.equal, one.parameters(), other.parameters()))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A large network."""
    return train_scratch(network((8, 16), seed=1), SOURCE, budget=Budget(iterations=60, lr=3e-3))


@pytest.mark.parametrize("name", NAMES)
def test_every_method_improves_on_its_start(name: str, trained: nn.Module) -> None:
    pairs = test_pairs(drawn_photos(2, height=32, width=32), ratios=[250])
    small = network((4, 8))
    made = methods(small, trained)[name](budget=Budget(iterations=50, lr=3e-3))
    start, end = evaluate(small, pairs)["psnr_x250"], evaluate(made, pairs)["psnr_x250"]
    assert end > start + 3


def seen_by(run: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch) -> list:
    """The losses that a method hands to `fit`, with the networks that it trains."""
    seen: list = []

    def fit(network: nn.Module, source: object, *, loss: object, **rest: object) -> None:
        seen.append((network, loss, rest["trainable"]))

    monkeypatch.setattr("eslkit_tsdn.rivals.running.fit", fit)
    run(budget=Budget(iterations=2))
    return seen


def unet_features(net: UNet, x: torch.Tensor) -> list[torch.Tensor]:
    """The maps of a U-Net's encoder, without hooks."""
    maps = []
    for block in net.encoder:
        maps.append(block(x))
        x = F.max_pool2d(maps[-1], 2)
    return [*maps, net.middle(x)]


def decode(net: UNet, maps: list[torch.Tensor]) -> torch.Tensor:
    """The image that a U-Net's decoder makes of its encoder's maps."""
    *skips, x = maps
    for block, skip in zip(reversed(net.decoder), reversed(skips), strict=True):
        x = block(x, skip)
    return net.out(x)


def naive_losses(
    small: UNet, large: UNet, lifted: list[torch.Tensor], batch: NoisyBatch
) -> dict[str, torch.Tensor]:
    """The terms of facts, section 4, written down for U-Nets."""

    def mse(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> torch.Tensor:
        return sum(F.mse_loss(a, b) for a, b in zip(ours, theirs, strict=True))

    through, clean = decode(large, lifted), unet_features(large, batch.clean)
    return {
        "true": (small(batch.noisy) - batch.clean).abs().mean(),
        "told": (small(batch.noisy) - large(batch.noisy)).abs().mean(),
        "embedded": mse(lifted, unet_features(large, batch.noisy)),
        "through": (through - batch.clean).abs().mean(),
        "seen through": mse(unet_features(large, through), clean),
        "seen": mse(unet_features(large, small(batch.noisy)), clean),
    }


def lifted_by(inside: Embedded, x: torch.Tensor) -> list[torch.Tensor]:
    maps = unet_features(inside.network, x)
    return [
        torch.einsum("ti,bihw->bthw", each.weight[..., 0, 0], m) + each.bias[:, None, None]
        for each, m in zip(inside.embeddings, maps, strict=True)
    ]


def test_the_losses_of_distillation_are_those_of_the_books(monkeypatch) -> None:
    large, batch = network(LARGE, seed=1), SOURCE.batch(5)
    [(made, loss, _)] = seen_by(partial(distil, network(), large, SOURCE, output=0.3), monkeypatch)
    terms = naive_losses(made, large, unet_features(large, batch.noisy), batch)
    FLOAT32_FORWARD.check(loss(made, batch), 0.7 * terms["true"] + 0.3 * terms["told"])
    [(inside, loss, _)] = seen_by(
        partial(distil, network(), large, SOURCE, output=0.3, feature=2.0), monkeypatch
    )
    terms = naive_losses(inside.network, large, lifted_by(inside, batch.noisy), batch)
    expected = 0.7 * terms["true"] + 0.3 * terms["told"] + 2 * terms["embedded"]
    FLOAT32_FORWARD.check(loss(inside, batch), expected)


def test_the_losses_of_collaborative_distillation_are_those_of_the_facts(monkeypatch) -> None:
    large, batch = network(LARGE, seed=1), SOURCE.batch(5)
    call = partial(distil_collaboratively, network(), large, SOURCE)
    [(inside, loss, trainable)] = seen_by(call, monkeypatch)
    terms = naive_losses(inside.network, large, lifted_by(inside, batch.noisy), batch)
    FLOAT32_FORWARD.check(loss(inside, batch), terms["true"] + 10 * terms["embedded"])
    assert trainable is None

    first, second = seen_by(partial(call, form="faithful"), monkeypatch)
    inside, loss, trainable = first
    terms = naive_losses(inside.network, large, lifted_by(inside, batch.noisy), batch)
    expected = terms["through"] + 10 * terms["embedded"] + terms["seen through"]
    FLOAT32_FORWARD.check(loss(inside, batch), expected)
    assert {name.split(".")[0] for name in trainable} == {"network", "embeddings"}
    encoder = {name.removeprefix("network.") for name in trainable if name.startswith("net")}

    made, loss, decoder = second
    FLOAT32_FORWARD.check(loss(made, batch), terms["true"] + 0.01 * terms["seen"])
    names = {name for name, _ in made.named_parameters()}
    assert encoder == {name for name in names if name.startswith(("encoder", "middle"))}
    assert set(decoder) == names - encoder


def test_the_papers_pair_takes_175_584_extra_parameters() -> None:
    student, teacher = SUNet(), UNet()
    pairs, widths = paired_taps(student, teacher, torch.zeros(1, 4, 16, 16), taps=None)
    assert [ours for ours, _ in pairs] == [*(f"encoder.{i}" for i in range(4)), "middle"]
    assert widths == ((16, 32), (32, 64), (64, 128), (128, 256), (256, 512))
    inside = Embedded(student, [ours for ours, _ in pairs], widths)
    extra = sum(p.numel() for p in inside.parameters()) - sum(
        p.numel() for p in student.parameters()
    )
    assert extra == num_embedding_parameters(widths) == 175_584


def test_a_frozen_encoder_keeps_its_norms_statistics() -> None:
    class Normed(UNet):
        def __init__(self, widths: tuple[int, ...]) -> None:
            super().__init__(widths)
            for block in [*self.encoder, *self.decoder]:
                block.conv2 = nn.Sequential(block.conv2, nn.BatchNorm2d(block.conv2.out_channels))

    torch.manual_seed(0)
    small, large = Normed((3, 4)), Normed((4, 6))
    made = distil_collaboratively(
        small, large, SOURCE, budget=Budget(iterations=6), form="faithful"
    )
    counts = {
        name: int(value)
        for name, value in made.state_dict().items()
        if name.endswith("num_batches_tracked")
    }
    assert counts == {
        "encoder.0.conv2.1.num_batches_tracked": 3,  # of the first training alone
        "decoder.0.conv2.1.num_batches_tracked": 3,
    }
    assert all(layer.training for layer in made.modules())


def noise_map_loss(net: nn.Module, batch: NoisyBatch) -> torch.Tensor:
    """Of a network that returns a noise map and an image, as CBDNet."""
    noise, image = net(batch.noisy)
    return F.mse_loss(image, batch.clean) + 0.05 * noise.square().mean()


@pytest.mark.parametrize("name", NAMES)
def test_a_network_with_a_loss_of_its_own_is_trained_by_every_method(name: str) -> None:
    torch.manual_seed(0)
    small, large = CBDNet((3, 4, 5), 2), CBDNet((4, 6, 8), 3)
    call = methods(small, large)[name]
    made = call(budget=Budget(iterations=2), loss=noise_map_loss)
    shapes = [parameter.shape for parameter in small.parameters()]
    assert type(made) is CBDNet and [p.shape for p in made.parameters()] == shapes
    with pytest.raises(InputError, match="are factors of the default loss"):
        call(budget=Budget(iterations=2, weights=(1.0, 0.0)), loss=noise_map_loss)


def test_with_a_loss_of_its_own_the_last_image_is_compared_with_the_teacher(monkeypatch) -> None:
    torch.manual_seed(0)
    small, large, batch = CBDNet((3, 4, 5), 2), CBDNet((4, 6, 8), 3), SOURCE.batch(1)
    call = partial(distil, small, large, SOURCE, loss=noise_map_loss, output=0.25)
    [(made, loss, _)] = seen_by(call, monkeypatch)
    told = (made.eval()(batch.noisy) - large.eval()(batch.noisy)).abs().mean()
    made.train()
    FLOAT32_FORWARD.check(loss(made, batch), 0.75 * noise_map_loss(made, batch) + 0.25 * told)


def test_several_stages_are_distilled_too() -> None:
    torch.manual_seed(0)
    small, large = TSDN((3, 4)), TSDN((4, 6))
    for call in (
        partial(distil, feature=1.0),
        partial(distil, output=1.0),
        distil_collaboratively,
    ):
        made = call(small, large, SOURCE, budget=Budget(iterations=2, weights=(0.5, 1.0)))
        assert type(made) is TSDN
    with pytest.raises(UnsupportedError, match="the TSDN has several of each in a row"):
        distil_collaboratively(small, large, SOURCE, budget=Budget(iterations=2), form="faithful")


def test_a_folder_belongs_to_one_method_and_one_start(tmp_path: Path) -> None:
    small, large, budget = network(), network(LARGE), Budget(iterations=2)
    distil(small, large, SOURCE, budget=budget, folder=tmp_path)
    with pytest.raises(StoreError, match=r"by distil, not by train_scratch"):
        train_scratch(small, SOURCE, budget=budget, folder=tmp_path)
    with pytest.raises(StoreError, match=r"other settings \(output=0.5, now 0.25\)"):
        distil(small, large, SOURCE, budget=budget, folder=tmp_path, output=0.25)
    with pytest.raises(StoreError, match="began with another teacher"):
        distil(small, network(LARGE, seed=3), SOURCE, budget=budget, folder=tmp_path)
    (tmp_path / "method.json").write_text("{}")
    with pytest.raises(StoreError, match=r"method.json cannot be read"):
        distil(small, large, SOURCE, budget=budget, folder=tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"output": 1.5}, "output=1.5"),
        ({"feature": -1.0}, "feature=-1.0"),
        ({"feature": 1.0, "taps": []}, "taps is empty"),
        ({"feature": 1.0, "taps": [("encoder.0", "middle")]}, "only the channels may differ"),
    ],
)
def test_what_cannot_be_distilled_is_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        distil(network(), network(LARGE), SOURCE, budget=Budget(iterations=2), **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"form": "free"}, "form='free'"),
        ({"embedding": float("nan")}, "embedding=nan"),
        ({"perceptual": (1.0, -1.0)}, "perceptual=-1.0"),
        ({"form": "faithful", "budget": Budget(iterations=1)}, "divided among 2 trainings"),
    ],
)
def test_what_cannot_be_distilled_collaboratively_is_refused(options, message) -> None:
    options = {"budget": Budget(iterations=2), **options}
    with pytest.raises(InputError, match=message):
        distil_collaboratively(network(), network(LARGE), SOURCE, **options)


def test_encoders_of_another_form_are_refused() -> None:
    with pytest.raises(InputError, match="The encoders are not of one form"):
        distil_collaboratively(network(), network((4, 6)), SOURCE, budget=Budget(iterations=2))


def test_iterations_are_divided_evenly_and_none_is_lost() -> None:
    assert divided(10, parts=3) == (3, 3, 4) and divided(4, parts=4) == (1, 1, 1, 1)
    assert all(sum(divided(n, parts=k)) == n for n in range(5, 20) for k in range(1, 6))
