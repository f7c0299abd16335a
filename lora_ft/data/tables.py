"""One file or table of the data -> values under our column names, labels as they are, and faults by row."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from lora_ft.data.faults import reason_of
from lora_ft.data.files import file_format, read_rows
from lora_ft.data.folders import folder_rows, media_kind, media_rows
from lora_ft.data.kinds import FEATURES, class_names, reader_of, with_class_names
from lora_ft.data.media import MEDIA, all_have_bytes
from lora_ft.data.reading import Reading
from lora_ft.data.rows import BATCH_ROWS, FileRows, Origin, take_rows, with_column
from lora_ft.data.values import BadValue, flag_of, label_of, split_label
from lora_ft.data.voc import voc_rows
from lora_ft.errors import DataError
from lora_ft.recipe.schema import Column

Faults = list[tuple[int, str]]


@dataclass(frozen=True)
class Part:
    """What one file gives to a split.

    Attributes:
        table: All columns but the label, under our names, values canonical; null where a row is bad.
        labels: A label for each row, not yet of one type; None where there is no label column.
        cells: Whether the labels are untyped text cells.
        label_names: The order that the source gives its labels, or None.
        origin: File and number of each row.
        column_set: The column set that was chosen, or None.
        faults: Bad rows: position, and the reason with the column first; in the order of the rows.
        notes: What was left out on purpose.
    """

    table: datasets.Dataset
    labels: list[Any] | None
    cells: bool
    label_names: tuple[str, ...] | None
    origin: Origin
    column_set: str | None = None
    faults: Sequence[tuple[int, str]] = ()
    notes: tuple[str, ...] = ()

    def without(self, rows: set[int]) -> Part:
        """The part without some of its rows, and so without their faults."""
        kept = [row for row in range(len(self.table)) if row not in rows]
        return Part(
            table=take_rows(self.table, kept),
            labels=None if self.labels is None else [self.labels[row] for row in kept],
            cells=self.cells,
            label_names=self.label_names,
            origin=self.origin.take(kept),
            column_set=self.column_set,
            faults=[(row, reason) for row, reason in self.faults if row not in rows],
            notes=self.notes,
        )


def read_part(files: Sequence[Path], reading: Reading) -> Part:
    """Reads one file or folder, or several VOC files together; see `lora_ft.data.files` for the text formats.

    Args:
        files: One path; several only if all of them are .xml.
        reading: How columns are read.

    Raises:
        DataError: The file is unusable, or a column is missing; bad rows are told in `Part.faults`.
    """
    file = files[0]
    folder = reading.media_dir or file.absolute().parent
    if file_format(file) == ".xml":
        return _rows_part(voc_rows(files, media_dir=reading.media_dir), str(file), reading, folder=folder)
    (file,) = files
    if file.is_dir():
        return _rows_part(folder_rows(file), str(file), reading, folder=folder)
    if media_kind(file) is not None:
        return _rows_part(media_rows([file], where=file), str(file), reading, folder=folder)
    if file_format(file) != ".parquet":
        return _rows_part(read_rows(file, sample_by=reading.sample_by), str(file), reading, folder=folder)
    try:
        names = pq.read_schema(file).names
        _, found = reading.find(names, str(file))
        wanted = {name for sources in found.values() for name in sources}
        table = datasets.Dataset(pq.read_table(file, columns=[name for name in names if name in wanted]))
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file}: cannot be read as Parquet: {error}. Check the path or export it again") from error
    if not len(table):
        raise DataError(f"{file}: the file has no rows. Export it again, or take it out")
    return table_part(table, str(file), reading, folder=folder)


def table_part(table: datasets.Dataset, where: str, reading: Reading, *, folder: Path | None) -> Part:
    """Takes our columns out of a table; texts and the bytes of images stay in Arrow, memory-mapped where the table is.

    Args:
        table: A table with the data's own columns.
        where: Its name, for messages.
        reading: How columns are read.
        folder: Where relative paths of images and sounds start, if `media_dir` does not say it.

    Raises:
        DataError: A column is missing; bad rows are told in `Part.faults`.
    """
    column_set, found = reading.find(table.column_names, where)
    kept: dict[str, str] = {}
    made: dict[str, list[Any]] = {}
    faults: Faults = []
    for column in _read_columns(reading, found):
        source = found[column.name][0]
        if column.kind == "text" and table.features[source] == datasets.Value("string"):
            kept[source] = column.name
            faults += [(row, reason_of(column.name, "is null")) for row in _null_rows(table, source)]
        elif FEATURES[column.kind] is MEDIA and all_have_bytes(
            table.select_columns([source]).with_format("arrow")[:][source]
        ):
            kept[source] = column.name
        else:
            read = reader_of(column.kind, folder=reading.media_dir or folder)
            made[column.name] = _canonical(_values(table, source), column.name, read, faults=faults)
    labels = _labels(lambda source: list(_values(table, source)), found, reading=reading, faults=faults)
    orders = [class_names(table.features[source]) for sources in found.values() for source in sources]
    order = _flag_names(found, reading) or next((names for names in orders if names is not None), None)
    return Part(
        table=_joined(table, kept=kept, made=made, reading=reading),
        labels=labels,
        cells=False,
        label_names=order,
        origin=Origin.of(where, range(1, 1 + len(table))),
        column_set=column_set,
        faults=sorted(faults, key=lambda fault: fault[0]),
    )


def _rows_part(rows: FileRows, where: str, reading: Reading, *, folder: Path) -> Part:
    """What a reader of a text format made of a file, values canonical."""
    try:
        column_set, found = reading.find(rows.columns, where, ours=rows.ours)
    except DataError as error:
        if not rows.lacks:
            raise
        raise DataError(f"{error}\n{rows.lacks}") from error
    faults = list(rows.faults)
    broken = {row for row, _ in faults}
    made = {
        column.name: _canonical(
            rows.columns[found[column.name][0]],
            column.name,
            reader_of(column.kind, cells=rows.cells, folder=folder),
            faults=faults,
            broken=broken,
        )
        for column in _read_columns(reading, found)
    }
    labels = _labels(lambda source: rows.columns[source], found, reading=reading, faults=faults)
    return Part(
        table=_made(made, reading),
        labels=labels,
        cells=rows.cells,
        label_names=_flag_names(found, reading) or rows.label_names,
        origin=rows.origin(where),
        column_set=column_set,
        faults=sorted(faults, key=lambda fault: fault[0]),
        notes=rows.notes,
    )


def _read_columns(reading: Reading, found: Mapping[str, Any]) -> list[Column]:
    """The columns that go into the table: labels get their type when those of all files are known."""
    return [column for column in reading.columns if column.name in found and column.kind != "label"]


def _canonical(
    values: Iterable[Any],
    name: str,
    read: Callable[[Any], Any],
    *,
    faults: Faults,
    broken: Collection[int] = (),
) -> list[Any]:
    """A column in its canonical form, None where a value is not of its kind; adds to the faults."""
    canonical: list[Any] = []
    for row, value in enumerate(values):
        try:
            canonical.append(None if row in broken else read(value))
        except BadValue as error:
            canonical.append(None)
            faults.append((row, reason_of(name, str(error))))
    return canonical


def _values(table: datasets.Dataset, source: str) -> Iterator[Any]:
    """The values of a column as they lie in Arrow, nothing decoded, class numbers as class names."""
    feature = table.features[source]
    named = class_names(feature) is not None
    for batch in table.select_columns([source]).with_format("arrow").iter(batch_size=BATCH_ROWS):
        for value in batch.column(source).to_pylist():
            yield with_class_names(value, feature) if named else value


def _made(made: Mapping[str, list[Any]], reading: Reading) -> datasets.Dataset:
    kinds = {column.name: column.kind for column in reading.columns}
    features = datasets.Features({name: FEATURES[kinds[name]] for name in made})
    return datasets.Dataset.from_dict(dict(made), features=features)


def _joined(
    table: datasets.Dataset, *, kept: Mapping[str, str], made: Mapping[str, list[Any]], reading: Reading
) -> datasets.Dataset:
    """Columns of a table that stay where they are, under our names, beside those that were made."""
    if not kept:
        return _made(made, reading)
    ours = table.select_columns(list(kept)).rename_columns(dict(kept))
    # Without its metadata an Image or Audio feature is the struct that it is stored as, and is never decoded.
    joined = datasets.Dataset(ours.data.replace_schema_metadata(None))
    kinds = {column.name: column.kind for column in reading.columns}
    for name, values in made.items():
        joined = with_column(joined, name, values, feature=FEATURES[kinds[name]])
    return joined.select_columns([column.name for column in reading.columns if column.name in joined.column_names])


def _flag_names(found: Mapping[str, tuple[str, ...]], reading: Reading) -> tuple[str, ...] | None:
    """The names of several 0/1 columns, in the recipe's order."""
    if "label" not in found or isinstance(reading.mapping.get("label", ""), str):
        return None
    return found["label"]


def _labels(
    column: Callable[[str], Sequence[Any]],
    found: Mapping[str, tuple[str, ...]],
    *,
    reading: Reading,
    faults: Faults,
) -> list[Any] | None:
    """The label column as the file has it: one value a row, or the labels that are on; adds to the faults."""
    if "label" not in found:
        return None
    flags = _flag_names(found, reading)
    if flags is not None:
        return _flagged(column, flags, faults)
    take: Callable[[Any], Any] = label_of
    if reading.label_delimiter is not None:
        delimiter = reading.label_delimiter

        def take(cell: Any) -> Any:
            return label_of(cell) if isinstance(cell, list) else split_label(cell, delimiter)

    labels = [take(value) for value in column(found["label"][0])]
    faults += [(row, "label is empty or null") for row, label in enumerate(labels) if label is None]
    return labels


def _flagged(column: Callable[[str], Sequence[Any]], names: Sequence[str], faults: Faults) -> list[list[str]]:
    """Several 0/1 columns as the list of the names whose value is 1."""
    labels: list[list[str]] = []
    for row, values in enumerate(zip(*(column(name) for name in names), strict=True)):
        flags = {name: flag_of(value) for name, value in zip(names, values, strict=True)}
        faults += [
            (row, f"column {name!r} = {value!r}: expected 0 or 1, as in each of several label columns")
            for (name, flag), value in zip(flags.items(), values, strict=True)
            if flag is None
        ]
        labels.append([name for name, flag in flags.items() if flag])
    return labels


def _null_rows(table: datasets.Dataset, name: str) -> list[int]:
    nulls: list[int] = []
    start = 0
    for batch in table.select_columns([name]).with_format("arrow").iter(batch_size=BATCH_ROWS):
        column = batch.column(name)
        if column.null_count:
            nulls += [start + index for index, null in enumerate(column.is_null().to_pylist()) if null]
        start += len(batch)
    return nulls
