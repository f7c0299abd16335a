"""Encoding keeps the order, drops the rows' columns, and leaves nothing on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest

from lora_ft.data.encode import encode_split
from tests.data.rows_of import table


def lengths(rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    return {
        "input_ids": [[len(text)] for text in rows["text"]],
        "length": [len(text) for text in rows["text"]],
    }


def test_features_follow_the_rows_and_the_rows_columns_are_gone() -> None:
    rows = table(["a"] * 2500, ["x" * (i % 7) for i in range(2500)])
    features = encode_split(rows, lengths, description="encode")
    assert features.column_names == ["input_ids", "length"]
    assert list(features["length"]) == [i % 7 for i in range(2500)]


def test_nothing_is_cached_and_nothing_is_pickled(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["x", "y"]}).save_to_disk(str(tmp_path / "saved"))
    rows = datasets.load_from_disk(str(tmp_path / "saved"))
    before = sorted(tmp_path.rglob("*"))
    seen: list[int] = []

    def count(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        seen.append(len(batch["text"]))
        return lengths(batch)

    for _ in range(2):
        assert encode_split(rows, count, description="encode").cache_files == []
    assert seen == [2, 2]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("rows", "shown"), [(10, False), (5000, True)])
def test_a_bar_shows_for_many_rows_only(rows: int, shown: bool, capfd: pytest.CaptureFixture[str]) -> None:
    datasets.enable_progress_bars()
    encode_split(table(["a"] * rows), lengths, description="encode these")
    assert ("encode these" in capfd.readouterr().err) == shown
    assert not datasets.are_progress_bars_disabled()


def test_no_rows_give_no_features() -> None:
    features = encode_split(table(["a"]).select([]), lengths, description="encode")
    assert (len(features), features.column_names) == (0, [])
