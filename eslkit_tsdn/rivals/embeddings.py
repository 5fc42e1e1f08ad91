"""1x1 convolutions that lift a small network's features to a large one's, while it trains."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eslkit.errors import InputError
from eslkit.seeding import seeded
from eslkit.surgery.depth import clone
from eslkit_tsdn.rivals.taps import features, find_taps, in_order, watched

__all__ = ["Embedded", "TapPair", "embedding_loss", "lifting_macs", "paired_taps", "quiet_copy"]

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

TapPair = tuple[str, str]
"""A module of the small network and the one of the large whose output it shall foretell."""


class Embedded(nn.Module):
    """A network together with one linear embedding (1x1, with bias) per tap.

    Args:
        network: the small one; it is held, not copied.
        taps: names of its modules.
        widths: (channels here, channels in the large network) per tap.
        dims: dimensions of the maps; 2 for images.
        seed: of the embeddings' weights.
    """

    def __init__(
        self,
        network: nn.Module,
        taps: Sequence[str],
        widths: Sequence[tuple[int, int]],
        *,
        dims: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.taps = network, tuple(taps)
        with seeded(seed):
            self.embeddings = nn.ModuleList(_CONV[dims - 1](a, b, 1) for a, b in widths)

    def forward(self, x: Tensor) -> Any:
        """The network's own output."""
        return self.network(x)

    @contextmanager
    def looking(self) -> Generator[Callable[[], tuple[Tensor, ...]]]:
        """While the network runs inside, look at its features; the function embeds them."""
        with watched(self.network, self.taps) as caught:
            yield lambda: self.embed(in_order(caught, self.taps, self.network))

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """The embedded features alone; what follows the last tap is not computed."""
        return self.embed(features(self.network, x, taps=self.taps))

    def embed(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Features lifted to the large network's widths."""
        return tuple(lift(each) for lift, each in zip(self.embeddings, maps, strict=True))


def embedding_loss(embedded: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """The sum over taps of the mean squared difference."""
    errors = [
        (ours.float() - theirs.float()).square().mean()
        for ours, theirs in zip(embedded, wanted, strict=True)
    ]
    return torch.stack(errors).sum()


def paired_taps(
    student: nn.Module, teacher: nn.Module, x: Tensor, *, taps: Sequence[TapPair] | None
) -> tuple[tuple[TapPair, ...], tuple[tuple[int, int], ...]]:
    """Which modules correspond to each other, and how many channels each has.

    Args:
        student: the small network.
        teacher: the large one.
        x: an input of both.
        taps: pairs of names; found in the encoders of both if left out.

    Returns:
        Pairs of names, and pairs of widths.

    Raises:
        InputError: no pairs, or maps of different sizes; also as `features`.
        UnsupportedError: nothing was found.
    """
    student, teacher = quiet_copy(student), quiet_copy(teacher)
    if taps is None:
        ours, theirs = find_taps(student, x), find_taps(teacher, x)
        if len(ours) != len(theirs):
            raise InputError(
                f"The encoders are not of one form: {', '.join(ours)} in the small network, "
                f"{', '.join(theirs)} in the large one. Pass taps=[(small, large), ...]."
            )
        taps = tuple(zip(ours, theirs, strict=True))
    if not taps:
        raise InputError("taps is empty: name one pair of modules at least.")
    with torch.no_grad():
        maps = [
            features(network, x, taps=[pair[i] for pair in taps])
            for i, network in enumerate((student, teacher))
        ]
    for (small, large), ours, theirs in zip(taps, *maps, strict=True):
        if ours.shape[2:] != theirs.shape[2:] or len(ours) != len(theirs):
            raise InputError(
                f"taps: {small!r} gives maps of {tuple(ours.shape)}, {large!r} of "
                f"{tuple(theirs.shape)}; only the channels may differ. Pair other modules."
            )
    widths = tuple((a.shape[1], b.shape[1]) for a, b in zip(*maps, strict=True))
    return tuple(taps), widths


def lifting_macs(
    student: nn.Module, teacher: nn.Module, x: Tensor, *, taps: Sequence[TapPair] | None
) -> int:
    """MACs of the embeddings for an input like `x`."""
    pairs, widths = paired_taps(student, teacher, x, taps=taps)
    with torch.no_grad():
        maps = features(quiet_copy(student), x, taps=[ours for ours, _ in pairs])
    return sum(
        len(each) * each[0, 0].numel() * small * large
        for each, (small, large) in zip(maps, widths, strict=True)
    )


def quiet_copy(network: nn.Module) -> nn.Module:
    """A copy to be looked at: in eval mode, on the CPU."""
    return clone(network).eval().cpu()
