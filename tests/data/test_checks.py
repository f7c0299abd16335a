"""The data doctor refuses what spoils a run and counts the rest."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from lora_ft.data.checks import RowReport, check_rows
from lora_ft.data.rows import Origin, Splits
from lora_ft.errors import DataError
from lora_ft.recipe.schema import Column
from tests.data.rows_of import COLUMNS, table

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def check(splits: dict[str, datasets.Dataset], labels: tuple[str, ...] = ("a", "b"), kind: str = SINGLE) -> RowReport:
    return check_rows(splits, columns=COLUMNS, problem_type=kind, labels=labels)


def fault(splits: dict[str, datasets.Dataset], *arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        check(splits, *arguments)
    return str(caught.value)


def test_rows_and_labels_are_counted_and_shown() -> None:
    report = check({"train": table(["a", "b", "b"], ["x", "y", "z"]), "validation": table(["a", "b"], ["v", "w"])})
    assert report.rows == {"train": 3, "validation": 2}
    assert report.labels == {"train": {"a": 1, "b": 2}, "validation": {"a": 1, "b": 1}}
    assert report.lines() == ["train: 3 rows (b 2, a 1)", "validation: 2 rows (a 1, b 1)"]


def test_a_label_that_training_never_sees_is_refused_with_file_and_rows() -> None:
    splits = Splits(
        {"train": table(["good", "bad"]), "validation": table(["good", "goood", "goood"])},
        origins={"train": Origin.of("t.csv", [2, 3]), "validation": Origin.of("v.csv", [2, 3, 4])},
    )
    message = fault(splits, ("bad", "good"))
    assert "v.csv, rows 3, 4: label = 'goood': in 2 validation rows, but never in the training rows." in message
    assert "Did you mean 'good'?" in message


def test_a_plain_mapping_names_positions() -> None:
    message = fault({"train": table(["a", "b"]), "test": table(["a", "c"])})
    assert "split test, row 2: label = 'c'" in message


def test_a_label_without_rows_is_noted() -> None:
    report = check({"train": table(["a", "b"], ["x", "y"]), "test": table(["a"], ["z"])}, ("a", "b", "c"))
    assert report.notes == ("train: no row of label 'c'", "test: no row of label 'b', 'c'")


@pytest.mark.parametrize("labels", [("a",), ("a", "b")])
def test_one_class_cannot_be_trained(labels: tuple[str, ...]) -> None:
    message = fault({"train": table(["a", "a"])}, labels)
    assert "label = 'a' in all 2 rows: a classifier cannot be trained on one class" in message


def test_rows_without_any_label_cannot_be_trained() -> None:
    rows = table([["a"], []]).map(lambda row: {"label": []}, features=table([["a"]]).features)
    assert "no row has a label" in fault({"train": rows}, ("a",), MULTI)


def test_a_constant_target_cannot_be_trained() -> None:
    assert "label = 1.5 in all 2 rows: there is nothing to learn" in fault({"train": table([1.5, 1.5])}, (), REGRESSION)


def test_a_text_in_a_regression_names_split_and_row() -> None:
    assert "train: label = 'x' (row 1 of the split): not a number" in fault({"train": table(["x"])}, (), REGRESSION)


def test_an_empty_split_is_refused() -> None:
    assert "the test split has no rows" in fault({"train": table(["a", "b"]), "test": table(["a"]).select([])})


def test_empty_texts_are_kept_counted_and_noted() -> None:
    report = check({"train": table(["a", "b", "a"], ["x", " \n", "z"])})
    assert report.empty_texts == {"train": 1}
    assert report.rows == {"train": 3}
    assert report.notes == ("train: 1 rows have an empty text and are kept (split train, row 2)",)


def test_mostly_empty_texts_are_refused_by_row() -> None:
    message = fault({"train": table(["a", "b", "a"], ["", " ", "z"])})
    assert "split train, rows 1, 2: text is empty in 2 of 3 train rows" in message
    assert check({"train": table(["a", "b"], ["", "z"])}).empty_texts == {"train": 1}


def test_texts_of_the_training_rows_in_another_split_are_counted() -> None:
    report = check({"train": table(["a", "b"], ["x", "y"]), "validation": table(["a", "b", "a"], ["x", "new", "x"])})
    assert report.repeated == {"validation": 2}
    assert "validation: 2 of 3 rows have a text that is in the training rows too" in report.lines()[-1]


def test_a_pair_is_repeated_only_as_a_pair() -> None:
    def pairs(second: str) -> datasets.Dataset:
        return table(["a", "b"], ["x", "y"]).add_column("text_pair", [second, second])

    assert check({"train": pairs("1"), "test": pairs("2")}).repeated == {"test": 0}
    assert check({"train": pairs("1"), "test": pairs("1")}).repeated == {"test": 2}


def test_a_regression_and_a_multi_label_problem_pass() -> None:
    assert check({"train": table([1, 2])}, (), REGRESSION).labels == {}
    report = check({"train": table([["a", "b"], ["a"], []])}, ("a", "b"), MULTI)
    assert report.labels == {"train": {"a": 2, "b": 1}}


def test_chats_that_are_in_the_training_rows_too_are_told() -> None:
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}] for text in ("a", "b", "c")]
    tables = {
        "train": datasets.Dataset.from_dict({"messages": chats[:2]}),
        "validation": datasets.Dataset.from_dict({"messages": chats[1:]}),
    }
    columns = (Column("messages", "messages", False, "", target=True), Column("prompt", "text", False, ""))
    report = check_rows(tables, columns=columns, problem_type="chat", labels=())
    assert report.repeated == {"validation": 1}
    assert "validation: 1 of 2 rows have a text that is in the training rows too" in report.lines()[-1]
