"""A level inserted into the bottleneck, and taken out again in steps (the paper's LSL)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from eslkit.errors import DepthError, EslError, InputError
from eslkit.graph.bottleneck import Bottleneck, Place, find_bottlenecks, places_at
from eslkit.graph.export import World, run
from eslkit.graph.skeleton import skeleton
from eslkit.graph.trace import Traced, trace_fully
from eslkit.surgery.identity import NoIdentityError, identity_level
from eslkit.surgery.inserted import Inserted
from eslkit.surgery.level import Level, LevelBuilder, LevelStyle, TakenOutInParts
from eslkit.surgery.style import style_of

__all__ = [
    "clone",
    "deepen",
    "flatten_parts",
    "flatten_step",
    "inserted_at",
    "inserted_levels",
    "places_for_levels",
    "take_out_levels",
]

_MOST_TRIED = 12
_MOST_LISTED = 12


def clone(model: nn.Module) -> nn.Module:
    """A deep copy that also copies tensors which other code left on the modules."""
    return skeleton(model, lambda tensor: tensor.detach().clone())


def deepen(
    model: nn.Module,
    *,
    levels: int = 1,
    init: str = "random",
    at: str | Sequence[str] | None = None,
    level: LevelBuilder | None = None,
    example_inputs: Any = None,
) -> nn.Module:
    """A copy of the model with more levels, each inside the bottleneck that it finds.

    Args:
        model: any encoder-decoder; it is not touched.
        levels: how many levels to insert, one inside the other.
        init: "identity" or "preserve" makes the new level the identity; anything else draws it
            afresh, from torch's generator, whose state is not changed.
        at: another place: the qualified name of the module before which the level goes (behind it,
            where several tensors go in), or several names for a level at each.
        level: what builds the level instead of the model's own kind.
        example_inputs: as for `trace`.

    Raises:
        InputError: a negative number of levels, or no such module.
        DepthError: the model has no bottleneck, or no place in it that a level fits.
        TraceError: the model did not run on the example inputs.

    Example:
        >>> from torch import nn
        >>> from eslkit.surgery.depth import deepen, inserted_levels
        >>> model = nn.Sequential(
        ...     nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(),
        ...     nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 1, 2, stride=2)
        ... )
        >>> inserted_levels(deepen(model))
        ['2']
    """
    if levels < 0:
        raise InputError(f"depth={levels}: levels can be inserted by a number from 0")
    made = clone(model)
    places = (at,) if isinstance(at, str) else at
    for _ in range(levels):
        traced = trace_fully(made, example_inputs=example_inputs)
        if places is not None:
            places = [_insert_at(made, traced, path, init, level) for path in places]
            continue
        bottlenecks = find_bottlenecks(traced)
        if not bottlenecks:
            raise DepthError(
                f"{type(model).__name__} has no bottleneck: no region of lowest resolution between "
                "a reduction and an up-sampling, at the size of the example inputs. Pass depth=0 "
                "for no level, or at= with the name of the module before which one should go"
            )
        filled: set[tuple[str, bool]] = set()
        for bottleneck in bottlenecks:
            if not filled & {(place.path, place.before) for place in bottleneck.places}:
                place = _insert_best(made, traced, bottleneck, init, level)
                filled.add((place.path, place.before))
    return made


def places_for_levels(model: nn.Module, *, example_inputs: Any = None) -> tuple[str, ...]:
    """The modules before or behind which a level separates a bottleneck's entries from its exits.

    Args:
        model: any encoder-decoder; it is not touched.
        example_inputs: as for `trace`.

    Returns:
        "before NAME" or "behind NAME", the bottleneck's best place first.
    """
    traced = trace_fully(model, example_inputs=example_inputs)
    found = (place for bottleneck in find_bottlenecks(traced) for place in bottleneck.places)
    return tuple(dict.fromkeys(str(place) for place in found))


def _insert_best(
    model: nn.Module,
    traced: Traced,
    bottleneck: Bottleneck,
    init: str,
    builder: LevelBuilder | None,
) -> Place:
    name = type(model).__name__
    if bottleneck.positions == 1:
        raise DepthError(
            f"{name}: its bottleneck has a single position at the size of the example inputs, so a "
            "level inside would have no lower resolution; pass larger example_inputs, at=, or "
            "depth=0 for no level"
        )
    if not bottleneck.places:
        raise DepthError(
            f"{name}: in its bottleneck ({bottleneck.positions} positions) no tensor that goes "
            "into a module or comes out of one separates what goes in "
            f"({_where(traced, bottleneck.entries)}) from what comes out "
            f"({_where(traced, bottleneck.exits)}). Make what lies between a module of its own, or "
            "pass at= with the name of the module before which a level should go, or depth=0 for "
            "no level"
        )
    last: EslError | None = None
    places = [p for p in bottleneck.places if not _writes_in_place(model.get_submodule(p.path))]
    for place in places[:_MOST_TRIED]:
        try:
            _insert(model, traced, bottleneck, place, init, builder)
        except NoIdentityError as error:  # behind another operation there may be one
            last = error if last is None else last
        except _DoesNotRunError as error:
            last = error
        else:
            return place
    if isinstance(last, NoIdentityError):
        raise last
    raise DepthError(
        f"{name}: none of its {len(bottleneck.places)} places takes a level; the last tried: "
        f"{last or 'all work in place'}"
    ) from last


def _writes_in_place(module: nn.Module) -> bool:
    """Whether code may count on its argument being changed, whatever it returns."""
    return bool(getattr(module, "inplace", False))


def _where(traced: Traced, nodes: Sequence[Any]) -> str:
    names = dict.fromkeys(traced.exported.owners[node] or "the model" for node in nodes)
    return ", ".join(list(names)[:3]) + (" ..." if len(names) > 3 else "")


def _insert_at(
    model: nn.Module, traced: Traced, path: str, init: str, builder: LevelBuilder | None
) -> str:
    """Insert a level at a module; the name of the place inside it for the next one."""
    known = dict(model.named_modules())
    bottlenecks = find_bottlenecks(traced)
    for bottleneck in bottlenecks:
        for place in bottleneck.places:
            if place.path == path:
                _insert(model, traced, bottleneck, place, init, builder)
                return f"{path}.level.middle2"
    offered = [str(place) for bottleneck in bottlenecks for place in bottleneck.places]
    listed = ", ".join(offered[:_MOST_LISTED]) + (" ..." if len(offered) > _MOST_LISTED else "")
    listed = f"places in the bottleneck: {listed}" if offered else "the model has no bottleneck"
    if not path or path not in known:
        raise InputError(f"at={path!r}: {type(model).__name__} has no such module; {listed}")
    for place in places_at(traced, path):
        if math.prod(place.sizes) > 1:
            _insert(model, traced, None, place, init, builder)
            return f"{path}.level.middle2"
    raise DepthError(
        f"at={path!r}: no single tensor with several positions goes into that module or comes out "
        f"of it at the size of the example inputs; {listed}"
    )


def _insert(
    model: nn.Module,
    traced: Traced,
    bottleneck: Bottleneck | None,
    place: Place,
    init: str,
    builder: LevelBuilder | None,
) -> None:
    style = style_of(traced, bottleneck, place, model)
    body = model.get_submodule(place.path)
    level = _build(style, place, init, builder)
    like = next(
        (
            p
            for p in (*nn.Module.parameters(body), *nn.Module.parameters(model))
            if p.is_floating_point()
        ),
        None,
    )
    if like is not None:
        level.to(device=like.device, dtype=like.dtype)
    level.train(body.training)
    wrapper = Inserted(
        body,
        level,
        before=place.before,
        slots=place.slots,
        layout=place.layout,
        grid=place.sizes,
    )
    wrapper.train(body.training)
    _replace(model, body, wrapper)
    try:
        _prove(model, traced, place)
    except _DoesNotRunError:
        _replace(model, wrapper, body)
        raise


def _build(style: LevelStyle, place: Place, init: str, builder: LevelBuilder | None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        if builder is not None:
            return builder(style, place.width)
        if init in ("identity", "preserve"):
            return identity_level(style, place.width, 2 * place.width, where=place.path)
        return Level(style, place.width, 2 * place.width)


class _DoesNotRunError(DepthError):
    """The model's own code does not go along with a level at a place."""


def _prove(model: nn.Module, traced: Traced, place: Place) -> None:
    """The deepened model runs, and returns tensors of the shapes that it returned before."""
    world = World(traced.exported.runner)
    want = [traced.exported.shape(node) for node in traced.exported.outputs]
    try:
        again = run(world.copy(model), traced.inputs, traced.keywords, world=world)
    except Exception as error:  # the user's code, or the user's builder, may raise anything
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise _DoesNotRunError(
            f"with a level {place} the model's own code fails with {text!r}"
        ) from error
    have = [again.shape(node) for node in again.outputs]
    calls = [call for call in again.calls if call.path == f"{place.path}.level"]
    if not calls:
        raise _DoesNotRunError(f"the model's own code does not call a level {place}")
    given, made = again.shape(calls[0].inputs[0]), again.shape(calls[0].outputs[0])
    if given != made:
        raise _DoesNotRunError(f"a level must keep the shape; this one makes {made} of {given}")
    if have != want:
        raise _DoesNotRunError(f"with a level {place} the outputs have shapes {have}, not {want}")


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another, under all names that it has; the order is kept."""
    for parent in list(nn.Module.modules(model)):
        if parent is new:
            continue
        children = parent._modules  # pyright: ignore[reportPrivateUsage]
        for name, child in children.items():
            if child is old:
                children[name] = new


def inserted_levels(model: nn.Module) -> list[str]:
    """Names of the innermost inserted levels: those with no further one inside."""
    found = {name for name, module in model.named_modules() if isinstance(module, Inserted)}
    return sorted(n for n in found if not any(o.startswith(f"{n}.") for o in found))


def inserted_at(model: nn.Module, name: str) -> Inserted:
    """The wrapper of that name, as `inserted_levels` names it.

    Raises:
        DepthError: the module of that name is no wrapper.
    """
    found = model.get_submodule(name)
    if not isinstance(found, Inserted):
        raise DepthError(f"{name} is a {type(found).__name__}, no inserted level")
    return found


def _parts(level: nn.Module) -> int:
    """Steps that it takes to take a level out."""
    return 2 if isinstance(level, TakenOutInParts) and not level.flattened else 1


def flatten_parts(model: nn.Module) -> int:
    """How many steps of `flatten_step` take all inserted levels out."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, Inserted)}

    def around(name: str) -> int:
        return sum(
            _parts(wrapper.level)
            for other, wrapper in found.items()
            if name == other or name.startswith(f"{other}.")
        )

    return max((around(name) for name in found), default=0)


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
    most = max(_parts(inserted_at(made, name).level) for name in names)
    before, whole = _layers(made), list[str]()
    for name in names:
        wrapper = inserted_at(made, name)
        level = wrapper.level
        if _parts(level) < most:
            continue
        if isinstance(level, TakenOutInParts) and not level.flattened:
            level.take_out_middle()
            continue
        _replace(made, wrapper, wrapper.body)
        whole.append(f"{name}.level.")
    left = set(_layers(made))
    if whole:
        return made, tuple(name for name in before if name.startswith(tuple(whole)))
    return made, tuple(name for name in before if name not in left)


def take_out_levels(model: nn.Module, levels: int) -> nn.Module:
    """A copy without so many of the innermost levels at every place, in whole.

    Raises:
        DepthError: fewer inserted levels than asked for.
    """
    made, left = clone(model), _nesting(model) - levels
    while _nesting(made) > max(left, 0):
        made, _ = flatten_step(made)
    if left < 0:
        made, _ = flatten_step(made)  # says that there is none
    return made


def _nesting(model: nn.Module) -> int:
    """How many levels lie one inside the other."""
    found = [name for name, module in model.named_modules() if isinstance(module, Inserted)]
    return max((sum(f"{n}.".startswith(f"{o}.") for o in found) for n in found), default=0)


def _layers(model: nn.Module) -> list[str]:
    """Names of the layers with weights, in the order of registration."""
    return list(
        dict.fromkeys(
            name.rpartition(".")[0] for name, p in model.named_parameters() if p.dim() > 1
        )
    )
