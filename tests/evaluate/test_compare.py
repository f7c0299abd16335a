"""Base and adapter are measured on the same rows, with intervals that hold the value."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ft.assemble.recorded import RecordedColumns
from lora_ft.assemble.saved import OpenOptions, SavedAdapter, open_adapter
from lora_ft.errors import DataError
from lora_ft.evaluate.compare import compare, rows_of_file, rows_of_recipe
from lora_ft.train.run import RunOptions, train
from tests.toy import read, write_recipe, write_reviews


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> SavedAdapter:
    recipe = write_recipe(tmp_path_factory.mktemp("compare"), tiny_bert)
    return open_adapter(train(read(recipe), RunOptions()).folder, OpenOptions(offline=True))


def test_a_base_without_a_head_answers_with_the_majority(opened: SavedAdapter) -> None:
    name, rows = rows_of_recipe(opened, read(opened.folder / "recipe.yaml"), None)
    assert name == "validation"
    comparison = compare(opened, rows, split=name, resamples=50)
    assert comparison.base["accuracy"] == 0.5
    assert comparison.adapter["accuracy"] > 0.8
    assert comparison.adapter["accuracy"] == opened.manifest.metrics["validation"]["accuracy"]
    low, high = comparison.intervals["accuracy"]
    assert low <= comparison.adapter["accuracy"] <= high
    assert comparison.differences["accuracy"].low > 0
    assert len(comparison.predictions) == len(rows)


def test_a_split_that_the_recipe_has_not_is_named(opened: SavedAdapter) -> None:
    with pytest.raises(DataError, match="no split 'test'"):
        rows_of_recipe(opened, read(opened.folder / "recipe.yaml"), "test")


def test_a_file_without_labels_points_to_predict(opened: SavedAdapter, tmp_path: Path) -> None:
    file = tmp_path / "texts.csv"
    file.write_text("text\ngood book\n", encoding="utf-8")
    with pytest.raises(DataError, match="lora-ft predict"):
        rows_of_file(opened, file, RecordedColumns({}))


def test_a_file_with_a_label_that_the_adapter_does_not_know_is_refused(opened: SavedAdapter, tmp_path: Path) -> None:
    file = write_reviews(tmp_path / "rows.csv", 4, seed=5, names=("negative", "mixed"))
    with pytest.raises(DataError, match="mixed"):
        rows_of_file(opened, file, RecordedColumns({}))
