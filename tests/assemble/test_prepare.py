"""From recipe to features: everything wrong with the data shows before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora_ft.assemble.prepare import prepare
from lora_ft.errors import DataError, RecipeError
from tests.toy import read, write_recipe, write_reviews


def test_rows_become_features_with_labels_lengths_and_truncation(tmp_path: Path, tiny_bert: Path) -> None:
    prepared = prepare(read(write_recipe(tmp_path, tiny_bert, processor={"max_length": 6})))
    assert prepared.problem.labels == ("negative", "positive")
    assert len(prepared.features["train"]) == 128
    assert max(prepared.features["train"]["length"]) == 6
    assert prepared.truncated["train"] == sum(prepared.features["train"]["truncated"]) > 0


def test_max_length_defaults_to_what_the_base_can_read(tmp_path: Path, tiny_bert: Path) -> None:
    file = write_recipe(tmp_path, tiny_bert)
    text = file.read_text(encoding="utf-8").replace('"max_length": 32', "")
    file.write_text(text, encoding="utf-8")
    assert prepare(read(file)).problem.settings["max_length"] == 64


def test_more_tokens_than_positions_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    with pytest.raises(RecipeError, match="reads at most 80 tokens"):
        prepare(read(write_recipe(tmp_path, tiny_bert, processor={"max_length": 81})))


def test_a_label_that_only_validation_has_is_refused(tmp_path: Path, tiny_bert: Path) -> None:
    file = write_recipe(tmp_path, tiny_bert)
    write_reviews(tmp_path / "data" / "dev.csv", 8, seed=3, names=("negative", "mixed"))
    with pytest.raises(DataError, match="mixed"):
        prepare(read(file))


def _tagged(folder: Path, base: Path, train: list[dict[str, Any]], dev: list[dict[str, Any]], **dataset: Any) -> Path:
    for name, rows in (("train", train), ("dev", dev)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {"data_files": {"train": "train.jsonl", "validation": "dev.jsonl"}}
    return write_recipe(folder, base, task="token-classification", dataset={**files, **dataset})


def test_bad_rows_of_form_and_of_contents_are_told_in_one_message(tmp_path: Path, tiny_bert: Path) -> None:
    good = {"tokens": ["a", "book"], "tags": ["O", "B-thing"]}
    null, short = {"tokens": ["a"], "tags": None}, {"tokens": ["a", "book"], "tags": ["O"]}
    file = _tagged(tmp_path, tiny_bert, [good, null, good, short, good], [good, {"tokens": "a", "tags": ["O"]}])
    with pytest.raises(DataError) as caught:
        prepare(read(file))
    message = str(caught.value).splitlines()
    assert message[0] == f"train, {tmp_path}/train.jsonl: 2 of 5 rows cannot be used"
    assert message[1] == "  row 2: tags is null, expected a list of labels"
    assert message[2].startswith("  row 4: tags: ")
    assert message[3:5] == [
        f"validation, {tmp_path}/dev.jsonl: 1 of 2 rows cannot be used",
        "  row 2: tokens is a text, expected a list of texts",
    ]
    assert message[5] == "Mend or remove them, or write `dataset.on_bad_row: skip`"


def test_bad_labels_of_training_rows_do_not_judge_those_of_validation(tmp_path: Path, tiny_bert: Path) -> None:
    good, bad = {"tokens": ["a"], "tags": ["B-thing"]}, {"tokens": ["a"], "tags": [None]}
    only_there = {"tokens": ["a"], "tags": ["B-place"]}
    with pytest.raises(DataError) as caught:
        prepare(read(_tagged(tmp_path, tiny_bert, [good, bad], [only_there])))
    assert "tags[0] is empty or null" in str(caught.value)
    assert "place" not in str(caught.value)
    with pytest.raises(DataError, match="'B-place'"):
        prepare(read(_tagged(tmp_path, tiny_bert, [good, good], [only_there])))


def test_training_rows_all_bad_say_so_and_nothing_of_labels(tmp_path: Path, tiny_bert: Path) -> None:
    file = write_recipe(tmp_path, tiny_bert)
    (tmp_path / "data" / "train.csv").write_text("text,label\na,\nb,\n", encoding="utf-8")
    with pytest.raises(DataError, match="label is empty or null in 2 of 2 rows of train"):
        prepare(read(file))
