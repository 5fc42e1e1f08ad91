"""What a table is made of: networks, data, recipes of trainings, each a frozen value.

A recipe names everything that its weights depend on, the trainings before it included, so that
its identity is a hash: two tables that need the same training meet in one run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from eslkit_tsdn.budget import Budget

__all__ = ["Data", "Method", "Network", "PlanKey", "Recipe", "identity", "in_order"]

Method = Literal["scratch", "step", "chain", "distil", "collaborate", "prune", "bm3d"]
"""How a training comes to its weights; `eslkit_tsdn.tables.methods` carries each out."""


class _Frozen(BaseModel, frozen=True):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Network(_Frozen, frozen=True):
    """An architecture, without weights."""

    name: str
    """A key of `eslkit_tsdn.presets.NETWORKS`."""
    widths: tuple[int, ...] = Field(min_length=2)
    """Channels of a stage of the small TSDN, with which those of all networks go."""


class Data(_Frozen, frozen=True):
    """What is trained on and what is tested on."""

    kind: Literal["packaged", "folder", "store"]
    """Photographs that come with packages; a folder of photographs and camera files; a prepared
    SID store."""
    digest: str
    """SHA-256 of the pictures, in place of where they lie."""
    synthetic: bool = True
    """Whether the noise is drawn from the calibrated model; otherwise real pairs are used."""
    batch_size: int = Field(ge=1)
    """Crops in a batch."""
    crop: int = Field(ge=8)
    """Height and width of a crop, in packed pixels."""
    gain: float | None = Field(default=None, gt=0)
    """System gain K in DN per electron; None draws it anew for every crop."""
    largest: int = Field(default=512, ge=8)
    """Test pictures are cut to this many packed pixels a side, at their centre."""


class PlanKey(_Frozen, frozen=True):
    """Which schedule a step belongs to; enough to make the plan again."""

    small: Network
    """The network that the walk ends with."""
    row: str
    """The paper's name of the walk (`ESL3`), or `between` for the way down from a trained one."""
    init: str = "first"
    """Policy of the shrinking steps."""
    source: Network | None = None
    """The large network of a walk `between`."""


class Recipe(_Frozen, frozen=True):
    """One training of one network: a node of the graph that all tables share."""

    method: Method
    """How it is carried out."""
    network: Network | None
    """What comes out; for a step of a walk the small network that the walk ends with. None where
    the method has no network (BM3D)."""
    data: Data
    """What it sees."""
    budget: Budget
    """For how long."""
    seed: int = Field(default=0, ge=0)
    """Of weights, batches and everything else."""
    before: tuple[Recipe, ...] = ()
    """Trainings whose networks it starts from or learns from."""
    options: dict[str, Any] = {}
    """What else the method is told."""
    plan: PlanKey | None = None
    """Of a step: the schedule that it is taken from. It does not count for the identity, since
    several schedules begin alike."""
    index: int = Field(default=0, ge=0)
    """Of a step: its place in that schedule; does not count either."""
    label: str = ""
    """For people; does not count."""

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits of a SHA-256 over all that the weights depend on."""
        return identity(self._content())

    @property
    def num_before(self) -> int:
        """How many trainings lie behind its start, along the longest way."""
        return max((1 + recipe.num_before for recipe in self.before), default=0)

    def flat(self) -> dict[str, Any]:
        """The same for a file: earlier trainings by their identities."""
        return {"id": self.id, **self._content()}

    def _content(self) -> dict[str, Any]:
        content = self.model_dump(mode="json", exclude={"before"})
        return {**content, "before": [recipe.id for recipe in self.before]}


UNCOUNTED = ("id", "plan", "index", "label")
"""What does not count for the identity."""


def identity(flat: Mapping[str, Any]) -> str:
    """The identity of a recipe as `Recipe.flat` writes it, computed from all else that it says."""
    content = {name: value for name, value in flat.items() if name not in UNCOUNTED}
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def in_order(recipes: Iterable[Recipe]) -> tuple[Recipe, ...]:
    """All that these need and they themselves, each once, none before what it needs."""
    found: dict[str, Recipe] = {}

    def visit(recipe: Recipe) -> None:
        if recipe.id not in found:
            for earlier in recipe.before:
                visit(earlier)
            found[recipe.id] = recipe

    for recipe in recipes:
        visit(recipe)
    return tuple(found.values())
