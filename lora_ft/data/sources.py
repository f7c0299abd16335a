"""Rows for each split, from files, a saved folder or the hub, under our column names.

One row: {"text": "Broke after a week.", "label": "negative"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from lora_ft.data.files import file_format
from lora_ft.data.hub import load_tables
from lora_ft.data.rows import Origin, Splits, each_value, take_rows, with_column
from lora_ft.data.splits import split_rows
from lora_ft.data.tables import Mapped, Part, Reading, read_part, table_part
from lora_ft.data.values import settle_types
from lora_ft.errors import DataError
from lora_ft.recipe.schema import Column, DatasetSection

SPLITS = ("train", "validation", "test")


def load_splits(dataset: DatasetSection, *, columns: Sequence[Column], seed: int, offline: bool) -> Splits:
    """Loads the rows of all splits.

    Args:
        dataset: Where the rows are; file paths absolute.
        columns: The columns that the task reads.
        seed: Seed of the shares that are split off from the training rows.
        offline: Never ask a hub.

    Returns:
        `train`, `validation`, `test` (those present) -> rows with our column names only: texts, and labels of
        one type over all splits: str, int, bool, float, or a list of str.

    Raises:
        DataError: A file, column, split or value is unusable; says which, and the row.
    """
    reading = Reading(columns, dataset.columns, dataset.label_delimiter)
    parts = _parts(dataset, reading, offline=offline)
    shares = {
        split: share
        for split, share in (("validation", dataset.validation), ("test", dataset.test))
        if share is not None
    }
    for split, share in shares.items():
        if split in parts:
            raise DataError(
                f"dataset.{split} = {share}: there is a {split} split already. Expected one of the "
                f"two: take out the share, or the {split} {'files' if dataset.data_files else 'split'}"
            )
    splits = _join(parts)
    if not shares:
        return splits
    train, origin = splits["train"], splits.origins["train"]
    chosen = split_rows(_labels_of(train), shares=shares, seed=seed)
    tables = {**splits, **{split: take_rows(train, rows) for split, rows in chosen.items()}}
    origins = {**splits.origins, **{split: origin.take(rows) for split, rows in chosen.items()}}
    order = [split for split in SPLITS if split in tables]
    return Splits({split: tables[split] for split in order}, origins=origins, label_names=splits.label_names)


def load_file(
    file: Path,
    *,
    columns: Mapped,
    wanted: Sequence[Column],
    label_delimiter: str | None = None,
) -> datasets.Dataset:
    """Loads the rows of one file for evaluation or prediction.

    Args:
        file: A file in any format of `load_splits`, or a .txt file with one text a line.
        columns: `dataset.columns` as the adapter was trained with.
        wanted: The columns to read; a label column may be absent from the file, and is then absent from the
            rows.
        label_delimiter: As in the recipe.

    Returns:
        Rows with our column names only.

    Raises:
        DataError: As `load_splits`.
    """
    named = {column.name for column in wanted}
    mapping: Mapped = {ours: theirs for ours, theirs in columns.items() if ours in named}
    if file_format(file) == ".txt":
        mapping = {ours: "text" if ours == "text" else theirs for ours, theirs in mapping.items()}
    part = read_part(file, Reading(wanted, mapping, label_delimiter, label_optional=True))
    return _join({"train": [part]})["train"]


def _parts(dataset: DatasetSection, reading: Reading, *, offline: bool) -> dict[str, list[Part]]:
    """What each file or table gives, in the order train, validation, test."""
    if dataset.path is not None:
        tables = load_tables(dataset, offline=offline)
        return {split: [table_part(tables[split][1], tables[split][0], reading)] for split in SPLITS if split in tables}
    if "train" not in dataset.data_files:
        raise DataError("dataset.data_files: has no train files. Write `data_files: {train: <a file>}`")
    parts: dict[str, list[Part]] = {}
    for split in SPLITS:
        files = dataset.data_files.get(split, ())
        for file in map(Path, files):
            if file_format(file) == ".txt":
                raise DataError(f"{file}: a .txt file has no labels. Expected .csv, .tsv, .json, .jsonl or .parquet")
            parts.setdefault(split, []).append(read_part(file, reading))
    return parts


def _join(parts: Mapping[str, Sequence[Part]]) -> Splits:
    """Puts the files of each split together and gives all labels one type."""
    flat = [(split, part) for split, group in parts.items() for part in group]
    labelled = [(split, part) for split, part in flat if part.labels is not None]
    settled = settle_types([(part.labels or [], part.cells) for _, part in labelled])
    labels: dict[str, list[Any]] = {}
    for (split, _), values in zip(labelled, settled, strict=True):
        labels.setdefault(split, []).extend(values)
    feature = _label_feature([value for values in labels.values() for value in values])
    tables: dict[str, datasets.Dataset] = {}
    for split, group in parts.items():
        table = datasets.concatenate_datasets([part.texts for part in group])
        if split in labels:
            table = with_column(table, "label", labels[split], feature=feature)
        tables[split] = table
    origins = {split: Origin.concat([part.origin for part in group]) for split, group in parts.items()}
    return Splits(tables, origins=origins, label_names=_label_order([part.label_names for _, part in flat]))


def _label_order(orders: Sequence[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """The order of the labels if all files agree on one."""
    first = orders[0]
    return first if all(order == first for order in orders) else None


def _label_feature(values: Sequence[Any]) -> Any:
    kinds = {type(value) for value in values}
    if kinds == {list}:
        return datasets.List(datasets.Value("string"))
    dtypes = {bool: "bool", int: "int64", float: "float64"}
    return datasets.Value(dtypes.get(next(iter(kinds), str), "string"))


def _labels_of(table: datasets.Dataset) -> list[Any]:
    return list(each_value(table, "label")) if "label" in table.column_names else [None] * len(table)
