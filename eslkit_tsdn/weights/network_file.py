"""A network as one file: weights, and what is needed to build it again.

The form is safetensors, with three entries in the file's metadata beside what the writer adds:
`eslkit_network` (the version of the form, 1), `model` (a name of `ARCHITECTURES`) and `arguments`
(JSON: what the class is called with, such as `{"widths": [16, 32, 64, 128], "stages": 2}`).
A file without them, a PyTorch state_dict or a Lightning checkpoint serves as well: which network
it belongs to is then read from the names and shapes of its tensors. Nothing is unpickled but
tensors and plain values.
"""

from __future__ import annotations

import json
import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from eslkit.errors import InputError
from eslkit.files import write_atomically
from eslkit.store import tensors_of
from eslkit_tsdn.models.architectures import ARCHITECTURES, Architecture

__all__ = [
    "NETWORK_FILE",
    "describe_network",
    "from_file",
    "inferred",
    "read_metadata",
    "recognised",
    "save_network",
]

NETWORK_FILE = "network.safetensors"
"""The name under which a training's folder keeps its network."""

_VERSION = "1"
_OWN_KEYS = ("eslkit_network", "model", "arguments")
_PREFIXES = ("network.", "module.", "_orig_mod.")  # Lightning's module, DataParallel, compile

# What torch's restricted unpickler ends in on damaged and foreign files.
_UNPICKLING = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError),
    *(AttributeError, AssertionError, OverflowError, struct.error),
)


def save_network(
    network: nn.Module, path: str | Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a network as one safetensors file that says how to build it.

    Args:
        network: of a class in `ARCHITECTURES`; it is not touched.
        path: where; the folder is made when it is missing.
        metadata: what else is worth knowing (how it was trained, its licence), text by name.

    Raises:
        InputError: the network is of another class, or changed in form (a level inserted), or
            an entry of `metadata` has a name that the form needs.
        StoreError: the file cannot be written.
    """
    notes = dict(metadata or {})
    taken = sorted(notes.keys() & set(_OWN_KEYS))
    if taken:
        raise InputError(f"metadata names {taken}, which the file's own form needs; rename them.")
    tensors = tensors_of(network)
    name = next((n for n, each in ARCHITECTURES.items() if type(network) is each.build), None)
    arguments = None if name is None else _fitting_arguments(ARCHITECTURES[name], tensors)
    if name is None or arguments is None:
        raise InputError(
            f"This {type(network).__name__} cannot be built again from a name and a few arguments, "
            f"so it cannot be saved as a network; known are {', '.join(ARCHITECTURES)}, in any "
            "widths but without inserted levels. Keep it in the folder of its run, or save its "
            "state_dict."
        )
    own = {"eslkit_network": _VERSION, "model": name, "arguments": json.dumps(arguments)}
    write_atomically(Path(path), safetensors.torch.save(tensors, metadata={**own, **notes}))


def describe_network(network: nn.Module) -> str:
    """A network in a few words: class, arguments, parameters."""
    name = type(network).__name__
    architecture = next((a for a in ARCHITECTURES.values() if a.build is type(network)), None)
    arguments = (
        None if architecture is None else _fitting_arguments(architecture, tensors_of(network))
    )
    told = f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters"
    if arguments and "widths" in arguments:
        widths = "-".join(map(str, arguments["widths"]))
        stages = f" x {arguments['stages']} stages" if "stages" in arguments else ""
        return f"{name} {widths}{stages}, {told}"
    return f"{name}, {told}"


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a safetensors file, empty where there is none.

    Raises:
        InputError: the file is absent or no safetensors file.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist; pass a file of weights (.safetensors, .pt) or a run's folder."
        ) from None
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} cannot be read as a safetensors file: {error}.") from error


# Files


def from_file(path: Path, *, model: str | None) -> nn.Module:
    """The network of a file; as `eslkit_tsdn.weights.load_network` for files."""
    if path.suffix == ".safetensors":
        metadata = read_metadata(path)
        tensors = safetensors.torch.load_file(path)
        if model is None and "eslkit_network" in metadata:
            return _named(tensors, metadata, path)
    else:
        tensors = _unpickled(path)
    return recognised(tensors, model=model, where=path)


def _named(tensors: dict[str, Tensor], metadata: Mapping[str, str], path: Path) -> nn.Module:
    """The network that a file's metadata names."""
    if metadata["eslkit_network"] != _VERSION:
        raise InputError(
            f"{path} is a network file of version {metadata['eslkit_network']!r}, this eslkit "
            f"reads version {_VERSION}; update eslkit."
        )
    try:
        architecture = ARCHITECTURES[metadata["model"]]
        network = _build(architecture, json.loads(metadata["arguments"]))
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, InputError) as error:
        raise InputError(
            f"{path} names the network {metadata.get('model')!r} with "
            f"{metadata.get('arguments')}, which does not fit its tensors ({error}). Pass model= "
            f"(--model), one of {', '.join(ARCHITECTURES)}, to go by the shapes instead."
        ) from error
    return network


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file: a state_dict, or a checkpoint around one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what counts is the outcome
            held: object = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist; pass a file of weights (.safetensors, .pt) or a run's folder."
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except _UNPICKLING as error:
        raise InputError(
            f"{path} is no PyTorch file of plain tensors, and nothing else is unpickled. Save the "
            "weights with torch.save(network.state_dict(), ...) or save_network(network, ...)."
        ) from error
    if isinstance(held, Mapping) and isinstance(held.get("state_dict"), Mapping):
        held = held["state_dict"]
    if not isinstance(held, Mapping) or not held:
        raise InputError(f"{path} holds a {type(held).__name__}; expected a state_dict of tensors.")
    tensors = {str(key): value for key, value in cast(Mapping[object, object], held).items()}
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    strangers = [key for key, value in tensors.items() if not isinstance(value, Tensor)]
    if strangers:
        raise InputError(
            f"{path}: {strangers[0]} is no tensor; expected a state_dict, or a dictionary with one "
            "under 'state_dict'."
        )
    return cast(dict[str, Tensor], tensors)


def recognised(tensors: dict[str, Tensor], *, model: str | None, where: Path) -> nn.Module:
    """The network that tensors belong to, or an error that says what they are."""
    network = inferred(tensors, model=model)
    if network is not None:
        return network
    first = ", ".join(f"{key} {tuple(tensors[key].shape)}" for key in sorted(tensors)[:3])
    wanted = f"a {model}" if model else f"one of {', '.join(ARCHITECTURES)}"
    raise InputError(
        f"{where} holds {len(tensors)} tensors ({first}, ...) that are not those of {wanted}; "
        "expected the state_dict of such a network, in any widths."
    )


def inferred(tensors: dict[str, Tensor], *, model: str | None) -> nn.Module | None:
    """The network whose state_dict has these names and shapes; None where there is none."""
    for name, architecture in ARCHITECTURES.items():
        if model in (None, name):
            arguments = _fitting_arguments(architecture, tensors)
            if arguments is not None:
                network = _build(architecture, arguments)
                network.load_state_dict(tensors)
                return network
    return None


def _fitting_arguments(
    architecture: Architecture, tensors: Mapping[str, Tensor]
) -> dict[str, Any] | None:
    """The arguments that give exactly these names and shapes; None where none do."""
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    try:
        arguments = architecture.arguments(shapes)
        with torch.device("meta"):
            built = architecture.build(**arguments)
    except (KeyError, IndexError, InputError):
        return None
    there = {key: tuple(tensor.shape) for key, tensor in built.state_dict().items()}
    return arguments if there == shapes else None


def _build(architecture: Architecture, arguments: Mapping[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # the caller's random state is left alone
        return architecture.build(**arguments)
