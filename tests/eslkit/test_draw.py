from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eslkit.draw import draw_network, draw_plan
from eslkit.layout import Drawing, compare, lay_out
from eslkit.plan import LayerInfo
from eslkit.words import describe
from tests.eslkit.paper_plan import paper_plan, stage_layers
from tests.eslkit.small_walk import small_plan

SVG = "{http://www.w3.org/2000/svg}"

pictures = st.lists(
    st.builds(
        LayerInfo,
        name=st.text("ab<&>\"'.", min_size=1, max_size=5),
        kind=st.sampled_from(["conv", "up", "down", "other"]),
        level=st.integers(0, 5),
        width=st.integers(1, 4096),
        stage=st.sampled_from(["", "one", "two & <three>"]),
    ),
    max_size=20,
)


def laid_out(layers: list[LayerInfo]) -> Drawing:
    return lay_out(compare((), layers), widest=512)


@given(pictures, pictures)
def test_every_layer_is_marked_once(before: list[LayerInfo], after: list[LayerInfo]) -> None:
    marked = compare(before, after)
    assert [layer for layer, mark in marked if mark != "removed"] == after
    gone = [layer for layer, mark in marked if mark == "removed"]
    assert all(layer in before for layer in gone)
    assert all(mark == "same" for _, mark in compare(after, after))


@given(pictures)
def test_blocks_of_a_stage_never_overlap_and_labels_stay_apart(layers: list[LayerInfo]) -> None:
    drawing = laid_out(layers)
    assert sum(block.count for blocks in drawing.blocks for block in blocks) == len(layers)
    for blocks in drawing.blocks:
        for first, second in itertools.pairwise(blocks):
            assert second.x > first.right
    reach = [len(label.text) * 6.3 / 2 for label in drawing.labels]
    for index, label in enumerate(drawing.labels[1:], start=1):
        before = drawing.labels[index - 1]
        assert label.x - reach[index] >= before.x + reach[index - 1] - 1e-6
    for blocks in drawing.blocks:
        assert all(b.x >= 0 and b.right <= drawing.width + 1e-6 for b in blocks)
        assert all(b.y >= 0 and b.y + b.height <= drawing.height for b in blocks)


@given(pictures)
def test_any_picture_becomes_valid_xml(layers: list[LayerInfo]) -> None:
    plan = small_plan()
    steps = tuple(step.model_copy(update={"picture": tuple(layers)}) for step in plan.steps)
    plan = plan.model_copy(update={"steps": steps})
    assert ElementTree.fromstring(draw_plan(plan)).tag == f"{SVG}svg"
    assert ElementTree.fromstring(draw_network(steps[0])).tag == f"{SVG}svg"


def marks(name: str) -> dict[str, list[str]]:
    plan = paper_plan(("",))
    index = [step.name for step in plan.steps].index(name)
    before = plan.steps[index - 1].picture
    found: dict[str, list[str]] = {}
    for layer, mark in compare(before, plan.steps[index].picture):
        found.setdefault(mark, []).append(layer.name)
    found.pop("same")
    return found


@pytest.mark.parametrize(
    "name, expected",
    [
        ("EL", {"removed": []}),
        ("CSL1", {"changed": ["down4.1", "down4.2", "up3"]}),
        ("CSL5", {"changed": ["down0.1", "down0.2", "back0.1", "back0.2"]}),
        ("LSL1", {"removed": ["down4.1", "down4.2", "up3"]}),
        ("LSL2", {"removed": ["down3.2", "back3.1"]}),
    ],
)
def test_the_papers_steps_are_marked(name: str, expected: dict[str, list[str]]) -> None:
    if name != "EL":
        assert marks(name) == expected
        return
    plan = paper_plan(("",))
    marked = compare(plan.steps[-1].picture, plan.steps[0].picture)
    new = [layer.name for layer, mark in marked if mark == "new"]
    assert new == ["down3.2", "down4.1", "down4.2", "up3", "back3.1"]
    assert [layer.name for layer, mark in marked if mark == "same"] == ["out"]


def test_layers_that_a_wrapper_renamed_are_found_by_their_place() -> None:
    small = stage_layers("", (16, 32, 64), (16, 32))
    renamed = [
        layer.model_copy(update={"name": f"wrapped.{layer.name}", "width": 2 * layer.width})
        for layer in small
    ]
    assert {mark for _, mark in compare(small, renamed)} == {"changed"}


def test_a_layer_that_was_wrapped_is_still_the_same_one() -> None:
    def layer(name: str) -> LayerInfo:
        return LayerInfo(name=name, kind="conv", level=1, width=8)

    plain = [layer(name) for name in ("one", "two", "three")]
    wrapped = [layer(name) for name in ("one", "two.level.entry", "two.level.up", "two.body")]
    wrapped.append(layer("three"))
    expected = ["same", "new", "new", "same", "same"]
    assert [mark for _, mark in compare(plain, wrapped)] == expected
    back = [mark.replace("new", "removed") for mark in expected]
    assert [mark for _, mark in compare(wrapped, plain)] == back


def test_layers_inside_a_wrapped_module_are_still_the_same_ones() -> None:
    def layers(*names: str) -> list[LayerInfo]:
        return [LayerInfo(name=name, kind="conv", level=1, width=8) for name in names]

    plain = layers("deep.a", "deep.sub.b", "deep.sub.c", "last")
    once = layers("deep.a", "deep.sub.level.entry", "deep.sub.body.b", "deep.sub.body.c", "last")
    twice = layers(
        "deep.a",
        "deep.sub.level.middle2.level.entry",
        "deep.sub.level.middle2.body",
        "deep.sub.body.b",
        "deep.sub.body.c",
        "last",
    )
    assert [m for _, m in compare(plain, once)] == ["same", "new", "same", "same", "same"]
    assert [m for _, m in compare(once, plain)] == ["same", "removed", "same", "same", "same"]
    assert [m for _, m in compare(plain, twice)] == ["same", "new", "new", "same", "same", "same"]


def test_a_skip_to_a_finer_level_goes_up_before_it_goes_along() -> None:
    layers = [
        LayerInfo(name="fine", kind="down", level=1, width=8, skip=""),
        LayerInfo(name="deep", kind="down", level=2, width=8, skip=""),
        LayerInfo(name="beside", kind="up", level=1, width=8, skip=""),
        LayerInfo(name="join", kind="up", level=0, width=8, skip="fine"),
    ]
    step = small_plan().steps[0].model_copy(update={"picture": tuple(layers)})
    svg = draw_network(step)
    (path,) = re.findall(r'<path class="skip" d="(M[^"]*V[^"]*H[^"]*)"', svg)
    along = float(path.split("V")[1].split("H")[0])
    beside = next(b for b in laid_out(layers).blocks[0] if b.layer.name == "beside")
    assert along < beside.y  # it does not lie on another block's inputs


def test_a_u_has_its_skips_and_says_where_it_knows_better() -> None:
    layers = stage_layers("", (16, 32, 64), (16, 32))
    drawn = [(skip.start.layer.name, skip.end.layer.name) for skip in laid_out(layers).skips]
    assert drawn == [("down1.2", "back1.1"), ("down0.2", "back0.1")]
    plain = [layer.model_copy(update={"skip": ""}) for layer in layers]
    assert laid_out(plain).skips == ()
    told = [
        layer.model_copy(update={"skip": "down0.1" if layer.name == "out" else ""})
        for layer in layers
    ]
    drawn = [(skip.start.layer.name, skip.end.layer.name) for skip in laid_out(told).skips]
    assert drawn == [("down0.1", "out")]


def test_many_equal_layers_become_one_block() -> None:
    layers = [LayerInfo(name=f"b{i}", kind="conv", level=2, width=256) for i in range(12)]
    drawing = laid_out(layers)
    assert [label.text for label in drawing.labels] == ["256 ×12"]
    assert len(drawing.blocks[0]) == 1
    assert drawing.blocks[0][0].count == 12
    end = LayerInfo(name="end", kind="up", level=1, width=128, skip="b5")
    (skip,) = laid_out([*layers, end]).skips
    assert (skip.start.layer.name, skip.end.layer.name) == ("b0", "end")


def test_the_svg_holds_every_step_with_its_figures() -> None:
    svg = draw_plan(paper_plan())
    texts = ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    for expected in ("the small model", "EL", "LSL2", "15.52 M parameters", "964.5 k parameters"):
        assert expected in texts
    assert texts.count("512") == 2
    assert "prefers-color-scheme:dark" in svg
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")


def test_steps_are_described_in_words() -> None:
    plan = paper_plan(("",))
    assert [describe(step, plan) for step in plan.steps[:2]] == [
        "expand: 2 times as wide, 1 level deeper",
        "level 4: 512 to 256 (2 layers)",
    ]
    assert describe(plan.steps[-1], plan) == "remove 2 layers"
    blank = plan.steps[1].model_copy(update={"picture": ()})
    assert describe(blank, plan) == "narrow 2 layers"
