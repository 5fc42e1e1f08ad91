"""Every row of the paper's Tables I to VI as trainings, and the comparisons that it lacks.

Chen et al., "TSDN: Two-Stage Raw Denoising in the Dark", IEEE TIP 2023. Stages of Tables I and II
are expanded ones (facts, section 1); rows that several tables need are the same trainings.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eslkit_tsdn.budget import Budget
from eslkit_tsdn.presets import NETWORKS
from eslkit_tsdn.recipes.scale import Scale
from eslkit_tsdn.recipes.values import Data, Method, Network, PlanKey, Recipe
from eslkit_tsdn.recipes.walks import Planner, walk, walk_from

__all__ = ["TABLES", "Row", "Table", "tables"]


@dataclass(frozen=True)
class Row:
    """One row of a table: what it is called, and the trainings that its figures come from."""

    name: str
    """As the paper prints it."""
    what: str
    """In words."""
    trainings: tuple[Recipe, ...]
    """The last training of the row, one for each seed; none where nothing is trained."""


@dataclass(frozen=True)
class Table:
    """One table."""

    name: str
    """`table1` to `table6`, or `controls`."""
    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class _Maker:
    """Makes rows; what is the same for all of them stands here."""

    scale: Scale
    data: Data
    budget: Budget
    real: Data
    """The data of rows that learn from real pairs; the same where there are none."""
    planner: Planner

    def seeds(self, *, main: bool) -> range:
        return range(self.scale.seeds if main else self.scale.other_seeds)

    def row(
        self, name: str, what: str, make: Callable[[int], Recipe], *, main: bool = False
    ) -> Row:
        return Row(name, what, tuple(make(seed) for seed in self.seeds(main=main)))

    def train(
        self,
        network: Network | None,
        seed: int,
        *,
        method: Method = "scratch",
        before: Sequence[Recipe] = (),
        data: Data | None = None,
        budget: dict[str, Any] | None = None,
        **options: Any,
    ) -> Recipe:
        told = {"weights": NETWORKS[network.name].weights} if network else {}
        return Recipe(
            method=method,
            network=network,
            data=self.real if data is None else data,
            budget=self.budget.model_copy(update={**told, **(budget or {})}),
            seed=seed,
            before=tuple(before),
            options=options,
        )

    def walk(self, row: str, seed: int, *, init: str = "first") -> Recipe:
        """The last training of a walk of TSDN."""
        return self.steps(row, seed, init=init)[-1]

    def expanded(self, seed: int) -> Recipe:
        """The first training of every walk of TSDN: the expanded network."""
        return self.steps("ESL3", seed)[0]

    def steps(self, row: str, seed: int, *, init: str = "first") -> tuple[Recipe, ...]:
        """All trainings of a walk of TSDN."""
        return walk(
            self.scale.network("tsdn"),
            row,
            planner=self.planner,
            data=self.real,
            budget=self.budget,
            seed=seed,
            init=init,
        )

    def down(self, large: Network, small: Network, seed: int) -> Recipe:
        """The last training on the way from a large U-Net to a small one."""
        start = self.train(large, seed)
        return walk_from(start, small, planner=self.planner, budget=self.budget)[-1]

    def longer(self, factor: float) -> dict[str, Any]:
        return {"iterations": max(1, round(self.budget.iterations * factor))}


def tables(
    scale: Scale,
    *,
    data: Data,
    budget: Budget,
    synthetic: Data | None = None,
    planner: Planner | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Table]:
    """The tables of a preset.

    Args:
        scale: sizes and seeds.
        data: what the networks learn from and are tested on.
        budget: of one training.
        synthetic: the same pictures with calibrated noise, for U-Net-ELD, where `data` is of real
            pairs; None where `data` is synthetic itself, and the row is U-Net's own.
        planner: makes the schedules; None for one of its own.
        names: which tables, by the keys of `TABLES`; None for all.
    """
    maker = _Maker(scale, synthetic or data, budget, data, planner or Planner())
    return {name: TABLES[name](maker) for name in names or TABLES}


def _table1(m: _Maker) -> Table:
    net = m.scale.network
    rows = [
        _bm3d(m),
        m.row(
            "CBDNet",
            "noise estimated, then removed; L1 on its image",
            _scratch(m, net("cbdnet")),
        ),
        m.row("NBNet", "projection onto learnt subspaces", _scratch(m, net("nbnet"))),
        m.row("DeamNet", "dual element-wise attention", _scratch(m, net("deamnet"))),
        m.row("U-Net", "of SID and ELD", _scratch(m, net("unet")), main=True),
        m.row(
            "U-Net-ELD",
            "U-Net on calibrated synthetic noise",
            lambda seed: m.train(net("unet"), seed, data=m.data),
        ),
        m.row("TSDN", "two small stages, by ESL", lambda seed: m.walk("ESL3", seed), main=True),
    ]
    return Table("table1", "Table I: TSDN and others", tuple(rows))


def _table2(m: _Maker) -> Table:
    net = m.scale.network
    rows = (
        m.row("TSDN1", "one expanded stage: U-Net", _scratch(m, net("unet")), main=True),
        m.row("TSDN2", "two stages, one loss", _scratch(m, net("tsdn2")), main=True),
        m.row(
            "TSDN3",
            "two stages, trained one after the other",
            lambda seed: m.train(
                net("tsdn3"), seed, method="chain", before=(m.train(net("unet"), seed),)
            ),
            main=True,
        ),
        m.row("TSDN4", "two stages, two losses: the expanded TSDN", m.expanded, main=True),
        m.row("ThSDN", "three stages", _scratch(m, net("thsdn")), main=True),
    )
    return Table("table2", "Table II: stages and losses", rows)


def _table3(m: _Maker) -> Table:
    def row(name: str, init: str) -> Row:
        what = f"TSDN_CSL2 with {name} channels"
        return m.row(name, what, lambda seed: m.walk("CSL2", seed, init=init), main=True)

    rows = (row("First", "first"), row("Last", "last"), row("Combined", "combined"))
    return Table("table3", "Table III: which channels stay", rows)


def _table4(m: _Maker) -> Table:
    words = {
        "CSL1": "expanded, then all channels at once",
        "CSL2": "expanded, then channels level by level",
        "CSL3": "the network of CSL1 and CSL2 from scratch",
        "ESL1": "CSL1, then the inserted layers at once",
        "ESL2": "CSL2, then the inserted layers at once",
        "ESL3": "CSL2, then the inserted layers two by two: TSDN",
        "ESL4": "the small network from scratch",
        "ESL5": "expanded, then straight to the small network",
    }

    def last(name: str) -> Callable[[int], Recipe]:
        if name == "ESL4":
            return _scratch(m, m.scale.network("tsdn"))
        return lambda seed: m.walk(name, seed)

    rows = tuple(m.row(f"TSDN_{name}", what, last(name), main=True) for name, what in words.items())
    return Table("table4", "Table IV: how it is shrunk", rows)


def _table5(m: _Maker) -> Table:
    net, small = m.scale.network("unet"), m.scale.network("sunet")
    double = m.scale.network("unet", factor=2)

    def distilled(seed: int) -> Recipe:
        return m.train(small, seed, method="collaborate", before=(m.train(net, seed),))

    rows = (
        m.row("U-Net", "from scratch", _scratch(m, net), main=True),
        m.row(
            "U-Net-ESL",
            "from a U-Net of twice the widths",
            lambda seed: m.down(double, net, seed),
            main=True,
        ),
        m.row("SU-Net", "half the widths, from scratch", _scratch(m, small), main=True),
        m.row("SU-Net-CD", "collaborative distillation from U-Net", distilled, main=True),
        m.row("SU-Net-ESL", "from U-Net", lambda seed: m.down(net, small, seed), main=True),
    )
    return Table("table5", "Table V: other networks and distillation", rows)


def _table6(m: _Maker) -> Table:
    row = m.row(
        "TSDN", "noise left at input, middle, output", lambda s: m.walk("ESL3", s), main=True
    )
    return Table("table6", "Table VI: noise along TSDN", (row,))


def _controls(m: _Maker) -> Table:
    """What the paper does not compare with: the same effort spent in other ways."""
    small = m.scale.network("tsdn")
    plan = m.planner.plan(PlanKey(small=small, row="ESL3"))
    steps, flops = len(plan.steps), sum(step.macs for step in plan.steps) / plan.base_macs
    wide = m.scale.network("tsdn", factor=2)
    half = m.longer(steps / 2)

    def after_wide(method: Method, **options: Any) -> Callable[[int], Recipe]:
        def make(seed: int) -> Recipe:
            large = m.train(wide, seed, budget=half)
            return m.train(small, seed, method=method, before=(large,), budget=half, **options)

        return make

    rows = (
        m.row("TSDN", "ESL3", lambda seed: m.walk("ESL3", seed), main=True),
        m.row("scratch", "iterations of one training", _scratch(m, small), main=True),
        m.row(
            "scratch, equal iterations",
            f"{steps} times as many, as many as ESL3 in all",
            lambda seed: m.train(small, seed, budget=m.longer(steps)),
            main=True,
        ),
        m.row(
            "scratch, equal FLOPs",
            f"{flops:.1f} times as many, as much computation as ESL3 in all",
            lambda seed: m.train(small, seed, budget=m.longer(flops)),
            main=True,
        ),
        m.row(
            "prune and finetune",
            "twice the widths for half of the iterations, cut at once by L1 norms, finetuned",
            after_wide("prune", importance="l1", engine="eslkit", steps=1),
            main=True,
        ),
        m.row(
            "prune step by step",
            "the same, cut in four steps and trained after each",
            after_wide("prune", importance="l1", engine="eslkit", steps=4),
            main=True,
        ),
        m.row(
            "distillation",
            "from a network of twice the widths; each for half of the iterations",
            after_wide("distil"),
            main=True,
        ),
    )
    return Table("controls", "The comparisons that the paper lacks", rows)


def _scratch(m: _Maker, network: Network) -> Callable[[int], Recipe]:
    return lambda seed: m.train(network, seed)


def _bm3d(m: _Maker) -> Row:
    """BM3D is an extra, since its licence is non-commercial; without it the row says so."""
    if importlib.util.find_spec("bm3d") is None:
        return Row("BM3D", "not measured: its extra is not installed (`eslkit[bm3d]`)", ())
    return m.row(
        "BM3D",
        "block matching, noise estimated from the picture",
        lambda seed: m.train(None, seed, method="bm3d", noise="blind"),
    )


TABLES: dict[str, Callable[[_Maker], Table]] = {
    "table1": _table1,
    "table2": _table2,
    "table3": _table3,
    "table4": _table4,
    "table5": _table5,
    "table6": _table6,
    "controls": _controls,
}
"""Table -> its rows."""
