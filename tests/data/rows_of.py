"""Sections, columns and tables for the tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

from lora_ft.data.rows import Splits, take_rows
from lora_ft.data.sources import split_off
from lora_ft.recipe.schema import Column, DatasetSection

COLUMNS = (
    Column("text", "text", True, "the text"),
    Column("text_pair", "text", False, "a second text"),
    Column("label", "label", True, "the label"),
)

TAGGED = (
    Column("tokens", "texts", False, "words"),
    Column("tags", "labels", False, "tags", target=True),
    Column("text", "text", False, "a text"),
    Column("spans", "spans", False, "spans", target=True),
    Column("id", "text", False, "a name"),
)
TAGGED_SETS = {"tokens": ("tokens", "tags"), "spans": ("text", "spans")}
WRITTEN = (
    Column("messages", "messages", False, "a chat", target=True),
    Column("prompt", "text", False, "a prompt"),
    Column("completion", "text", False, "what follows", target=True),
    Column("text", "text", False, "a text", target=True),
)
WRITTEN_SETS = {"chat": ("messages",), "completion": ("prompt", "completion"), "text": ("text",)}
DETECTED = (Column("image", "image", True, "a picture"), Column("objects", "objects", True, "boxes", target=True))
PICTURED = (Column("image", "image", True, "a picture"), Column("label", "label", True, "a class", target=True))
HEARD = (Column("audio", "audio", True, "a sound"), Column("text", "text", True, "what is said", target=True))
ASKED = (
    Column("question", "text", True, "the question"),
    Column("context", "text", True, "the text"),
    Column("answers", "answers", True, "the answers", target=True),
    Column("id", "text", False, "a name"),
)


def section(**files: str | Path | list[Path]) -> DatasetSection:
    """A `dataset` section with files for each split."""
    data_files = {
        split: tuple(str(file) for file in (given if isinstance(given, list) else [given]))
        for split, given in files.items()
    }
    return DatasetSection(data_files=data_files)


def with_shares(splits: Splits, dataset: DatasetSection) -> Splits:
    """Splits with the shares of the training rows split off."""
    if dataset.validation is None and dataset.test is None:
        return splits
    train, origin = splits["train"], splits.origins["train"]
    chosen = split_off(train, origin, dataset, seed=0)
    return Splits(
        {split: take_rows(train, rows) for split, rows in chosen.items()}
        | {k: v for k, v in splits.items() if k != "train"},
        origins={**splits.origins, **{split: origin.take(rows) for split, rows in chosen.items()}},
        label_names=splits.label_names,
        skipped=splits.skipped,
        notes=splits.notes,
    )


def table(labels: list[Any], texts: list[str] | None = None) -> datasets.Dataset:
    """Rows under our column names."""
    return datasets.Dataset.from_dict({"text": texts or [f"text {i}" for i in range(len(labels))], "label": labels})
