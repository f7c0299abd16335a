"""Rows for each split, from files, folders or the hub, under our column names.

One row: {"text": "Broke after a week.", "label": "negative"}
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import datasets

from lora_ft.data.columns import ColumnSets, Mapped, is_target
from lora_ft.data.faults import refusal, refuse_most
from lora_ft.data.files import file_format
from lora_ft.data.hub import load_tables
from lora_ft.data.lines import SampleBy
from lora_ft.data.reading import Reading
from lora_ft.data.rows import BadRows, Origin, Splits, each_value, with_column
from lora_ft.data.splits import split_by_time, split_groups, split_rows, times_of
from lora_ft.data.tables import Part, read_part, table_part
from lora_ft.data.values import settle_types
from lora_ft.errors import DataError
from lora_ft.recipe.schema import Column, DatasetSection

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")


def load_splits(
    dataset: DatasetSection,
    *,
    columns: Sequence[Column],
    offline: bool,
    column_sets: ColumnSets | None = None,
    hold: bool = False,
) -> Splits:
    """Loads the rows of all splits but the shares that are split off the training rows later, see `split_off`.

    Args:
        dataset: Where the rows are; file paths absolute.
        columns: The columns that the task reads.
        offline: Never ask a hub.
        column_sets: Problem type -> columns, one set of which must be complete in all files.
        hold: Whether bad rows that are to be refused are handed on in `bad`, to be told with those that are found later
            (`refuse_held`); no share can be split off then.

    Returns:
        `train`, `validation`, `test` (those present) -> rows with our column names only (and `group` or `time` of
        training rows that are split by them, see `split_off`): values as `lora_ft.data.kinds` makes them, and labels of
        one type over all splits: str, int, bool, float, or a list of str. Bad rows that were left out are counted in
        `skipped`.

    Raises:
        DataError: A file, column or split is unusable, or rows are bad and are not to be skipped; lists them.
    """
    keys = {name: source for name, source in (("group", dataset.group), ("time", dataset.time)) if source is not None}
    reading = Reading(
        [*columns, *(Column(name, "key", True, f"what rows are split off by: dataset.{name}") for name in keys)],
        {**dataset.columns, **keys},
        column_sets=column_sets or {},
        label_delimiter=dataset.label_delimiter,
        sample_by=dataset.sample_by,
        media_dir=None if dataset.media_dir is None else Path(dataset.media_dir),
    )
    read = _parts(dataset, reading, offline=offline)
    for split, share in shares_of(dataset).items():
        if split in read:
            raise DataError(
                f"dataset.{split} = {share}: there is a {split} split already. Expected one of the "
                f"two: take out the share, or the {split} {'files' if dataset.data_files else 'split'}"
            )
    bad = _bad_rows(read)
    if bad and dataset.on_bad_row == "error" and not hold:
        raise refusal(bad)
    parts, skipped = _usable(read, on_bad_row=dataset.on_bad_row)
    splits = _join(parts, skipped=skipped)
    if bad and dataset.on_bad_row == "error":
        splits.skipped, splits.bad = {}, tuple(bad)
    return splits


def shares_of(dataset: DatasetSection) -> dict[str, float]:
    """The shares of the training rows that are split off: split -> share."""
    given = (("validation", dataset.validation), ("test", dataset.test))
    return {split: share for split, share in given if share is not None}


def split_off(
    train: datasets.Dataset, origin: Origin, dataset: DatasetSection, *, seed: int, rows: Sequence[int] | None = None
) -> dict[str, list[int]]:
    """Which training rows go into which split, as the recipe says: by label, by group, or by time.

    Args:
        train: All training rows, with `group` or `time` where they are split by it.
        origin: Where they came from, for messages.
        dataset: The shares, and what they are split by.
        seed: Seed of the choice.
        rows: The positions of those that are divided; None: all.

    Returns:
        `train`, `validation`, `test` (those that get rows) -> positions in `train`, ascending.

    Raises:
        DataError: The shares leave no training rows, or nothing to split by; or a moment cannot be read.
    """
    shares = shares_of(dataset)
    kept = list(range(len(train))) if rows is None else list(rows)
    every = _labels_of(train)
    labels = [every[row] for row in kept]
    if dataset.group is not None:
        groups = list(each_value(train, "group"))
        chosen = split_groups(labels, [groups[row] for row in kept], shares=shares, seed=seed)
    elif dataset.time is not None:
        moments = list(each_value(train, "time"))
        times, wrong = times_of([moments[row] for row in kept])
        if wrong:
            where = origin.describe([kept[row] for row in wrong])
            raise DataError(
                f"{where}: dataset.time = {dataset.time}: {moments[kept[wrong[0]]]!r} is no date. Expected numbers in "
                "all rows, or dates of ISO 8601 in all, as 2024-05-01 or 2024-05-01T10:00:00"
            )
        chosen = split_by_time(times, shares=shares)
    else:
        chosen = split_rows(labels, shares=shares, seed=seed)
    found = {split: [kept[row] for row in chosen[split]] for split in SPLITS if split in chosen}
    if dataset.group is not None or dataset.time is not None:
        told = ", ".join(f"{split} {len(taken)}" for split, taken in found.items())
        by = f"by {dataset.group}" if dataset.group is not None else f"by {dataset.time}, the newest last"
        logger.info("split off %s: %s rows", by, told)
    return found


def load_file(
    file: Path,
    *,
    columns: Mapped,
    wanted: Sequence[Column],
    column_sets: ColumnSets | None = None,
    label_delimiter: str | None = None,
    sample_by: SampleBy = "line",
    media_dir: str | Path | None = None,
) -> datasets.Dataset:
    """Loads the rows of one file for prediction.

    Args:
        file: A file in any format of `load_splits`, a folder of images or sounds, or one of these. What a .txt file
            holds is the one text that the rows need, whatever its name.
        columns: `dataset.columns` as the adapter was trained with.
        wanted: The columns to read; target columns may be absent from the file, and are then absent from the rows.
        column_sets: Problem type -> columns: best only the set of the adapter's problem type.
        label_delimiter: As in the recipe.
        sample_by: As in the recipe.
        media_dir: As in the recipe; None: relative paths start at the folder of the file.

    Returns:
        Rows with our column names only.

    Raises:
        DataError: As `load_splits`; bad rows are never left out, so that answers follow the rows of the file.
    """
    return load_rows(
        file, columns=columns, wanted=wanted, column_sets=column_sets, label_delimiter=label_delimiter,
        sample_by=sample_by, media_dir=media_dir,
    )["rows"]  # fmt: skip


def load_rows(
    file: Path,
    *,
    columns: Mapped,
    wanted: Sequence[Column],
    column_sets: ColumnSets | None = None,
    label_delimiter: str | None = None,
    sample_by: SampleBy = "line",
    media_dir: str | Path | None = None,
) -> Splits:
    """Loads the rows of one file for evaluation, as `load_file`; they know their numbers in the file.

    Returns:
        One split, `rows`.
    """
    named = {column.name for column in wanted}
    mapping: Mapped = {ours: theirs for ours, theirs in columns.items() if ours in named}
    reading = Reading(
        wanted,
        mapping,
        column_sets=column_sets or {},
        label_delimiter=label_delimiter,
        targets_optional=True,
        sample_by=sample_by,
        media_dir=None if media_dir is None else Path(media_dir),
    )
    if file_format(file) == ".txt":
        reading = replace(reading, mapping={**mapping, **_only_text(reading)})
    part = read_part([file], reading)
    if part.faults:
        raise refusal([BadRows(part.faults, part.origin)], remedy="")
    return _join({"rows": [part]})


def _only_text(reading: Reading) -> dict[str, str]:
    """The mapping for a .txt file where no column is called `text`: its text is the only text input there is."""
    in_sets = {name for names in reading.column_sets.values() for name in names}
    if any(column.name == "text" for column in reading.columns):
        return {}
    texts = [
        column.name
        for column in reading.columns
        if column.kind == "text" and not is_target(column) and (column.required or column.name in in_sets)
    ]
    return {texts[0]: "text"} if len(texts) == 1 else {}


def _parts(dataset: DatasetSection, reading: Reading, *, offline: bool) -> dict[str, list[Part]]:
    """What each file or table gives, in the order train, validation, test."""
    parts: dict[str, list[Part]] = {}
    for split, part in _each_part(dataset, reading, offline=offline):
        parts.setdefault(split, []).append(part)
    return parts


def _each_part(dataset: DatasetSection, reading: Reading, *, offline: bool) -> Iterator[tuple[str, Part]]:
    if dataset.path is not None:
        tables = load_tables(dataset, offline=offline)
        folder = Path(dataset.path) if Path(dataset.path).is_absolute() else None
        for split in SPLITS:
            if split in tables:
                name, table = tables[split]
                part = table_part(table, name, reading if split == "train" else reading.without_keys(), folder=folder)
                reading = reading.narrowed(part.column_set)
                yield split, part
        return
    if "train" not in dataset.data_files:
        raise DataError("dataset.data_files: has no train files. Write `data_files: {train: <a file>}`")
    for split in SPLITS:
        for ending, files in groupby(map(Path, dataset.data_files.get(split, ())), key=file_format):
            if ending == ".txt" and any(column.kind == "label" for column in reading.columns):
                raise DataError(
                    f"{next(files)}: a .txt file has no labels. Expected .csv, .tsv, .json, .jsonl or .parquet"
                )
            for group in [list(files)] if ending == ".xml" else [[file] for file in files]:
                part = read_part(group, reading if split == "train" else reading.without_keys())
                reading = reading.narrowed(part.column_set)
                yield split, part


def _bad_rows(parts: Mapping[str, Sequence[Part]]) -> list[BadRows]:
    """The bad rows of all files, split by split."""
    totals = {split: sum(len(part.table) for part in group) for split, group in parts.items()}
    return [
        BadRows(part.faults, part.origin, split, totals[split])
        for split, group in parts.items()
        for part in group
        if part.faults
    ]


def _usable(
    parts: Mapping[str, Sequence[Part]], *, on_bad_row: Literal["error", "skip"]
) -> tuple[dict[str, list[Part]], dict[str, int]]:
    """The parts without their bad rows, and how many these were; too many are not left out."""
    found = _bad_rows(parts)
    bad = {split: [group for group in found if group.split == split] for split in parts}
    if on_bad_row == "skip":
        for split, groups in bad.items():
            refuse_most(groups, split=split, rows=sum(len(part.table) for part in parts[split]))
    kept = {
        split: [part.without({row for row, _ in part.faults}) if part.faults else part for part in group]
        for split, group in parts.items()
    }
    return kept, {split: sum(len(group.rows) for group in groups) for split, groups in bad.items() if groups}


def _join(parts: Mapping[str, Sequence[Part]], *, skipped: Mapping[str, int] | None = None) -> Splits:
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
        table = datasets.concatenate_datasets([part.table for part in group])
        if split in labels:
            table = with_column(table, "label", labels[split], feature=feature)
        tables[split] = table
    return Splits(
        tables,
        origins={split: Origin.concat([part.origin for part in group]) for split, group in parts.items()},
        label_names=_label_order([part.label_names for _, part in flat]),
        skipped=skipped,
        notes=tuple(note for _, part in flat for note in part.notes),
    )


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
