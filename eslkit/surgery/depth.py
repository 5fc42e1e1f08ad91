"""A level inserted into the bottleneck, and taken out again in steps (the paper's LSL)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from eslkit.errors import DepthError, InputError
from eslkit.graph.bottleneck import Bottleneck, Place, find_bottlenecks, op_name
from eslkit.graph.export import skeleton
from eslkit.graph.trace import Traced, trace_fully
from eslkit.graph.values import Value
from eslkit.surgery.level import Inserted, Level, LevelStyle, layer_of

__all__ = [
    "clone",
    "deepen",
    "flatten_parts",
    "flatten_step",
    "inserted_at",
    "inserted_levels",
    "setattr_child",
    "style_of",
]


_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def clone(model: nn.Module) -> nn.Module:
    """A deep copy that also copies tensors which other code left on the modules."""
    return skeleton(model, lambda tensor: tensor.detach().clone())


def deepen(
    model: nn.Module, *, levels: int = 1, init: str = "random", example_inputs: Any = None
) -> nn.Module:
    """A copy of the model with more levels, each inside the bottleneck that it finds.

    Args:
        model: any encoder-decoder; it is not touched.
        levels: how many levels to insert, one inside the other.
        init: "preserve" makes the new level the identity; anything else draws it afresh.
        example_inputs: as for `trace`.

    Raises:
        InputError: a negative number of levels.
        DepthError: the model has no bottleneck, or no place in it that a level fits.
    """
    if levels < 0:
        raise InputError(f"depth={levels}: levels can be inserted by a number from 0")
    made = clone(model)
    for _ in range(levels):
        traced = trace_fully(made, example_inputs=example_inputs)
        bottlenecks = find_bottlenecks(traced)
        if not bottlenecks:
            raise DepthError(
                f"{type(model).__name__} has no bottleneck: no region of lowest resolution between "
                "a reduction and an up-sampling, at the size of the example inputs"
            )
        for bottleneck in bottlenecks:
            _insert(made, traced, bottleneck, init)
    return made


def _insert(model: nn.Module, traced: Traced, bottleneck: Bottleneck, init: str) -> None:
    place = next(iter(bottleneck.places), None)
    if place is None:
        raise DepthError(
            f"{type(model).__name__}: in its bottleneck ({bottleneck.positions} positions) no "
            "single edge separates what goes in from what comes out, or no module that takes one "
            "tensor and returns one lies at it"
        )
    style = style_of(traced, bottleneck, place, model)
    body = model.get_submodule(place.path)
    with torch.random.fork_rng(devices=[]):
        level = Level(style, place.width, 2 * place.width)
    if init == "preserve":
        _make_identity(level, style, place.path)
    like = next(iter(body.parameters()), next(iter(model.parameters()), torch.zeros(())))
    level.to(device=like.device, dtype=like.dtype)
    level.train(body.training)
    parent, _, name = place.path.rpartition(".")
    setattr_child(model.get_submodule(parent), name, Inserted(body, level, before=place.before))


def setattr_child(parent: nn.Module, name: str, child: nn.Module) -> None:
    """Put a module in the place of a child; containers keep their order."""
    parent._modules[name] = child  # pyright: ignore[reportPrivateUsage]


def style_of(traced: Traced, bottleneck: Bottleneck, place: Place, model: nn.Module) -> LevelStyle:
    """Read off the graph how the model builds its innermost level."""
    dims = traced.resolution.dims
    region = bottleneck.nodes
    convs = [n for n in region if op_name(n) == "convolution" and n.args[8] == 1]
    weights = [traced.exported.shape(n.all_input_nodes[1]) for n in convs]
    square = [w[2] for w in weights if w[2] % 2 == 1 and len(set(w[2:])) == 1]
    activations = (layer_of(op_name(n), n.args) for n in region)
    activation = next((made for made in activations if made is not None), None)
    norm, groups = _norm_of(traced, bottleneck, model)
    below = [-(-size // 2) for size in traced.exported.shape(place.node)[2:]]
    if norm.startswith("instance") and math.prod(below) == 1:
        norm, groups = "group", 1  # an instance norm over a single position would give zero
    return LevelStyle(
        dims=dims,
        kernel=max(square, default=3),
        bias=any(n.args[2] is not None for n in convs) or not convs,
        activation=activation or nn.ReLU,
        norm=norm,
        norm_groups=groups,
        down=_down_of(traced, bottleneck),
        up=_up_of(bottleneck, dims),
        merge=_merge_of(traced, bottleneck),
    )


def _norm_of(traced: Traced, bottleneck: Bottleneck, model: nn.Module) -> tuple[str, int]:
    for node in bottleneck.nodes:
        name = op_name(node)
        if "batch_norm" in name:
            owner = model.get_submodule(traced.exported.owners[node])
            if isinstance(owner, _INSTANCE_NORMS):
                return ("instance-affine" if owner.affine else "instance"), 1
            return "batch", 1
        if name == "native_group_norm":
            groups = node.args[6]
            return "group", groups if isinstance(groups, int) else 1
        if name == "native_layer_norm":
            return "group", 1
    return "none", 1


def _down_of(traced: Traced, bottleneck: Bottleneck) -> str:
    for node in bottleneck.entries:
        name = op_name(node)
        if "max_pool" in name or any("max_pool" in op_name(s) for s in node.all_input_nodes):
            return "max"
        if "avg_pool" in name:
            return "average"
    return "conv"


def _up_of(bottleneck: Bottleneck, dims: int) -> str:
    for node in bottleneck.exits:
        for user in node.users:
            name = op_name(user)
            if name == "convolution" and user.args[6]:
                return "transposed"
            if "upsample" in name:
                linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[dims]
                return "nearest" if "nearest" in name else linear
    return "transposed"


def _merge_of(traced: Traced, bottleneck: Bottleneck) -> str:
    """How the first join behind the bottleneck's up-sampling is made."""
    pending = [user for node in bottleneck.exits for user in node.users]
    seen = set(bottleneck.nodes)
    while pending:
        node = pending.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if op_name(node) == "cat":
            return "concat"
        values = [traced.labels.values.get(s) for s in node.all_input_nodes]
        same = [v for v in values if isinstance(v, Value) and v.shape and not v.weight]
        if op_name(node) == "add" and len(same) == 2 and same[0].shape == same[1].shape:
            return "add"
        pending.extend(node.users)
    return "concat"


def _make_identity(level: Level, style: LevelStyle, path: str) -> None:
    activation = style.activation()
    if style.norm != "none" or not isinstance(activation, (nn.ReLU, nn.ReLU6)):
        raise DepthError(
            f"init='preserve': a level at {path} with {type(activation).__name__} and norm "
            f"{style.norm!r} cannot be the identity (applied twice, they change what they gave); "
            "use init='random' for the level"
        )
    width = level.entry.conv.out_channels
    with torch.no_grad():
        nn.init.dirac_(level.entry.conv.weight)
        level.exit.conv.weight.zero_()
        kept = level.exit.conv.weight[:, -width:]
        kept.copy_(nn.init.dirac_(torch.empty_like(kept)))
        for block in (level.entry, level.exit):
            if block.conv.bias is not None:
                block.conv.bias.zero_()
        if style.merge == "add" and isinstance(level.up, nn.Module):
            for parameter in level.up.parameters():
                parameter.zero_()


def inserted_levels(model: nn.Module) -> list[str]:
    """Names of the innermost inserted levels: those with no further one inside."""
    found = {name for name, module in model.named_modules() if isinstance(module, Inserted)}
    return sorted(n for n in found if not any(o.startswith(f"{n}.") for o in found))


def inserted_at(model: nn.Module, name: str) -> Inserted:
    """The wrapper of that name, as `inserted_levels` names it."""
    found = model.get_submodule(name)
    if not isinstance(found, Inserted):
        raise DepthError(f"{name} is a {type(found).__name__}, no inserted level")
    return found


def flatten_parts(model: nn.Module) -> int:
    """How many steps of `flatten_step` take all inserted levels out."""
    deepest = 0
    found = {name for name, module in model.named_modules() if isinstance(module, Inserted)}
    for name in found:
        around = sum(name.startswith(f"{other}.") for other in found) + 1
        deepest = max(deepest, around)
    if not found:
        return 0
    half = any(inserted_at(model, name).level.flattened for name in inserted_levels(model))
    return 2 * deepest - int(half)


def flatten_step(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Take one part of the innermost inserted levels out: the middle, then what is left.

    Returns:
        A new model, and the names of the layers that went.

    Raises:
        DepthError: no inserted level is left.
    """
    made = clone(model)
    names = inserted_levels(made)
    if not names:
        raise DepthError(
            f"{type(model).__name__} has no inserted level; depth=-1 takes out what depth=+1 put in"
        )
    half = any(not inserted_at(made, name).level.flattened for name in names)
    before = set(_layers(made))
    for name in names:
        wrapper = inserted_at(made, name)
        if half:
            if not wrapper.level.flattened:
                wrapper.level.take_out_middle()
            continue
        parent, _, child = name.rpartition(".")
        setattr_child(made.get_submodule(parent), child, wrapper.body)
    if half:
        return made, tuple(n for n in _layers(model) if n in before - set(_layers(made)))
    gone = tuple(n for n in _layers(model) if any(n.startswith(f"{w}.level.") for w in names))
    return made, gone


def _layers(model: nn.Module) -> list[str]:
    """Names of the layers with weights, in the order of registration."""
    return list(
        dict.fromkeys(
            name.rpartition(".")[0] for name, p in model.named_parameters() if p.dim() > 1
        )
    )
