"""Sections, columns and tables for the tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

from lora_ft.recipe.schema import Column, DatasetSection

COLUMNS = (
    Column("text", "text", True, "the text"),
    Column("text_pair", "text", False, "a second text"),
    Column("label", "label", True, "the label"),
)


def section(**files: str | Path | list[Path]) -> DatasetSection:
    """A `dataset` section with files for each split."""
    data_files = {
        split: tuple(str(file) for file in (given if isinstance(given, list) else [given]))
        for split, given in files.items()
    }
    return DatasetSection(data_files=data_files)


def table(labels: list[Any], texts: list[str] | None = None) -> datasets.Dataset:
    """Rows under our column names."""
    return datasets.Dataset.from_dict({"text": texts or [f"text {i}" for i in range(len(labels))], "label": labels})
