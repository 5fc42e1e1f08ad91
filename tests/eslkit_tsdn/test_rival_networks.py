"""The rivals' networks against the layer facts (facts, section 2), written down a second time."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eslkit.errors import InputError
from eslkit_tsdn.models import CBDNet, DeamNet, DrawnNBNet, NBNet, SUNet, UNet
from eslkit_tsdn.models.nbnet import project
from tests.tolerances import FLOAT32_FORWARD, REFERENCE

# name, factory, parameters, MB, MiB, GFLOPs of convolutions and of products at 1x4x512x512
NETWORKS = [
    ("CBDNet", lambda: CBDNet(), 4_367_176, 17.469, 16.659, 297.426, 0.0),
    ("NBNet", lambda: NBNet(), 13_309_860, 53.239, 50.773, 695.913, 1.363),
    ("NBNet as drawn", lambda: DrawnNBNet(), 10_455_844, 41.823, 39.886, 216.420, 1.363),
    ("DeamNet", lambda: DeamNet(), 2_229_284, 8.917, 8.504, 1167.342, 0.0),
    ("used", lambda: DeamNet(unused_layers=False), 1_876_772, 7.507, 7.159, 1167.342, 0.0),
]


@pytest.mark.parametrize(
    "factory, parameters, megabytes, mebibytes, convolutions, products",
    [network[1:] for network in NETWORKS],
    ids=[network[0] for network in NETWORKS],
)
def test_sizes_and_flops_are_those_of_the_facts(
    factory, parameters, megabytes, mebibytes, convolutions, products
):
    with torch.device("meta"):
        model = factory().eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert round(4 * parameters / 1e6, 3) == megabytes
    assert round(4 * parameters / 2**20, 3) == mebibytes
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 4, 512, 512, device="meta"))
    counts = {str(op): flops / 1e9 for op, flops in counter.get_flop_counts()["Global"].items()}
    assert counts.pop("aten.convolution") == pytest.approx(convolutions, abs=5e-4)
    assert sum(counts.values()) == pytest.approx(products, abs=5e-4)


def test_the_near_misses_are_other_networks():
    with torch.device("meta"):
        assert sum(p.numel() for p in CBDNet(in_channels=3).parameters()) == 4_365_382
        unused = DeamNet().operator.unused
    assert sum(p.numel() for p in unused.parameters()) == 352_512


@pytest.mark.parametrize(
    "make, mebibytes, paper",
    [(UNet, 29.618, "29.6"), (CBDNet, 16.674, "16.7"), (DeamNet, 8.556, "8.6")],
)
def test_a_saved_file_has_the_paper_s_size(make, mebibytes, paper):
    """The size depends a little on the names of the layers, which are ours."""
    file = io.BytesIO()
    torch.save(make().state_dict(), file)
    size = len(file.getvalue()) / 2**20
    assert size == pytest.approx(mebibytes, abs=6e-3)
    assert f"{size:.1f}" == paper


class Weights:
    """A network's layers by name, called without its modules."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = dict(model.state_dict())

    def conv(self, x: Tensor, name: str, *, stride: int = 1, padding: int | None = None) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        padding = weight.shape[-1] // 2 if padding is None else padding
        return torch.conv2d(x, weight, self.tensors.get(f"{name}.bias"), stride, padding)

    def relu(self, x: Tensor, name: str, **kwargs: int) -> Tensor:
        return self.conv(x, name, **kwargs).clamp(min=0)

    def relus(self, x: Tensor, name: str, *, count: int, step: str = "{}") -> Tensor:
        for i in range(count):
            x = self.relu(x, f"{name}.{step.format(2 * i)}")
        return x

    def up(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return torch.conv_transpose2d(x, weight, bias, stride=2)


def naive_cbdnet(x: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    noise = w.relus(x, "estimator.body", count=4)
    noise = w.relu(noise, "estimator.out.0")
    first = w.relus(torch.cat([x, noise], 1), "denoiser.encoder1", count=2)
    second = w.relus(average(first), "denoiser.encoder2", count=3)
    y = w.relus(average(second), "denoiser.middle", count=6)
    y = w.relus(w.up(y, "denoiser.up2") + second, "denoiser.decoder2", count=3)
    y = w.relus(w.up(y, "denoiser.up1") + first, "denoiser.decoder1", count=2)
    return noise, w.conv(y, "denoiser.out") + x


def average(x: Tensor) -> Tensor:
    return x.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2))


def test_cbdnet_is_the_layer_facts():
    model = CBDNet((3, 4, 5), estimator_width=2).double()
    x = torch.rand(2, 4, 12, 16, dtype=torch.float64)
    noise, image = naive_cbdnet(x, Weights(model))
    outputs = model.train()(x)
    REFERENCE.check(outputs[0], noise)
    REFERENCE.check(outputs[1], image)
    REFERENCE.check(model.eval()(x), image)
    assert (noise >= 0).all() and (noise > 0).any()


def block(x: Tensor, name: str, w: Weights, slope: float) -> Tensor:
    def lrelu(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, slope * x)

    y = lrelu(w.conv(lrelu(w.conv(x, f"{name}.body.0")), f"{name}.body.2"))
    return y + w.conv(x, f"{name}.shortcut")


def bridged(x: Tensor, name: str, w: Weights, *, count: int) -> Tensor:
    """Skip and subspace of the released network: blocks beside a 1x1 convolution."""
    y = x
    for i in range(count):
        y = block(y, f"{name}.body.{i}" if count > 1 else f"{name}.body", w, 0.2)
    return y + w.conv(x, f"{name}.shortcut")


def explicit_projection(x: Tensor, basis: Tensor) -> Tensor:
    """X P, with the N x N matrix P = V^T (V V^T)^-1 V written out through the pseudo-inverse."""
    v = basis.flatten(2)
    return (x.flatten(2) @ (torch.linalg.pinv(v) @ v)).view(x.shape)


def naive_nbnet(x: Tensor, w: Weights, *, levels: int) -> Tensor:
    y, skips = x, []
    for level in range(levels):
        skips.append(block(y, f"encoder.{level}", w, 0.2))
        y = w.conv(skips[-1], f"down.{level}", stride=2, padding=1)
    y = block(y, f"encoder.{levels}", w, 0.2)
    for level in reversed(range(levels)):
        name = f"decoder.{level}"
        y = w.up(y, f"{name}.up")
        bridge = bridged(skips[level], f"{name}.skip", w, count=max(2, levels - level))
        basis = bridged(torch.cat([y, bridge], 1), f"{name}.subspace", w, count=1)
        y = block(torch.cat([y, explicit_projection(bridge, basis)], 1), f"{name}.fuse", w, 0.2)
    return x - w.conv(y, "out")


def naive_drawn_nbnet(x: Tensor, w: Weights, *, levels: int) -> Tensor:
    y, skips = x, []
    for level in range(levels):
        skips.append(block(y, f"encoder.{level}", w, 0.01))
        y = skips[-1].unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(-1, -2))
    y = block(y, f"encoder.{levels}", w, 0.01)
    for level in reversed(range(levels)):
        name, bridge = f"decoder.{level}", skips[level]
        y = w.up(y, f"{name}.up")
        for i in range(levels - level):
            bridge = block(bridge, f"{name}.skip.{i}", w, 0.01)
        basis = block(torch.cat([bridge, y], 1), f"{name}.subspace", w, 0.01)
        y = block(torch.cat([y, explicit_projection(bridge, basis)], 1), f"{name}.fuse", w, 0.01)
    return x + w.conv(y, "out")


@pytest.mark.parametrize(
    "model, naive",
    [
        (lambda: NBNet((3, 4, 5, 6), skip_width=5, basis=3), naive_nbnet),
        (lambda: DrawnNBNet((3, 4, 5, 6), basis=3), naive_drawn_nbnet),
    ],
    ids=["released", "drawn"],
)
def test_nbnet_is_the_layer_facts(model, naive):
    """Through the pseudo-inverse of N x N, whose cut at 1e-15 is not part of the formula."""
    network = model().double()
    x = torch.rand(2, 4, 24, 16, dtype=torch.float64)
    expected = naive(x, Weights(network), levels=3)
    torch.testing.assert_close(network(x), expected, rtol=1e-8, atol=1e-8)


def gate(kept: Tensor, other: Tensor, name: str, w: Weights) -> Tensor:
    joined = w.conv(torch.cat([w.conv(kept, f"{name}.conv"), other], 1), f"{name}.squeeze")
    weight = w.conv(w.relu(joined, f"{name}.gate.0"), f"{name}.gate.2").sigmoid()
    return (1 - weight) * other + weight * kept


def naive_operator(x: Tensor, w: Weights, *, levels: int) -> Tensor:
    y, skips = x, []
    for level in range(levels):
        name = f"operator.encoder.{level}"
        y = w.relu(w.relu(y, f"{name}.body.0.0"), f"{name}.body.1.0")
        skips.append(y)
        y = w.relu(y, f"{name}.down.0", stride=2)
    y = w.relu(w.relu(y, "operator.middle.0.0"), "operator.middle.1.0")
    for level in reversed(range(levels)):
        name = f"operator.decoder.{level}"
        up = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
        rich = gate(skips[level], w.relu(up, f"{name}.up_mixed.0"), f"{name}.attention", w)
        a, b = w.relu(rich, f"{name}.rich.0"), w.relu(up, f"{name}.up_joined.0")
        y = w.conv(torch.cat([a, b], 1), f"{name}.join")
        y = w.relu(w.relu(y, f"{name}.body.0.0"), f"{name}.body.1.0")
    return x + w.conv(y, "operator.out")


def residual(x: Tensor, name: str, w: Weights) -> Tensor:
    return x + w.conv(w.relu(x, f"{name}.body.0"), f"{name}.body.2")


def test_deamnet_is_the_layer_facts():
    model = DeamNet(5, gate_width=2, levels=2, iterations=3).double()
    w = Weights(model)
    x = torch.rand(2, 4, 8, 12, dtype=torch.float64)
    y = z = residual(w.conv(x, "transform.0"), "transform.1", w)
    for i in range(3):
        z = gate(y, naive_operator(z, w, levels=2), f"attentions.{i}", w)
    REFERENCE.check(model(x), w.conv(residual(z, "inverse.0", w), "inverse.1"))


def test_deamnet_does_without_its_unused_layers():
    with_them, without = DeamNet(4, levels=1), DeamNet(4, levels=1, unused_layers=False)
    missing = without.load_state_dict(with_them.state_dict(), strict=False)
    assert not missing.missing_keys
    assert {key.split(".")[1] for key in missing.unexpected_keys} == {"unused"}
    x = torch.rand(1, 4, 8, 8)
    assert torch.equal(with_them(x), without(x))


def test_a_projection_is_one():
    """It keeps what lies in the subspace, is done at once, and is orthogonal."""
    basis = torch.rand(2, 3, 6, 8, dtype=torch.float64) - 0.4
    x = torch.rand(2, 5, 6, 8, dtype=torch.float64)
    inside = torch.einsum("bkhw,bck->bchw", basis, torch.rand(2, 5, 3, dtype=torch.float64))
    REFERENCE.check(project(inside, basis), inside)
    once = project(x, basis)
    REFERENCE.check(project(once, basis), once)
    rest = torch.einsum("bchw,bkhw->bck", x - once, basis)
    REFERENCE.check(rest, torch.zeros_like(rest))
    REFERENCE.check(once, project(x, basis, normalize=False))
    REFERENCE.check(once, explicit_projection(x, basis))


def test_a_projection_in_bfloat16_inverts_in_single_precision():
    basis, x = torch.rand(1, 16, 32, 32), torch.rand(1, 4, 32, 32)
    exact = project(x.double(), basis.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert project(x, basis).dtype == torch.float32
        FLOAT32_FORWARD.check(project(x, basis).double(), exact)
    low = project(x.bfloat16(), basis.bfloat16())
    assert low.dtype == torch.bfloat16
    exact = project(x.bfloat16().double(), basis.bfloat16().double())
    torch.testing.assert_close(low.double(), exact, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(
    "model, factor",
    [
        (lambda: CBDNet((2, 2, 2), 2), 4),
        (lambda: NBNet((2, 2, 2, 2), 2, 2), 8),
        (lambda: DrawnNBNet((2, 2, 2, 2), 2), 8),
        (lambda: DeamNet(2, 2, levels=3), 8),
    ],
    ids=["CBDNet", "NBNet", "NBNet as drawn", "DeamNet"],
)
def test_a_size_that_cannot_be_halved_is_refused_with_the_size_to_pad_to(model, factor):
    padded = "32x44" if factor == 4 else "32x48"
    with pytest.raises(InputError, match=rf"30x41.*multiples of {factor}\. Pad it to {padded}"):
        model()(torch.zeros(1, 4, 30, 41))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: CBDNet((4, 4)), r"widths=\(4, 4\) has 2 level\(s\); CBDNet has three"),
        (lambda: CBDNet(estimator_width=0), "estimator_width=0: a number of channels"),
        (lambda: NBNet((4,)), r"widths=\(4,\) has 1 level"),
        (lambda: NBNet(basis=0), "basis=0: a number of basis vectors must be 1 or more"),
        (lambda: DrawnNBNet((4, 0)), r"widths\[1\]=0"),
        (lambda: DeamNet(0), "width=0"),
        (lambda: DeamNet(levels=0), "levels=0: a number of levels must be 1 or more"),
        (lambda: DeamNet(iterations=-1), "iterations=-1"),
    ],
)
def test_what_cannot_be_a_network_is_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_su_net_is_a_quarter_of_u_net():
    """SU-Net: half of the widths; TSDN is an eighth of U-Net (facts, section 1)."""
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in make().parameters()) for make in (UNet, SUNet)]
    assert sizes == [7_760_484, 1_941_300]
    assert round(sizes[0] / 964_456, 4) == 8.0465
    assert round(3_882_600 / sizes[0], 4) == 0.5003


def test_xavier_s_normal_initialisation_is_deamnet_s():
    weight = DeamNet(32, levels=1).operator.out.weight.detach()
    expected = (2 / (9 * (32 + 32))) ** 0.5
    assert float(weight.std()) == pytest.approx(expected, rel=0.05)
