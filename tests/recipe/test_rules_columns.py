"""The columns that a task needs against those that the files have."""

# ruff: noqa: E501 - a message is compared on the line that it is

from __future__ import annotations

from pathlib import Path

from tests.recipe.stub import GOOD, fault, faults, read


def test_a_column_that_does_not_exist_names_the_file_its_columns_and_the_nearest(tmp_path: Path) -> None:
    assert faults(
        tmp_path, text=GOOD.replace("training_args", "  columns: {text: reveiw, label: stars}\ntraining_args")
    ) == [
        "x.yaml:8: dataset.columns.text = 'reveiw': train.csv has no column 'reveiw'. Did you mean 'review'? Its columns: "
        "text, label, review, stars, pair",
        "x.yaml:8: dataset.columns.text = 'reveiw': dev.csv has no column 'reveiw'. Did you mean 'review'? Its columns: "
        "text, label, review, stars, pair",
    ]


def test_a_required_column_may_be_left_out_only_if_the_data_has_our_name(tmp_path: Path) -> None:
    read(tmp_path)
    (tmp_path / "other.csv").write_text("review,label\na,b\n")
    assert fault(tmp_path, "dataset.data_files=other.csv") == (
        "x.yaml:6: dataset.columns.text: the task needs a column 'text' (the text to classify), and other.csv has none "
        "of that name. Write columns: {text: NAME}. Its columns: review, label"
    )


def test_an_optional_column_may_be_absent_unless_it_is_named(tmp_path: Path) -> None:
    read(tmp_path)
    assert "has no column 'second'" in faults(tmp_path, "dataset.columns.text_pair=second")[0]


def test_each_missing_label_column_is_named(tmp_path: Path) -> None:
    found = faults(tmp_path, "dataset.columns.label=[stars, heat]", "dataset.data_files.validation=null")
    assert len(found) == 1
    assert "dataset.columns.label[1] = 'heat': train.csv has no column 'heat'" in found[0]


def test_a_misspelt_key_of_columns_is_not_reported_as_a_missing_column_too(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("review,label\na,b\n")
    found = fault(tmp_path, "dataset={data_files: other.csv, columns: {txt: review}}")
    assert found.endswith("has no key 'txt'. Did you mean 'text'?")


def test_a_file_without_a_header_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    found = fault(tmp_path, "dataset.data_files=empty.csv")
    assert found.endswith("=empty.csv: empty.csv: it is empty. Expected a header line with the column names")
