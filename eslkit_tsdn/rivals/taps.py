"""Looking into a network while it runs: what comes out of its encoder's levels.

Tap: a module by name, whose output is looked at, or replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eslkit.errors import InputError, TraceError, UnsupportedError
from eslkit.surgery.depth import clone

__all__ = ["features", "find_taps", "in_order", "num_descents", "reached", "replaced", "watched"]


class _Output(NamedTuple):
    name: str
    map: Tensor
    version: int  # torch's count of changes in place: an activation may be one


class _Enough(Exception):  # noqa: N818  no error: it ends a forward pass early
    pass


@contextmanager
def watched(
    network: nn.Module, taps: Sequence[str], *, stop: bool = False
) -> Generator[dict[str, Any]]:
    """Collect the outputs of modules while the network runs.

    Args:
        network: any module.
        taps: names of its modules.
        stop: end the forward pass as soon as all of them have run; call `features` for that.

    Yields:
        Output by tap, filled while the network runs; of a module called again, the last.

    Raises:
        InputError: a name that is no module.
    """
    caught: dict[str, Any] = {}

    def catch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            caught[name] = output
            if stop and len(caught) == len(taps):
                raise _Enough

        return hook

    with ExitStack() as stack:
        for name in taps:
            handle = _module(network, name).register_forward_hook(catch(name))
            stack.callback(handle.remove)
        yield caught


def features(network: nn.Module, x: Tensor, *, taps: Sequence[str]) -> tuple[Tensor, ...]:
    """What comes out of some modules; what follows the last of them is not computed.

    Args:
        network: any module, in the mode that it is in.
        x: its input.
        taps: names of modules.

    Returns:
        Outputs in the order of `taps`.

    Raises:
        InputError: a name that is no module, or one that did not run or gave no tensor.
    """
    with watched(network, taps, stop=True) as caught, suppress(_Enough):
        network(x)
    return in_order(caught, taps, network)


def in_order(
    caught: Mapping[str, Any], taps: Sequence[str], network: nn.Module
) -> tuple[Tensor, ...]:
    """What `watched` caught, as a tuple.

    Raises:
        InputError: a module did not run, or gave no tensor.
    """
    kind = type(network).__name__
    for name in taps:
        if name not in caught:
            raise InputError(f"taps: {name!r} of the {kind} did not run; choose another module.")
        if not isinstance(caught[name], Tensor):
            raise InputError(
                f"taps: {name!r} of the {kind} gives a {type(caught[name]).__name__}, no tensor; "
                "choose a module inside it."
            )
    return tuple(caught[name] for name in taps)


@contextmanager
def replaced(network: nn.Module, outputs: Mapping[str, Tensor]) -> Generator[None]:
    """Let modules return given tensors instead of running.

    Args:
        network: whose modules; they are as before afterwards.
        outputs: what each module returns.

    Raises:
        InputError: a name that is no module.
    """
    modules = {name: _module(network, name) for name in outputs}
    with ExitStack() as stack:
        for name, module in modules.items():
            vars(module)["forward"] = _returns(outputs[name])
            stack.callback(vars(module).pop, "forward")
        yield


def _returns(output: Tensor) -> Callable[..., Tensor]:
    return lambda *args, **kwargs: output


def _module(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError:
        names = [each for each, _ in network.named_children()]
        raise InputError(
            f"taps: the {type(network).__name__} has no module {name!r}; it has "
            f"{', '.join(names)} and what is inside them."
        ) from None


def find_taps(network: nn.Module, x: Tensor) -> tuple[str, ...]:
    """The last module of each level of the encoder, down to the bottleneck.

    The network runs once on a copy. On the way down, what comes out last before the maps get
    smaller is what the skip connections carry; the last of the smallest maps is the bottleneck's.
    A network of several stages has such a descent in each. Where a map goes through modules
    unchanged, the innermost of them is taken. Maps of a single position are not counted where a
    global pooling made them.

    Args:
        network: a U-shaped network; it is not touched.
        x: an input, (batch, channels, ...).

    Returns:
        Names of modules, in the order in which they run.

    Raises:
        TraceError: the network did not run on the input.
        UnsupportedError: its maps never get smaller and larger again.
    """
    names = list(dict.fromkeys(name for name, _, _ in _descents(_outputs(network, x))))
    if len(names) < 2:
        raise UnsupportedError(
            f"No encoder was found in the {type(network).__name__}: no module gives smaller maps "
            "that later grow again. Pass taps= with the names of modules."
        )
    return tuple(names)


def num_descents(network: nn.Module, x: Tensor) -> int:
    """How many encoders there are in a row: 1 for a U-Net, 2 for a TSDN."""
    return len({number for _, _, number in _descents(_outputs(network, x))})


def _outputs(network: nn.Module, x: Tensor) -> list[_Output]:
    """The maps that modules give, in the order in which they finish."""
    copied = clone(network).eval()
    outputs: list[_Output] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == x.ndim:
                outputs.append(_Output(name, output, output._version))

        return hook

    for name, module in copied.named_modules():
        if name:
            module.register_forward_hook(watch(name))
    try:
        with torch.no_grad():
            copied(x)
    except Exception as error:
        raise TraceError(
            f"The {type(network).__name__} did not run on an input of {tuple(x.shape)}: {error}"
        ) from error
    sizes = [each.map[0, 0].numel() for each in outputs]
    # A map of one position is a gate's (global pooling), unless halving has led to it.
    least = min((size for size in sizes if size > 1), default=1)
    halved = least <= 2 ** (x.ndim - 2)
    return [each for each, size in zip(outputs, sizes, strict=True) if size > 1 or halved]


def _descents(outputs: Sequence[_Output]) -> list[tuple[str, int, int]]:
    """(module, positions of its map, number of the descent) where maps change their size.

    The last map before a smaller one, and the last of the smallest before a larger one.
    """
    first_to_give: dict[tuple[int, int], str] = {}
    found: list[tuple[str, int, int]] = []
    down, descent = False, 0
    for now, after in pairwise(outputs):
        giver = first_to_give.setdefault((id(now.map), now.version), now.name)
        size, next_size = now.map[0, 0].numel(), after.map[0, 0].numel()
        if next_size < size:
            found.append((giver, size, descent))
            down = True
        elif next_size > size and down:
            found.append((giver, size, descent))
            down, descent = False, descent + 1
    # A descent that never rises again is no encoder of a U.
    return [each for each in found if each[2] < descent]


def reached(network: nn.Module, x: Tensor, *, taps: Sequence[str]) -> frozenset[str]:
    """The parameters on which the outputs of modules depend, by name.

    Args:
        network: any module; it is not touched.
        x: an input.
        taps: names of modules.

    Raises:
        InputError: as `features`.
    """
    copied = clone(network).train()
    names, parameters = zip(*copied.named_parameters(), strict=True)
    for parameter in parameters:
        parameter.requires_grad_(True)
    total = sum(each.sum() for each in features(copied, x, taps=taps))
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)  # type: ignore[arg-type]
    return frozenset(name for name, each in zip(names, gradients, strict=True) if each is not None)
