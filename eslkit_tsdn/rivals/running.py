"""What all methods have in common: parts that train one after the other in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from torch import Tensor, nn

from eslkit.errors import InputError, StoreError
from eslkit.files import write_atomically
from eslkit.surgery.depth import clone
from eslkit_tsdn.budget import Budget, Machine
from eslkit_tsdn.data.source import Source
from eslkit_tsdn.fitting import Listener, fit
from eslkit_tsdn.losses import Loss

__all__ = ["Frozen", "Method", "Run", "divided", "in_training"]

METHOD = "method.json"


class Method(BaseModel):
    """Which method a folder belongs to, and what it started from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: int = 1
    """Version of this form."""
    name: str
    """The function."""
    settings: dict[str, JsonValue]
    """Its settings, beside those of the trainings."""
    networks: dict[str, str]
    """SHA-256 of the weights of each network that it was given, by what it is."""


@dataclass(frozen=True)
class Run:
    """One method's trainings: the data, how long, and where they are kept.

    Args:
        method: name of the method.
        source: the training batches.
        budget: of all trainings together.
        seed: of all of them.
        folder: gets a file that says which method this is, and a folder for each part; None
            keeps nothing.
        listener: is told how many of all iterations are made.
        machine: where it runs.
        loss: of the network and a batch; None for L1 on the image of every stage.
    """

    method: str
    source: Source
    budget: Budget
    seed: int = 0
    folder: Path | None = None
    listener: Listener | None = None
    machine: Machine | None = None
    loss: Loss | None = None

    def __post_init__(self) -> None:
        """Refuse what `fit` would, before anything is kept."""
        if self.loss is not None and self.budget.weights is not None:
            raise InputError(
                f"weights={self.budget.weights} are factors of the default loss, L1 on every "
                "stage: leave them out, and weigh the stages in your own loss."
            )

    def claim(self, networks: Mapping[str, nn.Module], **settings: Any) -> None:
        """Take the folder for this method, or see that it is this one's already.

        Raises:
            StoreError: it holds another method, other settings or other networks.
        """
        if self.folder is None:
            return
        hashes = {name: weights_hash(network) for name, network in networks.items()}
        settings = {**settings, "weights": self.budget.weights}  # which own losses look at
        now = Method(name=self.method, settings=settings, networks=hashes)
        path = self.folder / METHOD
        if not path.is_file():
            write_atomically(path, now.model_dump_json(indent=2).encode())
            return
        try:
            before = Method.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise StoreError(
                f"{path} cannot be read as the settings of a method. It was changed or written by "
                "another version; choose another folder."
            ) from error
        if before != now:
            raise StoreError(
                f"{self.folder} holds {_difference(before, now)}. Use the same again, or choose "
                "another folder."
            )

    def fit(
        self,
        network: nn.Module,
        *,
        part: str | None = None,
        iterations: int | None = None,
        done: int = 0,
        loss: Loss | None = None,
        trainable: Collection[str] | None = None,
        looks_inside: bool = False,
    ) -> None:
        """Train a network in place, as one part of the method.

        Args:
            network: what is trained.
            part: its folder in the method's folder; None for the folder itself.
            iterations: of this part; all of the budget's if left out.
            done: iterations of the parts before, for the listener.
            loss: as for `fitting.fit`; the method's own if left out.
            trainable: as for `fitting.fit`.
            looks_inside: whether the loss looks at maps inside the network, which a compiled
                one does not show: such a part is not compiled.
        """
        changes: dict[str, object] = {} if iterations is None else {"iterations": iterations}
        if loss is not None:
            changes["weights"] = None
        if looks_inside:
            changes["compiled"] = False
        tell = self.listener
        listener = None if tell is None else lambda update, value: tell(done + update, value)
        fit(
            network,
            self.source,
            budget=self.budget.model_copy(update=changes),
            loss=loss or self.loss,
            seed=self.seed,
            folder=self.folder if part is None or self.folder is None else self.folder / part,
            listener=listener,
            trainable=trainable,
            machine=self.machine,
        )


class Frozen:
    """A network that is only asked: a copy in eval mode, on the device of what it is shown.

    Args:
        network: is copied and not touched.
        channels_last: memory layout of its convolutions.
    """

    def __init__(self, network: nn.Module, *, channels_last: bool = True) -> None:
        self.network = clone(network).eval().requires_grad_(False)
        if channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device: torch.device | None = None

    def at(self, x: Tensor) -> nn.Module:
        """The network, on the device of `x`."""
        if self._device != x.device:
            self.network.to(x.device)
            self._device = x.device
        return self.network


@contextmanager
def in_training(network: nn.Module) -> Generator[None]:
    """Training mode for a network that came in eval mode; afterwards every layer as it was.

    `fit` does so for what it is given; this is for a network inside that.
    """
    modes = {module: module.training for module in network.modules()}
    if not network.training:
        network.train()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def divided(iterations: int, *, parts: int) -> tuple[int, ...]:
    """Iterations of each of several parts: as even as can be, the last ones longer.

    Raises:
        InputError: fewer iterations than parts.
    """
    if iterations < parts:
        raise InputError(
            f"iterations={iterations} cannot be divided among {parts} trainings; give one to each "
            "at least."
        )
    short, longer = divmod(iterations, parts)
    return tuple(short + (i >= parts - longer) for i in range(parts))


def weights_hash(network: nn.Module) -> str:
    """SHA-256 of names, dtypes, shapes and bits of all weights."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _difference(before: Method, now: Method) -> str:
    if before.name != now.name:
        return f"a training by {before.name}, not by {now.name}"
    pairs: list[tuple[str, Callable[[Method], Mapping[str, object]]]] = [
        ("settings", lambda method: method.settings),
        ("starting weights", lambda method: method.networks),
    ]
    for what, read in pairs:
        old, new = read(before), read(now)
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                if what == "settings":
                    change = f"{name}={old.get(name)!r}, now {new.get(name)!r}"
                    return f"a training by {now.name} with other settings ({change})"
                return f"a training by {now.name} that began with another {name} (other weights)"
    return f"a training by {now.name} of another version"
