"""Layers that keep their shape, taken out of a large model that the user brings.

What can go is read off the graph: a module whose result has the shape, and at best the very
channels, of what goes in (residual blocks, repeated convolutions), whatever its name. All that
stays keeps its weights (the paper's INIT2). An element of a container (`nn.Sequential`,
`nn.ModuleList`) is removed and those behind it move up, so that the keys are those of the same
class built with fewer elements; any other module becomes `nn.Identity`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from eslkit.errors import DepthError, InputError
from eslkit.graph.export import Call, World, run
from eslkit.graph.skeleton import skeleton
from eslkit.graph.trace import Traced, trace_fully
from eslkit.graph.values import Value, flat
from eslkit.surgery.inserted import Inserted

__all__ = ["RemovableLayer", "layers_towards", "removable_layers", "remove_layers"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class RemovableLayer:
    """A module, with what follows it in its container and belongs to it, that can be taken out."""

    name: str
    """Qualified name of the module."""
    modules: tuple[str, ...]
    """All modules that go: the module, then the norm and the activation behind it."""
    level: int
    """Resolution level, 0 = full resolution."""
    coupled: bool
    """Whether the channels that come out are those that went in, as in a residual block. Where they
    are not, what follows reads other channels than it was trained for."""
    parameters: int
    element: bool
    """Whether it is an element of a container, the others of which move up."""


def removable_layers(model: nn.Module, *, example_inputs: Any = None) -> tuple[RemovableLayer, ...]:
    """The layers that can be taken out, innermost first, the last of a container first.

    In this order they can be removed one after the other, by the names they have here.

    Args:
        model: any module; it is not touched.
        example_inputs: as for `trace`.

    Raises:
        TraceError: the model did not run on the example inputs.

    Example:
        >>> from torch import nn
        >>> from eslkit.surgery.layers import removable_layers
        >>> layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()]
        >>> layers += [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3)]
        >>> for layer in removable_layers(nn.Sequential(*layers)):
        ...     print(layer.modules)
        ('2', '3')
    """
    traced = trace_fully(model, example_inputs=example_inputs)
    return tuple(_Search(model, traced).found())


class _Search:
    def __init__(self, model: nn.Module, traced: Traced) -> None:
        self.model = model
        self.traced = traced
        self.modules = dict(model.named_modules())
        self.calls: dict[str, list[Call]] = defaultdict(list)
        for call in traced.exported.calls:
            self.calls[call.path].append(call)
        self.first: dict[str, fx.Node] = {}
        for node in traced.resolution.layers:
            path = traced.exported.owners[node]
            for prefix in _prefixes(path):
                self.first.setdefault(prefix, node)
        self.order = {node: i for i, node in enumerate(traced.resolution.layers)}

    def found(self) -> list[RemovableLayer]:
        layers = list(self._below("", self.model))
        return sorted(layers, key=lambda layer: (-layer.level, -self.order[self.first[layer.name]]))

    def _below(self, path: str, module: nn.Module) -> Iterator[RemovableLayer]:
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            if inner not in self.modules or isinstance(child, Inserted):
                continue
            yield from self._at(inner, child, element=_is_container(module))

    def _at(self, path: str, module: nn.Module, *, element: bool) -> Iterator[RemovableLayer]:
        inside = list(self._below(path, module))
        if not self._keeps_shape(path) or isinstance(module, _CONTAINERS):
            yield from inside
            return
        coupled = self._coupled(path)
        if inside and not element and not coupled:
            yield from inside
            return
        modules = (path, *self._followers(path)) if element and not inside else (path,)
        yield RemovableLayer(
            name=path,
            modules=modules,
            level=self.traced.resolution.level(self.first[path]),
            coupled=coupled,
            parameters=sum(
                p.numel() for name in modules for p in nn.Module.parameters(self.modules[name])
            ),
            element=element,
        )

    def _keeps_shape(self, path: str) -> bool:
        """Called once, with a layer inside, and one tensor in and one of its shape out."""
        calls = self.calls[path]
        if path not in self.first or len(calls) != 1:
            return False
        call, shape = calls[0], self.traced.exported.shape
        ends = (*call.inputs, *call.outputs)
        return call.simple and len(ends) == 2 and shape(ends[0]) == shape(ends[1])

    def _coupled(self, path: str) -> bool:
        call, labels = self.calls[path][0], self.traced.labels
        ends = [labels.values.get(node) for node in (call.inputs[0], call.outputs[0])]
        if not all(isinstance(end, Value) and len(end.parts) == 1 for end in ends):
            return False
        before, behind = (labels.atoms.find(flat(end.parts[0])) for end in ends if end)
        return len(before) == len(behind) and bool((before == behind).all())

    def _followers(self, path: str) -> list[str]:
        """Norms and activations behind a single layer in its container."""
        parent, _, name = path.rpartition(".")
        container = self.model.get_submodule(parent)
        if not isinstance(container, nn.Sequential):
            return []
        names = list(dict(container.named_children()))
        found: list[str] = []
        for other in names[names.index(name) + 1 :]:
            inner = f"{parent}.{other}" if parent else other
            if inner in self.first or not self._same_in_and_out(inner):
                break
            found.append(inner)
        return found

    def _same_in_and_out(self, path: str) -> bool:
        shape = self.traced.exported.shape
        return all(
            call.simple and shape(call.inputs[0]) == shape(call.outputs[0])
            for call in self.calls[path]
        )


def _prefixes(path: str) -> Iterator[str]:
    names = path.split(".")
    return (".".join(names[:i]) for i in range(1, len(names) + 1))


def _is_container(module: nn.Module) -> bool:
    """A torch container, or a module whose children are numbered like the elements of one."""
    names = [name for name, _ in module.named_children()]
    return isinstance(module, _CONTAINERS) or all(name.isdigit() for name in names)


def remove_layers(
    model: nn.Module, names: Sequence[str], *, example_inputs: Any = None
) -> nn.Module:
    """A copy of the model without these layers; all that stays keeps its weights (INIT2).

    Args:
        model: any module; it is not touched.
        names: of layers, as `removable_layers` lists them for this model.
        example_inputs: as for `trace`.

    Raises:
        InputError: no such layer, or none that can be removed; the message lists them.
        DepthError: the model's own code does not run without the layers, or runs others.
    """
    if isinstance(names, str):
        raise InputError(f"names={names!r} is a string; pass a sequence: ({names!r},)")
    traced = trace_fully(model, example_inputs=example_inputs)
    known = {layer.name: layer for layer in _Search(model, traced).found()}
    odd = [name for name in names if name not in known]
    if odd:
        listed = ", ".join(known) or "none"
        raise InputError(
            f"{odd[0]!r} is no layer of {type(model).__name__} that can be removed (its result has "
            f"another shape than its input, or it is called more than once); there are: {listed}"
        )
    made = skeleton(model, lambda tensor: tensor.detach().clone())
    before = {id(module): name for name, module in made.named_modules()}
    gone = {name: known[name] for name in dict.fromkeys(names)}
    paths = {path for layer in gone.values() for path in layer.modules}
    parents: dict[int, tuple[nn.Module, list[str]]] = {}
    for layer in gone.values():
        for path in layer.modules:
            parent, _, child = path.rpartition(".")
            owner = made.get_submodule(parent)
            if layer.element:
                parents.setdefault(id(owner), (owner, []))[1].append(child)
            else:
                setattr(owner, child, nn.Identity())
    for owner, children in parents.values():
        _take_elements(owner, children)
    _prove_without(made, traced, before, paths)
    return made


def _take_elements(container: nn.Module, gone: Sequence[str]) -> None:
    """Remove children; numbered ones behind them move up."""
    children = container._modules  # pyright: ignore[reportPrivateUsage]
    kept = [(name, child) for name, child in children.items() if name not in gone]
    numbers: dict[str, Iterator[int]] = {}
    for name in children:
        prefix, number = _numbered(name)
        if number is not None and prefix not in numbers:
            numbers[prefix] = iter(range(number, number + len(children)))
    children.clear()
    for name, child in kept:
        prefix, number = _numbered(name)
        children[name if number is None else f"{prefix}{next(numbers[prefix])}"] = child


def _numbered(name: str) -> tuple[str, int | None]:
    found = re.fullmatch(r"(.*?)(\d+)", name)
    return (found[1], int(found[2])) if found else (name, None)


def _prove_without(made: nn.Module, traced: Traced, before: dict[int, str], gone: set[str]) -> None:
    """The model runs, calls all modules that are left in the same order, and returns the shapes."""
    name = type(made).__name__
    world = World(traced.exported.runner)
    try:
        again = run(world.copy(made), traced.inputs, traced.keywords, world=world)
    except Exception as error:  # the user's code may raise anything
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise DepthError(
            f"{name} does not run without {', '.join(sorted(gone))}: {text}. Its own code counts "
            "on them; leave them in, or build the smaller model and inherit from this one"
        ) from error
    old = {new: before[id(module)] for new, module in made.named_modules() if id(module) in before}
    want = [
        call.path
        for call in traced.exported.calls
        if not any(prefix in gone for prefix in _prefixes(call.path))
    ]
    have = [old[call.path] for call in again.calls if call.path in old]
    if want != have:
        missed = Counter(want) - Counter(have)
        raise DepthError(
            f"without {', '.join(sorted(gone))}, {name} does not call what is left as before "
            f"({', '.join(list(missed)[:3]) or 'another order'}): its own code counts its layers"
        )
    shapes = [[e.shape(node) for node in e.outputs] for e in (traced.exported, again)]
    if shapes[0] != shapes[1]:
        raise DepthError(f"without {', '.join(sorted(gone))}, {name} returns {shapes[1]}")


def layers_towards(
    model: nn.Module, target: nn.Module, *, example_inputs: Any = None
) -> tuple[str, ...]:
    """Which layers to remove from a large model so that its keys are those of a smaller one.

    Containers lose as many elements as the target has fewer, the last ones that can go.

    Args:
        model: the large model; it is not touched.
        target: a smaller model of the same class; its widths may differ.
        example_inputs: with which `model` runs, as for `trace`.

    Returns:
        Names for `remove_layers`, innermost first.

    Raises:
        DepthError: no choice of layers leads to the target's keys; the first difference is named.
    """
    keys = list(target.state_dict())
    sizes = {name: len(list(nn.Module.children(m))) for name, m in target.named_modules()}
    surplus = {
        name: len(list(nn.Module.children(module))) - sizes.get(name, 0)
        for name, module in model.named_modules()
    }
    wanted = {name for name, _ in target.named_modules()}
    chosen: list[str] = []
    for layer in removable_layers(model, example_inputs=example_inputs):
        parent = layer.name.rpartition(".")[0]
        inside = any(layer.name.startswith(f"{name}.") for name in chosen)
        if inside or (parent and parent not in wanted):
            continue
        if layer.element and surplus[parent] >= len(layer.modules):
            surplus[parent] -= len(layer.modules)
            chosen.append(layer.name)
        elif not layer.element and not any(key.startswith(f"{layer.name}.") for key in keys):
            chosen.append(layer.name)
    made = remove_layers(model, chosen, example_inputs=example_inputs) if chosen else model
    have = list(made.state_dict())
    if have != keys:
        odd = next((k for k in (*have, *keys) if (k in have) != (k in keys)), "another order")
        side = "the target" if odd in keys else "the model that is left"
        raise DepthError(
            f"{type(model).__name__} does not become the target by removing layers that keep their "
            f"shape: {odd} is only in {side}"
        )
    return tuple(chosen)
