"""SID's names, lists and splits against the published lists (facts, 9), and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eslkit.errors import InputError
from eslkit_tsdn.data.sid import (
    ELD_SCENES,
    MISALIGNED_SCENES,
    SPLIT_SIZES,
    SidPair,
    make_pair,
    parse_name,
    read_list,
    select,
    split_of,
)

DATA = Path(__file__).parents[3] / "shared" / "data"


def published(name: str) -> tuple[SidPair, ...]:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"no list file {path}")
    return read_list(path)


def everything() -> list[SidPair]:
    splits = ("train", "val", "test")
    return [pair for split in splits for pair in published(f"sid_splits/Sony_{split}_list.txt")]


def names(pairs: object) -> set[tuple[str, str]]:
    return {(pair.short, pair.long) for pair in pairs}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "split, num_pairs, num_scenes, by_ratio, num_first, first_by_ratio",
    [
        ("train", 1865, 161, (587, 457, 821), 280, (85, 85, 110)),
        ("val", 234, 20, (72, 62, 100), 36, (11, 11, 14)),
        ("test", 598, 50, (182, 180, 236), 93, (29, 29, 35)),
    ],
)
def test_the_lists_have_the_published_counts(
    split: str, num_pairs: int, num_scenes: int, by_ratio: tuple, num_first: int, first_by_ratio
) -> None:
    pairs = published(f"sid_splits/Sony_{split}_list.txt")
    assert len(pairs) == num_pairs == SPLIT_SIZES[split]
    assert {split_of(pair.scene) for pair in pairs} == {split}
    assert len({pair.scene for pair in pairs}) == len({pair.long for pair in pairs}) == num_scenes
    counts = Counter(round(pair.ratio) for pair in pairs)
    assert tuple(counts[ratio] for ratio in (100, 250, 300)) == by_ratio
    first = select(pairs, f"{split}-first")
    assert len(first) == num_first == SPLIT_SIZES[f"{split}-first"]
    counts = Counter(round(pair.ratio) for pair in first)
    assert tuple(counts[ratio] for ratio in (100, 250, 300)) == first_by_ratio
    assert names(first) == names(published(f"eld_lists/ELD_Sony_{split}.txt"))


def test_the_scenes_of_eld_and_the_129_pairs_are_those_of_its_lists() -> None:
    pairs = everything()
    eld = select(pairs, "eld15")
    assert names(eld) == names(published("eld_lists/SID_Sony_15_paired.txt"))
    assert len(eld) == SPLIT_SIZES["eld15"] == 45
    assert Counter(round(pair.ratio) for pair in eld) == {100: 15, 250: 15, 300: 15}
    assert {pair.scene for pair in eld} == set(ELD_SCENES)
    assert {pair.long_exposure for pair in eld} == {10.0}
    paired = select(pairs, "sid129")
    assert names(paired) == names(published("eld_lists/SID_Sony_paired.txt"))
    assert len(paired) == SPLIT_SIZES["sid129"] == 129
    assert Counter(round(pair.ratio) for pair in paired) == {100: 40, 250: 40, 300: 49}


def test_misaligned_scenes_are_left_out_where_asked() -> None:
    pairs = everything()
    whole, aligned = (
        select(pairs, "test", drop_misaligned=drop_misaligned) for drop_misaligned in (False, True)
    )
    gone = set(whole) - set(aligned)
    assert len(gone) == 36
    assert {pair.scene for pair in gone} == set(MISALIGNED_SCENES)
    assert len(select(pairs, "sid129", drop_misaligned=True)) == 124
    assert select(pairs, "eld15", drop_misaligned=True) == select(pairs, "eld15")


def test_the_ratio_follows_from_the_names_and_is_capped() -> None:
    assert make_pair("10003_00_0.04s.ARW", "10003_00_10s.ARW").ratio == 250
    assert make_pair("10003_00_0.1s.ARW", "10003_00_10s.ARW").ratio == 100
    assert make_pair("10003_00_0.1s.ARW", "10003_00_30s.ARW").ratio == 300
    assert make_pair("10003_00_0.033s.ARW", "10003_00_10s.ARW").ratio == 300
    pair = make_pair("10003_07_0.04s.ARW", "10003_00_10s.ARW")
    assert (pair.scene, pair.shot, pair.name) == ("10003", "07", "10003_07_0.04s")


@given(st.text(max_size=40) | st.from_regex(r"\d{4,6}_\d{1,3}_[\d.]{0,9}s\.\w*", fullmatch=True))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        scene, shot, exposure = parse_name(text)
    except InputError as error:
        assert "not one of SID's" in str(error)  # noqa: PT017
    else:
        assert len(scene) == 5
        assert len(shot) == 2
        assert 0 < exposure < 1e6


@pytest.mark.parametrize(
    "short, long, message",
    [
        ("10003_00_0.1.ARW", "10003_00_10s.ARW", "not one of SID's"),
        ("10003_00_0s.ARW", "10003_00_10s.ARW", "not one of SID's"),
        ("10003_00_0.1s.ARW", "10004_00_10s.ARW", "different scenes"),
        ("10003_00_10s.ARW", "10003_00_0.1s.ARW", "not shorter"),
    ],
)
def test_what_is_no_pair_is_refused(short: str, long: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_pair(short, long)


GOOD = "./Sony/short/10003_00_0.04s.ARW ./Sony/long/10003_00_10s.ARW ISO200 F9\n"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"\xff\xfe\x00", "not a text file"),
        (GOOD.encode() * 2, r"line 2: 10003_00_0\.04s\.ARW stands there twice"),
        (GOOD.encode() + b"hello\n", "line 2: 'hello' has 1 words"),
        (GOOD.encode() + b"a b c d e\n", "has 5 words"),
        (b"./Sony/short/a.ARW ./Sony/long/b.ARW ISO200 F9\n", "line 1: .*'a.ARW' is not one"),
        (b"90003_00_0.1s.ARW 90003_00_10s.ARW\n", "belongs to no split"),
    ],
)
def test_a_damaged_list_is_refused_with_its_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "Sony_test_list.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_list(path)
    assert str(path) in str(caught.value)


def test_a_list_cannot_point_out_of_the_dataset(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("../../etc/10003_00_0.1s.ARW C:\\x\\10003_00_10s.ARW\n")
    [pair] = read_list(path)
    assert (pair.short, pair.long) == ("10003_00_0.1s.ARW", "10003_00_10s.ARW")
    with pytest.raises(InputError, match="cannot be read"):
        read_list(tmp_path / "absent.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_list(tmp_path)


def test_splits_that_are_not_there_are_named() -> None:
    pairs = [make_pair("10003_00_0.04s.ARW", "10003_00_10s.ARW")]
    with pytest.raises(InputError, match=r"no split 'tests'; expected one of train, val, test"):
        select(pairs, "tests")
    with pytest.raises(InputError, match=r"no pair of the split train is there \(1865"):
        select(pairs, "train")
