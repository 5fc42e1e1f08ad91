"""Planners: a model and a few choices -> a plan, every step of which has been tried.

The fine planner follows the paper (Fig. 3): the whole network is expanded (EL), then the levels
are narrowed from the bottleneck outwards (CSL), then the inserted levels are taken out, two
layers at a time (LSL). Other orders are lists of what each step changes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch import nn

from eslkit.draft import Draft, Planned
from eslkit.errors import InputError, PlanError
from eslkit.moves import (
    Move,
    Order,
    StepEntry,
    StepList,
    find_groups,
    portions,
    reached,
    table_widths,
)
from eslkit.surgery.level import LevelBuilder
from eslkit.surgery.policies import Policy, policy_of

__all__ = ["Choices", "Granularity", "Order", "plan_between", "plan_expansion", "plan_scratch"]

Granularity = str | int | StepList
"""`fine`, `one-shot`, `direct`, a number of layers a step, or the user's own list of steps."""

_WORDS: dict[str, tuple[str, ...]] = {
    "fine": ("fine channels", "fine layers"),
    "one-shot": ("channels", "layers"),
    "direct": ("direct",),
}
_ORDER = re.compile(r"(?P<by>fine |(?P<room>\d+) )?(?P<kind>channels|layers)|direct")
"""Entries that are no names: all that is left of a kind, in one step or in several."""


@dataclass(frozen=True)
class Choices:
    """What all planners are told."""

    init: str | Policy = "first"
    granularity: Granularity = "fine"
    factor: float | None = None
    """The least part of its width that a group keeps in one step."""
    order: Order = "outwards"
    """Which levels are narrowed first."""
    expand_init: str | Policy = "random"
    example_inputs: Any = None
    protect: tuple[str, ...] = ()
    seed: int = 0
    at: tuple[str, ...] = ()
    level: LevelBuilder | None = None
    whole: bool = True
    """Whether the plan must lead back to the model; otherwise it may end with the levels that
    were inserted still in place."""
    inside: bool = False
    """Whether layers are expanded inside, so that the expansion may change nothing else."""
    label: str = ""
    """What the plan calls its granularity; empty for the granularity itself."""

    def __post_init__(self) -> None:
        _check_granularity(self.granularity)
        policy_of(self.init)
        policy_of(self.expand_init)
        if self.factor is not None and not 0 < self.factor < 1:
            raise InputError(
                f"factor={self.factor}: expected a multiplier between 0 and 1, such as 0.75"
            )
        if self.order not in get_args(Order):
            raise InputError(
                f"order={self.order!r}: expected 'outwards', from the bottleneck as in the paper, "
                "or 'inwards', from full resolution"
            )

    @property
    def told(self) -> str | int:
        """The granularity as the plan tells it."""
        own = self.granularity if isinstance(self.granularity, (str, int)) else "own"
        return self.label or own


def plan_expansion(
    model: nn.Module,
    *,
    width: float | Mapping[str, float] = 2,
    depth: int = 1,
    choices: Choices | None = None,
) -> Planned:
    """Plan the walk from a small model up and back down to itself.

    Args:
        model: the small model; it is not touched.
        width: multiplier of every group's width in the expansion, or a table of multipliers by
            group, layer, pattern or level; groups that a table does not name keep their width.
        depth: levels that the expansion inserts.
        choices: everything else.

    Returns:
        The plan; every step has been applied once, so it can be.

    Raises:
        InputError: a granularity or an argument that cannot be.
        PlanError: nothing can be expanded, or the user's own steps do not lead back to the model.
        ResizeError: no order of steps leads back to the model.
        TraceError, DepthError: as for `expand`.
    """
    chosen = choices or Choices()
    _check_expansion(width, depth, inside=chosen.inside)
    draft = _draft(model, model, chosen)
    draft.expand(width, depth)
    if not depth and not draft.targets and not chosen.inside:
        raise PlanError(
            f"No channel group of {type(model).__name__} gets wider by width={width}, so there is "
            "nothing to expand and to shrink back. A warning says why each group that is resizable "
            "keeps its width, eslkit.trace(model, ...).explain(name) why the others do."
        )
    return _carried_out(draft, chosen, width=width, depth=depth)


def plan_between(
    source: nn.Module, *, target: nn.Module, choices: Choices | None = None
) -> Planned:
    """Plan the walk from a large model that exists down to a small one of the same form.

    Args:
        source: the large model; it is not touched. It may have inserted levels.
        target: the small model; it is not touched.
        choices: everything else.

    Raises:
        PlanError: the two are not of one form, or the steps do not lead from one to the other.
        InputError, ResizeError, TraceError: as for `plan_expansion`.
    """
    chosen = choices or Choices()
    draft = _draft(source, target, chosen)
    draft.start_from_source()
    return _carried_out(draft, chosen, width=1.0, depth=draft.num_levels)


def plan_scratch(model: nn.Module, *, depth: int = 0, choices: Choices | None = None) -> Planned:
    """Plan one training of the model from random weights, with so many levels inserted.

    Args:
        model: the small model; it is not touched.
        depth: levels to insert.
        choices: everything else; the granularity does not count.
    """
    chosen = choices or Choices()
    draft = _draft(model, model, chosen)
    draft.expand(1, depth, name="scratch")
    return draft.planned(width=1.0, depth=depth, granularity=chosen.told)


def _draft(start: nn.Module, model: nn.Module, chosen: Choices) -> Draft:
    return Draft(
        start=start,
        model=model,
        init=chosen.init,
        expand_init=chosen.expand_init,
        protect=chosen.protect,
        example_inputs=chosen.example_inputs,
        seed=chosen.seed,
        at=chosen.at,
        level=chosen.level,
    )


def _carried_out(
    draft: Draft, chosen: Choices, *, width: float | Mapping[str, float], depth: int
) -> Planned:
    for entry in _entries(chosen.granularity, layers_first=bool(draft.surplus)):
        for move in _moves(draft, entry, chosen):
            draft.shrink(move)
    draft.finish(whole=chosen.whole)
    return draft.planned(width=width, depth=depth, granularity=chosen.told)


def _entries(granularity: Granularity, *, layers_first: bool) -> Iterator[StepEntry]:
    """The entries of a list of steps; words for several of them are taken apart.

    A large model's surplus layers go first: the others are compared with the small model's.
    """
    if isinstance(granularity, int):
        entries = (f"{granularity} channels", f"{granularity} layers")
        yield from reversed(entries) if layers_first else entries
        return
    for entry in [granularity] if isinstance(granularity, str) else granularity:
        words: tuple[StepEntry, ...] = (entry,)
        if isinstance(entry, str):
            words = _WORDS.get(entry, (entry,))
        yield from reversed(words) if layers_first else words


def _moves(draft: Draft, entry: StepEntry, chosen: Choices) -> Iterator[Move]:
    """What the steps of one entry change; each is yielded when the one before has been taken."""
    if isinstance(entry, Mapping):
        yield Move(table_widths(draft.graph, entry), told=str(dict(entry)))
    elif isinstance(entry, str) and (order := _ORDER.fullmatch(entry)):
        room = int(order["room"]) if order["room"] else None
        if order["kind"] == "channels":
            yield from _channel_moves(draft, room, chosen, whole=not order["by"])
        elif order["kind"] == "layers":
            yield from _layer_moves(draft, room, whole=not order["by"])
        else:
            yield Move(draft.targets, parts=draft.parts_left)
    else:
        names = [entry] if isinstance(entry, str) else list(entry)
        yield Move(_named(draft, names), told=", ".join(names))


def _channel_moves(
    draft: Draft, room: int | None, chosen: Choices, *, whole: bool
) -> Iterator[Move]:
    """All channels that are left; with a factor in several rounds over the levels."""
    while draft.targets:
        before = draft.graph.widths
        for names in portions(
            draft.graph, draft.targets, room=room, whole=whole, inwards=chosen.order == "inwards"
        ):
            widths = reached(draft.graph, names, draft.targets, chosen.factor)
            final = all(widths[name] == draft.targets[name] for name in names)
            yield Move(widths, refused="wait" if final else "skip")
        if draft.graph.widths == before:
            return


def _layer_moves(draft: Draft, room: int | None, *, whole: bool) -> Iterator[Move]:
    """Surplus layers and inserted levels, two layers at a time or all at once."""
    taken: list[str] = []
    for name in draft.surplus:
        count = sum(len(draft.layers_in(each)) for each in (*taken, name))
        if taken and not whole and count > (room or 2):
            yield Move(layers=tuple(taken))
            taken = []
        taken.append(name)
    if taken:
        yield Move(layers=tuple(taken))
    left = draft.parts_left
    each = left if whole else max(1, (room or 2) // 2)
    for done in range(0, left, max(1, each)):
        yield Move(parts=min(each, left - done))


def _named(draft: Draft, names: Sequence[str]) -> dict[str, int]:
    """The widths to come back to of the groups that these names stand for."""
    targets = draft.targets
    widths: dict[str, int] = {}
    for name in names:
        for group in find_groups(draft.graph, name):
            for member in (group.name, *group.tied):
                if member in targets:
                    widths[member] = targets[member]
    return widths


def _check_expansion(width: object, depth: object, *, inside: bool) -> None:
    given: list[Any] = list(width.values()) if isinstance(width, Mapping) else [width]
    for number in given:
        real = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not real or not 1 <= number < math.inf:
            narrow = (
                f". To narrow gently pass factor={number}; to come down to a model of {number} of "
                "the widths use schedule_from(model, target=shrink(model, width=...))"
            )
            raise InputError(
                f"width={number!r}: an expansion has multipliers from 1, such as 2 or 1.5"
                + (narrow if real and 0 < number < 1 else "")
            )
    if not isinstance(depth, int) or isinstance(depth, bool) or depth < 0:
        raise InputError(f"depth={depth!r}: expected a whole number of levels from 0")
    if all(number == 1 for number in given) and depth < 1 and not inside:
        raise InputError(
            f"width={width} and depth={depth} change nothing; expand in width (2) or depth (1), or "
            "inside of the layers (linear=4)"
        )


def _check_granularity(granularity: object) -> None:
    if isinstance(granularity, str):
        known = granularity in _WORDS
    elif isinstance(granularity, int):
        known = not isinstance(granularity, bool) and granularity > 0
    else:
        known = isinstance(granularity, Sequence) and all(map(_is_entry, granularity))
    if not known:
        raise InputError(
            f"granularity={granularity!r} must be 'fine', 'one-shot', 'direct', a positive number "
            "of layers a step, or a list of steps: each a name, several names, or a table of "
            "widths"
        )
    if isinstance(granularity, Sequence) and not granularity:
        raise PlanError("granularity=[] lists no step; list what each step changes, or use 'fine'")


def _is_entry(entry: object) -> bool:
    if isinstance(entry, str):
        return True
    if isinstance(entry, Mapping):
        return bool(entry) and all(isinstance(name, str) for name in entry)
    return isinstance(entry, Sequence) and bool(entry) and all(isinstance(n, str) for n in entry)
