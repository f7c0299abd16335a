"""Problem type, vocabulary and names of labels."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.data.labels import canonical_label, canonical_labels, infer_problem_type, label_vocabulary
from lora_ft.data.rows import Origin, Splits
from lora_ft.errors import DataError
from tests.data.rows_of import table

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a", "b"], SINGLE),
        ([0, 1, 2], SINGLE),
        ([True, False], SINGLE),
        ([1.0, 2.0], SINGLE),
        ([1.0, 2.5], REGRESSION),
        ([["a"], []], MULTI),
        ([f"class {i % 60}" for i in range(600)], SINGLE),
    ],
)
def test_the_problem_type_follows_the_values(values: list[Any], expected: str) -> None:
    assert infer_problem_type(values, label_names=None) == expected


def test_many_whole_numbers_must_be_named_classes_or_targets() -> None:
    with pytest.raises(DataError) as caught:
        infer_problem_type(list(range(51)) * 3, label_names=None)
    assert "51 distinct whole numbers in 153 rows" in str(caught.value)
    assert "model.problem_type: regression" in str(caught.value)
    assert "dataset.label_names" in str(caught.value)
    assert infer_problem_type(list(range(50)), label_names=None) == SINGLE
    assert infer_problem_type(list(range(51)), label_names=[str(i) for i in range(51)]) == SINGLE


def test_a_text_column_mapped_on_label_is_noticed() -> None:
    with pytest.raises(DataError, match=r"60 distinct texts in 60 rows.*looks like the wrong column"):
        infer_problem_type([f"review {i}" for i in range(60)], label_names=None)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([10, 9, 1], ("1", "9", "10")),
        ([True, False], ("false", "true")),
        (["b", "a", "10", "9"], ("10", "9", "a", "b")),
        ([2.0, 1.5], ("1.5", "2")),
    ],
)
def test_the_order_of_the_vocabulary_does_not_depend_on_the_rows(values: list[Any], expected: tuple[str, ...]) -> None:
    for order in (values, values[::-1]):
        assert label_vocabulary({"train": table(order)}, problem_type=SINGLE, label_names=None) == expected


def test_the_vocabulary_comes_from_the_training_rows_only() -> None:
    splits = {"train": table(["a", "b"]), "validation": table(["c"])}
    assert label_vocabulary(splits, problem_type=SINGLE, label_names=None) == ("a", "b")


def test_a_source_with_an_order_of_its_own_keeps_it() -> None:
    splits = Splits(
        {"train": table(["a", "zero"])},
        origins={"train": Origin.of("x", [1, 2])},
        label_names=("zero", "a", "never"),
    )
    assert label_vocabulary(splits, problem_type=SINGLE, label_names=None) == ("zero", "a", "never")
    assert label_vocabulary(splits, problem_type=SINGLE, label_names=["a", "zero"]) == ("a", "zero")


def test_multi_label_vocabulary_and_names() -> None:
    rows = table([["b", "a", "b"], [], ["c"]])
    assert label_vocabulary({"train": rows}, problem_type=MULTI, label_names=None) == ("a", "b", "c")
    named = canonical_labels(rows, problem_type=MULTI, labels=("a", "b", "c"))
    assert list(named["label"]) == [["b", "a"], [], ["c"]]
    single = canonical_labels(table(["a", "b"]), problem_type=MULTI, labels=("a", "b"))
    assert list(single["label"]) == [["a"], ["b"]]


def test_labels_beyond_the_given_names_are_listed_with_count_place_and_nearest() -> None:
    splits = Splits(
        {"train": table(["positive", "negativ", "negativ", "other"])},
        origins={"train": Origin.of("shop.csv", [2, 3, 4, 5])},
    )
    with pytest.raises(DataError) as caught:
        label_vocabulary(splits, problem_type=SINGLE, label_names=["negative", "positive"])
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        "shop.csv, rows 3, 4: label = 'negativ': not among the label names (2 rows). Did you mean 'negative'?"
    )
    assert lines[1].startswith("shop.csv, row 5: label = 'other'")
    assert "'negative', 'positive'" in lines[2]


def test_whole_numbers_are_positions_in_given_names() -> None:
    splits = {"train": table([0, 1, 1])}
    names = label_vocabulary(splits, problem_type=SINGLE, label_names=["bad", "good"])
    assert list(canonical_labels(splits["train"], problem_type=SINGLE, labels=names)["label"]) == [
        "bad",
        "good",
        "good",
    ]
    with pytest.raises(DataError, match="label = '2'"):
        label_vocabulary({"train": table([0, 1, 2])}, problem_type=SINGLE, label_names=["bad", "good"])


def test_names_that_are_numbers_are_never_positions() -> None:
    with pytest.raises(DataError, match="label = '0'"):
        label_vocabulary({"train": table([0, 1])}, problem_type=SINGLE, label_names=["1", "2"])


def test_booleans_find_names_in_any_case() -> None:
    rows = canonical_labels(table([True, False]), problem_type=SINGLE, labels=("False", "True"))
    assert list(rows["label"]) == ["True", "False"]


def test_a_regression_has_floats_and_no_vocabulary() -> None:
    assert label_vocabulary({"train": table([1, 2])}, problem_type=REGRESSION, label_names=None) == ()
    rows = canonical_labels(table([1, 2]), problem_type=REGRESSION, labels=())
    assert [type(value) for value in rows["label"]] == [float, float]
    with pytest.raises(DataError, match=r"label = 'x' \(row 1 of the split\): not a number"):
        canonical_labels(table(["x", "y"]), problem_type=REGRESSION, labels=())


def test_lists_in_a_single_label_problem_are_refused() -> None:
    with pytest.raises(DataError, match="a list of labels in a single_label_classification problem"):
        label_vocabulary({"train": table([["a"], ["b"]])}, problem_type=SINGLE, label_names=None)


def test_no_training_rows_are_refused() -> None:
    with pytest.raises(DataError, match="train split has no rows"):
        label_vocabulary({"test": table(["a"])}, problem_type=SINGLE, label_names=None)


def test_naming_twice_changes_nothing_and_rows_without_labels_pass() -> None:
    once = canonical_labels(table([True, False]), problem_type=SINGLE, labels=("false", "true"))
    twice = canonical_labels(once, problem_type=SINGLE, labels=("false", "true"))
    assert once[:] == twice[:]
    assert once.column_names == ["text", "label"]
    first = canonical_labels(once.select_columns(["label", "text"]), problem_type=SINGLE, labels=("false", "true"))
    assert first.column_names == ["label", "text"]
    bare = once.remove_columns("label")
    assert canonical_labels(bare, problem_type=SINGLE, labels=("a",)) is bare


def test_an_unknown_label_of_a_file_is_refused() -> None:
    with pytest.raises(DataError, match=r"label = 'goood': not among the label names \(1 rows\). Did you mean 'good'"):
        canonical_labels(table(["goood"]), problem_type=SINGLE, labels=("good", "bad"))


@given(st.lists(st.integers(-100, 100), min_size=1))
def test_numbers_order_by_value_and_whole_floats_are_whole_numbers(values: list[int]) -> None:
    names = label_vocabulary({"train": table(values)}, problem_type=SINGLE, label_names=None)
    assert [int(name) for name in names] == sorted(set(values))
    assert [canonical_label(float(value)) for value in values] == [canonical_label(value) for value in values]
