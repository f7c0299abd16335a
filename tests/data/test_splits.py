"""Shares of the training rows: disjoint, complete, seeded, stratified."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.data.splits import split_rows
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
