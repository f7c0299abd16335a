"""One file or table of the data -> texts under our column names, labels as they are, and faults by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from lora_ft.data.columns import map_columns
from lora_ft.data.files import file_format, read_rows
from lora_ft.data.rows import BATCH_ROWS, Origin, each_value, with_column
from lora_ft.data.values import flag_of, label_of, split_label, text_of
from lora_ft.errors import DataError
from lora_ft.recipe.schema import Column

Mapped = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Part:
    """What one file gives to a split.

    Attributes:
        texts: The text columns under our names.
        labels: A label for each row, not yet of one type; None where there is no label column.
        cells: Whether the labels are untyped text cells.
        label_names: The order that the source gives its labels, or None.
        origin: File and number of each row.
    """

    texts: datasets.Dataset
    labels: list[Any] | None
    cells: bool
    label_names: tuple[str, ...] | None
    origin: Origin


@dataclass(frozen=True)
class Reading:
    """How columns are read: what the task wants and what the recipe says."""

    columns: Sequence[Column]
    mapping: Mapped
    label_delimiter: str | None = None
    label_optional: bool = False


def read_part(file: Path, reading: Reading) -> Part:
    """Reads one file; see `lora_ft.data.files` for the text formats.

    Raises:
        DataError: The file is unusable, a column is missing, or a text or label is null.
    """
    if file_format(file) != ".parquet":
        rows = read_rows(file)
        found = _found(reading, rows.columns, str(file))
        origin = Origin.of(str(file), rows.numbers)
        texts = {
            name: _texts(rows.columns[sources[0]], name, origin)
            for name, sources in found.items()
            if _kind(reading, name) == "text"
        }
        labels = _labels(rows.columns, found, reading=reading, origin=origin)
        return Part(_text_table(texts), labels, rows.cells, _flag_names(found, reading), origin)
    try:
        names = pq.read_schema(file).names
        wanted = {name for sources in _found(reading, names, str(file)).values() for name in sources}
        table = datasets.Dataset(pq.read_table(file, columns=[name for name in names if name in wanted]))
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file}: cannot be read as Parquet: {error}. Check the path or export it again") from error
    if not len(table):
        raise DataError(f"{file}: the file has no rows. Export it again, or take it out")
    return table_part(table, str(file), reading)


def table_part(table: datasets.Dataset, where: str, reading: Reading, *, first: int = 1) -> Part:
    """Takes our columns out of a table; texts stay in Arrow, memory-mapped where the table is.

    Args:
        table: A table with the data's own columns.
        where: Its name, for messages.
        reading: How columns are read.
        first: Number of its first row, for messages.

    Raises:
        DataError: A column is missing, or a text or label is null.
    """
    found = _found(reading, table.column_names, where)
    origin = Origin.of(where, range(first, first + len(table)))
    names = {sources[0]: name for name, sources in found.items() if _kind(reading, name) == "text"}
    texts = table.select_columns(list(names)).rename_columns(names)
    for name in names.values():
        if texts.features[name] == datasets.Value("string"):
            _refuse(_null_rows(texts, name), name, what="null", origin=origin)
        else:
            values = _texts(list(each_value(texts, name)), name, origin)
            spelt = with_column(texts, f"{name} as text", values, feature=datasets.Value("string"))
            texts = spelt.remove_columns(name).rename_column(f"{name} as text", name)
    sources = found.get("label", ())
    columns: dict[str, Sequence[Any]] = {}
    label_names = _flag_names(found, reading)
    for source in sources:
        columns[source], known = _named(table, source)
        label_names = label_names or known
    labels = _labels(columns, found, reading=reading, origin=origin)
    return Part(texts, labels, False, label_names, origin)


def _found(reading: Reading, available: Any, where: str) -> dict[str, tuple[str, ...]]:
    return map_columns(
        reading.columns,
        reading.mapping,
        available=available,
        where=where,
        label_optional=reading.label_optional,
    )


def _kind(reading: Reading, name: str) -> str:
    return next(column.kind for column in reading.columns if column.name == name)


def _flag_names(found: Mapping[str, tuple[str, ...]], reading: Reading) -> tuple[str, ...] | None:
    """The names of several 0/1 columns, in the recipe's order."""
    if "label" not in found or isinstance(reading.mapping.get("label", ""), str):
        return None
    return found["label"]


def _text_table(texts: Mapping[str, list[str]]) -> datasets.Dataset:
    features = datasets.Features({name: datasets.Value("string") for name in texts})
    return datasets.Dataset.from_dict(dict(texts), features=features)


def _texts(values: Sequence[Any], name: str, origin: Origin) -> list[str]:
    """A text column as texts; refuses what is none."""
    texts: list[str] = []
    nulls: list[int] = []
    others: list[int] = []
    for index, value in enumerate(values):
        text = text_of(value)
        if text is None:
            (others if isinstance(value, list | dict) else nulls).append(index)
        else:
            texts.append(text)
    _refuse(nulls, name, what="null", origin=origin)
    _refuse(others, name, what="a list or an object", origin=origin)
    return texts


def _labels(
    columns: Mapping[str, Sequence[Any]],
    found: Mapping[str, tuple[str, ...]],
    *,
    reading: Reading,
    origin: Origin,
) -> list[Any] | None:
    """The label column as the file has it: one value a row, or the list of the labels that are on."""
    if "label" not in found:
        return None
    sources = found["label"]
    flags = _flag_names(found, reading)
    if flags is not None:
        return _flagged(columns, flags, origin)
    take: Callable[[Any], Any] = label_of
    if reading.label_delimiter is not None:
        delimiter = reading.label_delimiter

        def take(cell: Any) -> Any:
            return label_of(cell) if isinstance(cell, list) else split_label(cell, delimiter)

    labels = [take(value) for value in columns[sources[0]]]
    _refuse(
        [index for index, label in enumerate(labels) if label is None],
        "label",
        what="empty or null",
        origin=origin,
    )
    return labels


def _flagged(columns: Mapping[str, Sequence[Any]], names: Sequence[str], origin: Origin) -> list[list[str]]:
    """Several 0/1 columns as the list of the names whose value is 1."""
    labels: list[list[str]] = [[] for _ in origin.number]
    for name in names:
        for index, value in enumerate(columns[name]):
            flag = flag_of(value)
            if flag is None:
                raise DataError(
                    f"{origin.describe([index])}: column {name!r} = {value!r}: several label columns hold 0 "
                    "or 1 each. Expected 0 or 1; map one column on `label` if this is no multi-label data"
                )
            if flag:
                labels[index].append(name)
    return labels


def _named(table: datasets.Dataset, source: str) -> tuple[Sequence[Any], tuple[str, ...] | None]:
    """A label column, class numbers turned into class names; -1 is the Hub's mark for "not labelled"."""
    feature = table.features[source]
    values: Sequence[Any] = table[source][:]
    if isinstance(feature, datasets.ClassLabel) and feature.names:
        names = tuple(feature.names)
        return [None if value is None or value < 0 else names[value] for value in values], names
    inner = feature.feature if isinstance(feature, datasets.List) else None
    if isinstance(inner, datasets.ClassLabel) and inner.names:
        names = tuple(inner.names)
        return [None if row is None else [names[value] for value in row] for row in values], names
    return values, None


def _null_rows(table: datasets.Dataset, name: str) -> list[int]:
    nulls: list[int] = []
    start = 0
    for batch in table.select_columns([name]).with_format("arrow").iter(batch_size=BATCH_ROWS):
        column = batch.column(name)
        if column.null_count:
            nulls += [start + index for index, null in enumerate(column.is_null().to_pylist()) if null]
        start += len(batch)
    return nulls


def _refuse(rows: Sequence[int], name: str, *, what: str, origin: Origin) -> None:
    if rows:
        raise DataError(
            f"{origin.describe(rows)}: {name} is {what} in {len(rows)} of {len(origin.number)} rows. "
            f"Expected a value in every row: fill these in or take them out"
        )
