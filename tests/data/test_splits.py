"""Shares of the training rows: disjoint, complete, seeded, stratified."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lora_ft.data import splits
from lora_ft.data.splits import sample_rows, split_by_time, split_groups, split_rows, times_of
from lora_ft.errors import DataError


@given(
    labels=st.lists(st.one_of(st.sampled_from(["a", "b"]), st.floats(0, 1)), min_size=8, max_size=60),
    share=st.floats(0.01, 0.4),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_row_is_in_exactly_one_split(labels: list[object], share: float, seed: int) -> None:
    shares = {"validation": share, "test": share}
    split = split_rows(labels, shares=shares, seed=seed)
    assert sorted(row for rows in split.values() for row in rows) == list(range(len(labels)))
    assert all(split.values())
    assert split == split_rows(labels, shares=shares, seed=seed)


def test_another_seed_chooses_other_rows() -> None:
    labels = ["a", "b"] * 50
    assert split_rows(labels, shares={"test": 0.2}, seed=0) != split_rows(labels, shares={"test": 0.2}, seed=1)


def test_each_class_keeps_its_share() -> None:
    labels = [True] * 90 + [False] * 10
    split = split_rows(labels, shares={"validation": 0.2}, seed=3)
    assert sum(not labels[row] for row in split["validation"]) == 2


def test_a_class_of_one_row_falls_back_to_chance_with_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        split_rows(["a"] * 9 + ["rare"], shares={"test": 0.3}, seed=0)
    assert "test: split off at random and not by label: 1 labels have a single row (such as 'rare')" in caplog.text


def test_more_classes_than_rows_falls_back_to_chance_with_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        split_rows(list("abcdef") * 2, shares={"test": 0.1}, seed=0)
    assert "6 labels do not fit into 1 and 11 rows" in caplog.text


def test_impossible_shares_are_refused() -> None:
    with pytest.raises(DataError, match=r"dataset.test = 1.5: a share of the training rows. Expected more than 0"):
        split_rows(["a", "b"], shares={"test": 1.5}, seed=0)
    with pytest.raises(DataError, match="none is left to train on"):
        split_rows(["a", "b"], shares={"test": 0.5, "validation": 0.5}, seed=0)


GROUPED = st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), min_size=12, max_size=80)


@given(GROUPED, st.sampled_from([0.05, 0.1, 0.25, 0.4]), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_a_group_is_never_on_two_sides(rows: list[tuple[int, str]], share: float, seed: int) -> None:
    groups, labels = [f"customer {number}" for number, _ in rows], [label for _, label in rows]
    shares = {"validation": share, "test": share}
    assume(len(set(groups)) >= 3)
    split = split_groups(labels, groups, shares=shares, seed=seed)
    assert sorted(row for part in split.values() for row in part) == list(range(len(rows)))
    sides = [{groups[row] for row in part} for part in split.values()]
    assert all(sides)
    assert sum(map(len, sides)) == len(set(groups))
    assert split == split_groups(labels, groups, shares=shares, seed=seed)


def test_groups_of_like_size_give_the_share_and_the_classes_of_the_whole() -> None:
    groups = [str(row // 5) for row in range(1000)]
    labels = ["rare" if row // 5 % 4 == 0 else "often" for row in range(1000)]
    for seed in range(2):
        split = split_groups(labels, groups, shares={"validation": 0.15, "test": 0.1}, seed=seed)
        assert {name: len(rows) for name, rows in split.items()} == {"train": 750, "validation": 150, "test": 100}
        for rows in split.values():
            assert sum(labels[row] == "rare" for row in rows) / len(rows) == pytest.approx(0.25, abs=0.06)
    other = split_groups(labels, groups, shares={"test": 0.1}, seed=1)
    assert other != split_groups(labels, groups, shares={"test": 0.1}, seed=2)


def test_a_large_share_leaves_groups_for_the_other_splits() -> None:
    split = split_groups(["a"] * 30, list("xyz") * 10, shares={"validation": 0.6, "test": 0.2}, seed=0)
    assert {name: len(rows) for name, rows in split.items()} == {"train": 10, "validation": 10, "test": 10}


def test_numbers_and_lists_as_labels_are_split_by_group_too() -> None:
    groups = [str(row // 2) for row in range(40)]
    for labels in ([row / 7 for row in range(40)], [["a"]] * 40, [None] * 40):
        assert len(split_groups(labels, groups, shares={"test": 0.2}, seed=0)["test"]) == 8


def test_very_many_groups_are_split_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "MOST_GROUPS", 10)
    groups = [str(row // 4) for row in range(400)]
    split = split_groups(["a"] * 400, groups, shares={"test": 0.2}, seed=0)
    assert len(split["test"]) == 80
    assert not {groups[row] for row in split["test"]} & {groups[row] for row in split["train"]}


def test_too_few_groups_are_told() -> None:
    with pytest.raises(DataError, match=r"dataset.group: the training rows are of one group, and 2 splits need one"):
        split_groups(["a"] * 9, ["x"] * 9, shares={"test": 0.2}, seed=0)
    with pytest.raises(DataError, match=r"of 2 groups, and 3 splits need one each at least"):
        split_groups(["a"] * 9, ["x", *"yyyyyyyy"], shares={"test": 0.2, "validation": 0.2}, seed=0)


@given(st.lists(st.integers(0, 9), min_size=8, max_size=60), st.sampled_from([0.1, 0.3]))
def test_everything_that_is_measured_on_is_newer_than_what_is_learned(moments: list[int], share: float) -> None:
    assume(len(set(moments)) >= 3)
    times = np.array(moments)
    try:
        split = split_by_time(times, shares={"validation": share, "test": share})
    except DataError:
        return  # too many rows of one moment
    assert sorted(row for part in split.values() for row in part) == list(range(len(moments)))
    assert max(times[split["train"]]) < min(times[split["validation"]])
    assert max(times[split["validation"]]) < min(times[split["test"]])


def test_shares_by_time_have_their_size_where_all_moments_differ() -> None:
    times = np.random.default_rng(0).permutation(100)
    split = split_by_time(times, shares={"validation": 0.2, "test": 0.1})
    assert list(split) == ["train", "validation", "test"]
    assert sorted(times[split["test"]]) == list(range(90, 100))
    assert sorted(times[split["validation"]]) == list(range(70, 90))
    with pytest.raises(DataError, match=r"dataset.time: no 10 of 100 training rows are newer than the others"):
        split_by_time(np.zeros(100, dtype=np.int64), shares={"test": 0.1})


@pytest.mark.parametrize(
    "values",
    [
        ["2", "10", "-1", "10.5"],
        ["2024-05-01", "2024-05-01T10:00:00", "2023-12-31T23:59:59.5", "2024-05-01T12:00:00+01:00"],
        ["2024", "2025", "2023", "2026"],
    ],
)
def test_numbers_and_dates_are_moments(values: list[str]) -> None:
    times, wrong = times_of(values)
    assert not wrong
    assert [values[row] for row in np.argsort(times)] == [values[row] for row in (2, 0, 1, 3)]


def test_what_is_no_moment_is_told_by_its_place() -> None:
    assert times_of(["2024-05-01", "31.12.2024", "soon"])[1] == [1, 2]


def test_a_sample_has_its_size_its_classes_and_its_seed() -> None:
    labels = ["a"] * 300 + ["b"] * 100
    rows = sample_rows(labels, size=40, seed=0)
    assert len(rows) == 40 and rows == sorted(set(rows))
    assert sum(labels[row] == "b" for row in rows) == 10
    assert rows == sample_rows(labels, size=40, seed=0) != sample_rows(labels, size=40, seed=1)
    assert sample_rows(labels, size=400, seed=0) == sample_rows(labels, size=999, seed=0) == list(range(400))
    assert len(sample_rows([None] * 50, size=7, seed=0)) == 7
