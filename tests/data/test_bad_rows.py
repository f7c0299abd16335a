"""Bad rows are all told at once with file, number and reason, or left out and counted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_ft.data import progress
from lora_ft.data.checks import drop_bad_rows
from lora_ft.data.rows import Origin, Splits
from lora_ft.data.sources import load_file, load_splits
from lora_ft.errors import DataError
from lora_ft.recipe.schema import Column, DatasetSection
from tests.data.rows_of import COLUMNS, TAGGED, TAGGED_SETS, section, with_shares

GOOD = {"tokens": ["a"], "tags": ["O"]}
BAD = {"tokens": ["a"], "tags": None}


def lines(file: Path, *rows: Mapping[str, Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def load(dataset: DatasetSection, wanted: tuple[Column, ...] = TAGGED, **changes: Any) -> Splits:
    sets = TAGGED_SETS if wanted is TAGGED else None
    dataset = dataclasses.replace(dataset, **changes)
    return with_shares(load_splits(dataset, columns=wanted, column_sets=sets, offline=True), dataset)


def fault(dataset: DatasetSection, wanted: tuple[Column, ...] = TAGGED, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(dataset, wanted, **changes)
    return str(caught.value)


def texts(count: int) -> Splits:
    rows = datasets.Dataset.from_dict({"text": [f"text {row}" for row in range(count)]})
    return Splits({"train": rows}, origins={"train": Origin.of("a.csv", range(2, count + 2))}, label_names=("a",))


def odd(row: Mapping[str, Any]) -> str | None:
    return "text: is odd" if int(row["text"].split()[1]) % 4 == 1 else None


def test_half_a_character_is_a_fault_of_its_row(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines(
        file,
        {"text": "fine \U0001f600", "label": "a"},  # two halves in the file
        {"text": "cut \ud83d", "label": "a"},
        {"text": "b", "label": "\ude00"},
        *[{"text": "c", "label": "a"}] * 7,
    )
    message = fault(section(train=file), COLUMNS)
    assert "row 2: text has half of a character" in message
    assert "row 3: label has half of a character" in message
    kept = load(section(train=file), COLUMNS, on_bad_row="skip")
    assert kept.skipped == {"train": 2}
    assert kept["train"]["text"][:] == ["fine \U0001f600", *"ccccccc"]


def test_half_a_character_inside_of_tags_is_a_fault_too(tmp_path: Path) -> None:
    cut = lines(tmp_path / "a.jsonl", GOOD, {"tokens": ["\ud83d"], "tags": ["O"]})
    assert "row 2: tokens has half of a character" in fault(section(train=cut))


def test_all_faults_of_all_files_are_in_one_error_by_file_row_and_column(tmp_path: Path) -> None:
    one = lines(tmp_path / "a.jsonl", GOOD, {"tokens": "a b", "tags": ["O"]}, GOOD, BAD, BAD)
    two = lines(tmp_path / "b.jsonl", {"tokens": [None], "tags": ["O", ""]}, GOOD)
    message = fault(section(train=one, validation=two))
    assert message.splitlines() == [
        f"train, {one}: 3 of 5 rows cannot be used",
        "  row 2: tokens is a text, expected a list of texts",
        "  rows 4, 5: tags is null, expected a list of labels",
        f"validation, {two}: 1 of 2 rows cannot be used",
        "  row 1: tokens[0] is null, expected a text",
        "  row 1: tags[1] is empty or null, expected a label",
        "Mend or remove them, or write `dataset.on_bad_row: skip`",
    ]


def test_the_count_is_of_the_rows_of_the_whole_split(tmp_path: Path) -> None:
    one, two = lines(tmp_path / "a.jsonl", GOOD, BAD), lines(tmp_path / "b.jsonl", GOOD, {"tokens": "a", "tags": ["O"]})
    assert fault(section(train=[one, two])).splitlines() == [
        "train: 2 of 4 rows cannot be used",
        f"  {one}, row 2: tags is null, expected a list of labels",
        f"  {two}, row 2: tokens is a text, expected a list of texts",
        "Mend or remove them, or write `dataset.on_bad_row: skip`",
    ]
    assert fault(section(train=[two])) == (
        f"{two}, row 2: tokens is a text, expected a list of texts in 1 of 2 rows of train. "
        "Mend or remove it, or write `dataset.on_bad_row: skip`"
    )


def test_a_file_that_is_a_row_is_named_once() -> None:
    photos = datasets.Dataset.from_dict({"text": ["a", "b"]})
    splits = Splits({"train": photos}, origins={"train": Origin.of_files(["x/a.jpg", "x/b.jpg"])})
    with pytest.raises(DataError) as caught:
        drop_bad_rows(splits, lambda row: f"image: x/{row['text']}.jpg: is cut off", on_bad_row="error")
    assert str(caught.value).startswith("x/a.jpg; x/b.jpg: image: is cut off in 2 of 2 rows of train. Mend")


def test_five_reasons_are_listed_and_the_others_counted(tmp_path: Path) -> None:
    rows = [{"tokens": ["a"], "tags": [["O"]] * 0 + ["O"] * at + [None]} for at in range(13)]
    message = fault(section(train=lines(tmp_path / "a.jsonl", *rows)))
    assert message.count(": tags[") == 5
    assert message.count("a.jsonl") == 1
    assert "row 5: tags[4]" in message
    assert "a.jsonl: 13 of 13 rows cannot be used\n" in message
    assert "\n  ... and 8 more faults\nMend" in message


def test_skipped_rows_are_counted_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    one = lines(tmp_path / "a.jsonl", GOOD, BAD, {"tokens": ["kept"], "tags": ["O"]})
    two = lines(tmp_path / "b.jsonl", BAD)
    three = lines(tmp_path / "c.jsonl", GOOD)
    splits = load(section(train=[one, two, three, three], validation=three), on_bad_row="skip")
    assert [row["tokens"] for row in splits["train"]] == [["a"], ["kept"], ["a"], ["a"]]
    assert splits.skipped == {"train": 2}
    assert splits.origins["train"].describe([1, 2]) == f"{one}, row 3; {three}, row 1"


def test_null_texts_and_labels_are_skipped_too(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,label\nx,1\ny, \nz,2\n", encoding="utf-8")
    splits = load(section(train=file), COLUMNS, on_bad_row="skip")
    assert splits["train"][:] == {"text": ["x", "z"], "label": [1, 2]}
    flags = tmp_path / "b.csv"
    flags.write_text("text,a,b\nx,1,0\ny,2,0\nz,0,1\n", encoding="utf-8")
    splits = load(section(train=flags), COLUMNS, columns={"label": ("a", "b")}, on_bad_row="skip")
    assert splits["train"][:] == {"text": ["x", "z"], "label": [["a"], ["b"]]}


@pytest.mark.parametrize("saved", [False, True])
def test_null_texts_of_a_table_are_skipped_too(tmp_path: Path, saved: bool) -> None:
    rows = datasets.Dataset.from_dict({"text": ["x", None, "z"], "label": ["a", "b", None], "id": [1, 2, 3]})
    rows = datasets.concatenate_datasets([rows.select([0]), rows])
    rows.save_to_disk(str(tmp_path / "saved"))
    rows.to_parquet(str(tmp_path / "a.parquet"))
    dataset = DatasetSection(path=str(tmp_path / "saved")) if saved else section(train=tmp_path / "a.parquet")
    splits = load(dataset, COLUMNS, on_bad_row="skip")
    assert splits["train"][:] == {"text": ["x", "x"], "label": ["a", "a"]}
    assert splits.skipped == {"train": 2}


def test_more_bad_rows_than_good_ones_are_refused_even_where_they_may_be_skipped(tmp_path: Path) -> None:
    half = section(train=lines(tmp_path / "a.jsonl", GOOD, BAD))
    assert load(half, on_bad_row="skip").skipped == {"train": 1}
    message = fault(section(train=lines(tmp_path / "b.jsonl", GOOD, BAD, BAD)), on_bad_row="skip")
    assert "b.jsonl, rows 2, 3: tags is null, expected a list of labels in 2 of 3 rows" in message
    assert "\ntrain: 2 of 3 rows would be left out, too many to skip. Check `dataset.columns`" in message


def test_rows_are_skipped_before_a_share_is_split_off(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", *[GOOD, BAD, GOOD, GOOD] * 5)
    splits = load(section(train=file), on_bad_row="skip", validation=0.2)
    assert {split: len(table) for split, table in splits.items()} == {"train": 12, "validation": 3}
    assert splits.skipped == {"train": 5}


def test_a_file_to_predict_never_loses_a_row(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", GOOD, {"tokens": None})
    with pytest.raises(DataError) as caught:
        load_file(file, columns={}, wanted=TAGGED[:1], column_sets=TAGGED_SETS)
    assert f"{file}, row 2: tokens is null, expected a list of texts in 1 of 2 rows" in str(caught.value)
    assert "on_bad_row" not in str(caught.value)


def test_faults_that_a_task_finds_are_refused_together() -> None:
    with pytest.raises(DataError) as caught:
        drop_bad_rows(texts(6), odd, on_bad_row="error")
    assert str(caught.value).startswith("a.csv, rows 3, 7: text: is odd in 2 of 6 rows of train. Mend")


def test_faults_that_a_task_finds_are_skipped_and_added_up() -> None:
    splits = texts(8)
    splits.skipped = {"train": 3}
    kept = drop_bad_rows(splits, odd, on_bad_row="skip")
    assert list(kept["train"]["text"]) == [f"text {row}" for row in (0, 2, 3, 4, 6, 7)]
    assert kept.skipped == {"train": 5}
    assert kept.label_names == ("a",)
    assert kept.origins["train"].describe([1]) == "a.csv, row 4"
    assert splits.skipped == {"train": 3}
    assert len(splits["train"]) == 8


def test_a_task_that_refuses_most_rows_is_not_obeyed() -> None:
    with pytest.raises(DataError, match="train: 3 of 3 rows would be left out"):
        drop_bad_rows(texts(3), lambda row: "text: no", on_bad_row="skip")
    assert drop_bad_rows(texts(3), lambda row: None, on_bad_row="error")["train"]["text"][0] == "text 0"


@given(bad=st.lists(st.booleans(), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_skipping_keeps_exactly_the_good_rows_in_order(tmp_path: Path, bad: list[bool]) -> None:
    rows = [BAD if wrong else {"tokens": [str(at)], "tags": ["O"]} for at, wrong in enumerate(bad)]
    dataset = section(train=lines(tmp_path / "a.jsonl", *rows))
    if 2 * sum(bad) > len(bad):
        assert "too many to skip" in fault(dataset, on_bad_row="skip")
        return
    splits = load(dataset, on_bad_row="skip")
    assert [row["tokens"] for row in splits["train"]] == [[str(at)] for at, wrong in enumerate(bad) if not wrong]
    assert splits.skipped.get("train", 0) == sum(bad)


def test_a_bar_shows_only_for_what_takes_long(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets.enable_progress_bars()
    drop_bad_rows(texts(30), odd, on_bad_row="skip", description="look at rows")
    assert capfd.readouterr().err == ""
    assert list(progress.watched(range(3), total=3, description="look at rows", after_s=0)) == [0, 1, 2]
    assert "look at rows" in capfd.readouterr().err
