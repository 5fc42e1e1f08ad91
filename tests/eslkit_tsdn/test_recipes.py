"""The tables as one graph of recipes: identities, sharing, order, parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from eslkit_tsdn.budget import Budget
from eslkit_tsdn.presets import Preset
from eslkit_tsdn.recipes.estimate import components, critical_paths, shard, training_flops
from eslkit_tsdn.recipes.networks import build, network_costs
from eslkit_tsdn.recipes.rows import TABLES, Table, tables
from eslkit_tsdn.recipes.scale import SCALES, Scale
from eslkit_tsdn.recipes.values import Data, Network, Recipe, in_order
from eslkit_tsdn.recipes.walks import Planner

TINY = Scale(
    preset=Preset(name="tiny", widths=(2, 4), iterations=3, lr=1e-3, crop=16, largest=32), seeds=2
)
BUDGET = TINY.preset.budget(num_crops=1)
DATA = Data(kind="packaged", digest="x", batch_size=1, crop=16)
BM3D = Recipe(method="bm3d", network=None, data=DATA, budget=Budget(iterations=1))
PLANNER = Planner()


@pytest.fixture(scope="module")
def made() -> dict[str, Table]:
    return tables(TINY, data=DATA, budget=BUDGET, planner=PLANNER)


@pytest.fixture(scope="module")
def recipes(made: dict[str, Table]) -> tuple[Recipe, ...]:
    return in_order(r for table in made.values() for row in table.rows for r in row.trainings)


def last(made: dict[str, Table], table: str, row: str, seed: int = 0) -> Recipe:
    [found] = [each for each in made[table].rows if each.name == row]
    return found.trainings[seed]


def test_every_network_of_the_tables_at_the_papers_widths() -> None:
    """Parameters as in the facts, section 1: of what rows train that is no step of a walk."""
    made = tables(SCALES["paper"], data=DATA, budget=BUDGET, planner=PLANNER, names=["table1"])
    scale = SCALES["paper"]
    wanted = {
        scale.network("tsdn"): 964_456,
        scale.network("tsdn4"): 15_520_968,
        scale.network("thsdn"): 23_281_452,
        scale.network("unet"): 7_760_484,
        scale.network("sunet"): 1_941_300,
        scale.network("unet", factor=2): 31_032_516,
        scale.network("cbdnet"): 4_367_176,
        scale.network("nbnet"): 13_309_860,
        scale.network("deamnet"): 2_229_284,
    }
    for network, parameters in wanted.items():
        assert sum(p.numel() for p in build(network).parameters()) == parameters
    trained = {r.network for row in made["table1"].rows for r in row.trainings if r.network}
    assert trained <= wanted.keys()


def test_tables_share_what_is_the_same(made: dict[str, Table]) -> None:
    unet = last(made, "table1", "U-Net")
    assert last(made, "table2", "TSDN1").id == unet.id == last(made, "table5", "U-Net").id
    assert last(made, "table5", "SU-Net-CD").before[0].id == unet.id
    assert unet.id in {r.id for r in in_order([last(made, "table5", "SU-Net-ESL")])}
    csl2 = last(made, "table4", "TSDN_CSL2")
    assert last(made, "table3", "First").id == csl2.id
    for row in ("TSDN_ESL2", "TSDN_ESL3"):
        assert csl2.id in {r.id for r in in_order([last(made, "table4", row)])}
    esl3 = last(made, "table4", "TSDN_ESL3")
    assert esl3.id == last(made, "table1", "TSDN").id == last(made, "table6", "TSDN").id
    expanded = last(made, "table2", "TSDN4").id
    for row in ("TSDN_CSL1", "TSDN_ESL5", "TSDN_ESL3"):
        assert expanded in {r.id for r in in_order([last(made, "table4", row)])}
    assert last(made, "table3", "Last").id != csl2.id


def test_trainings_of_the_papers_rows(made: dict[str, Table]) -> None:
    """A small TSDN of two widths has one channel step for each level of the expanded one."""
    counts = {row.name: len(in_order(row.trainings[:1])) for row in made["table4"].rows}
    assert counts == {
        "TSDN_CSL1": 2,
        "TSDN_CSL2": 4,
        "TSDN_CSL3": 1,
        "TSDN_ESL1": 3,
        "TSDN_ESL2": 5,
        "TSDN_ESL3": 6,
        "TSDN_ESL4": 1,
        "TSDN_ESL5": 2,
    }


def test_nothing_stands_before_what_it_needs(recipes: tuple[Recipe, ...]) -> None:
    seen: set[str] = set()
    for recipe in recipes:
        assert all(earlier.id in seen for earlier in recipe.before)
        assert recipe.id not in seen
        seen.add(recipe.id)


def test_identity_survives_json_and_names_do_not_count(recipes: tuple[Recipe, ...]) -> None:
    for recipe in recipes:
        again = Recipe.model_validate_json(recipe.model_dump_json())
        assert again.id == recipe.id
        assert recipe.model_copy(update={"label": "other", "index": 9}).id == recipe.id


CHANGES: dict[str, Callable[[Recipe], Recipe]] = {
    "seed": lambda r: r.model_copy(update={"seed": r.seed + 1}),
    "budget": lambda r: r.model_copy(update={"budget": Budget(iterations=9)}),
    "data": lambda r: r.model_copy(update={"data": r.data.model_copy(update={"digest": "other"})}),
    "network": lambda r: r.model_copy(update={"network": Network(name="unet", widths=(3, 7))}),
    "options": lambda r: r.model_copy(update={"options": {"new": 1}}),
    "before": lambda r: r.model_copy(update={"before": (BM3D,)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_all_that_weights_depend_on_counts(recipes: tuple[Recipe, ...], change: str) -> None:
    for recipe in recipes[:12]:
        assert CHANGES[change](recipe).id != recipe.id


def test_seeds_differ_and_stay_apart(made: dict[str, Table]) -> None:
    for table in made.values():
        for row in table.rows:
            ids = [recipe.id for recipe in row.trainings]
            assert len(set(ids)) == len(ids)
            assert all(earlier.seed == r.seed for r in row.trainings for earlier in in_order([r]))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shards_need_nothing_of_each_other(recipes: tuple[Recipe, ...], count: int) -> None:
    whole = recipes
    parts = [
        {r.id for r in shard(whole, index=index, count=count, planner=PLANNER)}
        for index in range(1, count + 1)
    ]
    assert sum(map(len, parts)) == len(whole)
    assert set().union(*parts) == {r.id for r in whole}
    for part in parts:
        for recipe in whole:
            if recipe.id in part:
                assert {earlier.id for earlier in recipe.before} <= part


def test_components_are_as_large_as_can_be_kept_apart(recipes: tuple[Recipe, ...]) -> None:
    parts = components(recipes)
    assert sorted(r.id for part in parts for r in part) == sorted(r.id for r in recipes)
    assert len(parts) > 2 * TINY.seeds


def test_costs_are_those_of_the_facts(made: dict[str, Table]) -> None:
    """Scratch training of the small network: 3 passes of 2 FLOPs a multiply-accumulate."""
    scratch = last(made, "table4", "TSDN_ESL4")
    assert scratch.network is not None
    pixels = scratch.budget.iterations * DATA.batch_size * DATA.crop**2
    expected = 6 * network_costs(scratch.network)[1] / 512**2 * pixels
    assert training_flops(scratch, PLANNER) == pytest.approx(expected)


def test_the_longest_way_counts_everything_on_it(made: dict[str, Table]) -> None:
    chain = in_order([last(made, "table4", "TSDN_ESL3")])
    paths = critical_paths(chain, PLANNER)
    assert paths[chain[0].id] == pytest.approx(sum(training_flops(r, PLANNER) for r in chain))
    assert sorted((paths[r.id] for r in chain), reverse=True) == [paths[r.id] for r in chain]


def test_controls_have_the_budget_of_esl(made: dict[str, Table]) -> None:
    esl = in_order([last(made, "controls", "TSDN")])
    longer = last(made, "controls", "scratch, equal iterations")
    assert longer.budget.iterations == sum(r.budget.iterations for r in esl)
    equal = last(made, "controls", "scratch, equal FLOPs")
    whole = sum(training_flops(r, PLANNER) for r in esl)
    one_iteration = training_flops(equal, PLANNER) / equal.budget.iterations
    assert abs(training_flops(equal, PLANNER) - whole) <= one_iteration


def test_every_table_of_the_paper_is_there() -> None:
    assert list(TABLES) == [*(f"table{i}" for i in range(1, 7)), "controls"]
