"""From recipe to features: everything wrong with the data shows before a model is loaded."""

from __future__ import annotations

from pathlib import Path

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
