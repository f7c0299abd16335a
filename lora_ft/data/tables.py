"""One file or table of the data -> values under our column names, labels as they are, and faults by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lora_ft.data.faults import reason_of
from lora_ft.data.files import each_chunk, file_format
from lora_ft.data.folders import folder_rows, media_kind, media_rows
from lora_ft.data.kinds import FEATURES, class_names, with_class_names
from lora_ft.data.made import Faults, MadeColumns
from lora_ft.data.media import MEDIA, all_have_bytes
from lora_ft.data.progress import reading_bar
from lora_ft.data.reading import Reading
from lora_ft.data.rows import BATCH_ROWS, FileRows, Origin, take_rows
from lora_ft.data.store import RowStore
from lora_ft.data.voc import voc_rows
from lora_ft.errors import DataError
from lora_ft.recipe.schema import Column


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
        return _rows_part([voc_rows(files, media_dir=reading.media_dir)], str(file), reading, folder=folder)
    (file,) = files
    if file.is_dir():
        return _rows_part([folder_rows(file)], str(file), reading, folder=folder)
    if media_kind(file) is not None:
        return _rows_part([media_rows([file], where=file)], str(file), reading, folder=folder)
    if file_format(file) != ".parquet":
        return _rows_part(each_chunk(file, sample_by=reading.sample_by), str(file), reading, folder=folder)
    table = _parquet(file, reading)
    if not len(table):
        raise DataError(f"{file}: the file has no rows. Export it again, or take it out")
    return table_part(table, str(file), reading, folder=folder)


def _parquet(file: Path, reading: Reading) -> datasets.Dataset:
    """The columns of a Parquet file that are read."""
    try:
        schema = pq.read_schema(file)
        _, found = reading.find(schema.names, str(file))
        wanted = {name for sources in found.values() for name in sources}
        names = [name for name in schema.names if name in wanted]
        store = RowStore(pa.schema([schema.field(name) for name in names], metadata=schema.metadata))
        with (
            pq.ParquetFile(file, memory_map=True, pre_buffer=False) as source,
            reading_bar(file, total=source.metadata.num_rows, unit="row") as moved,
        ):
            rows = 0
            for batch in source.iter_batches(batch_size=BATCH_ROWS, columns=names):
                store.append(pa.Table.from_batches([batch]))
                rows += len(batch)
                moved(rows)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file}: cannot be read as Parquet: {error}. Check the path or export it again") from error
    return store.dataset()


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
    made: list[Column] = []
    nulls: dict[str, Faults] = {}
    for column in _read_columns(reading, found):
        source = found[column.name][0]
        if column.kind == "text" and table.features[source] == datasets.Value("string"):
            kept[source] = column.name
            nulls[column.name] = [(row, reason_of(column.name, "is null")) for row in _null_rows(table, source)]
        elif FEATURES[column.kind] is MEDIA and all_have_bytes(
            table.select_columns([source]).with_format("arrow")[:][source]
        ):
            kept[source] = column.name
        else:
            made.append(column)
    columns = MadeColumns(made, found, reading=reading, folder=reading.media_dir or folder, faults=nulls)
    sources = sorted({name for one in made for name in found[one.name]} | set(found.get("label", ())))
    for values in _values(table, sources):
        columns.add(values)
    orders = [class_names(table.features[source]) for names in found.values() for source in names]
    return Part(
        table=_joined(table, columns.dataset(), kept=kept, reading=reading),
        labels=columns.labels,
        cells=False,
        label_names=columns.flags or next((names for names in orders if names is not None), None),
        origin=Origin.of(where, range(1, 1 + len(table))),
        column_set=column_set,
        faults=columns.told(reading.columns),
    )


def _rows_part(chunks: Iterable[FileRows], where: str, reading: Reading, *, folder: Path) -> Part:
    """What a reader of a text format made of a file, piece by piece; values canonical."""
    columns: MadeColumns | None = None
    numbers: list[npt.NDArray[np.int64]] = []
    for rows in chunks:
        if columns is None:
            first = rows
            try:
                column_set, found = reading.find(rows.columns, where, ours=rows.ours)
            except DataError as error:
                if not rows.lacks:
                    raise
                raise DataError(f"{error}\n{rows.lacks}") from error
            columns = MadeColumns(
                _read_columns(reading, found), found, reading=reading, cells=rows.cells, folder=folder
            )
        columns.add(rows.columns, broken=rows.faults)
        numbers.append(np.asarray(rows.numbers, dtype=np.int64))
    assert columns is not None, "a reader gives rows, or says why there are none"
    return Part(
        table=columns.dataset(),
        labels=columns.labels,
        cells=first.cells,
        label_names=columns.flags or first.label_names,
        origin=replace(first, numbers=np.concatenate(numbers)).origin(where),
        column_set=column_set,
        faults=columns.told(reading.columns),
        notes=first.notes,
    )


def _read_columns(reading: Reading, found: Mapping[str, Any]) -> list[Column]:
    """The columns that go into the table: labels get their type when those of all files are known."""
    return [column for column in reading.columns if column.name in found and column.kind != "label"]


def _values(table: datasets.Dataset, sources: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """Some columns, piece by piece, as they lie in Arrow: nothing decoded, class numbers as class names."""
    if not sources:
        return
    features = {source: table.features[source] for source in sources}
    named = {source for source, feature in features.items() if class_names(feature) is not None}
    for batch in table.select_columns(list(sources)).with_format("arrow").iter(batch_size=BATCH_ROWS):
        values = {source: batch.column(source).to_pylist() for source in sources}
        for source in named:
            values[source] = [with_class_names(value, features[source]) for value in values[source]]
        yield values


def _joined(
    table: datasets.Dataset, made: datasets.Dataset, *, kept: Mapping[str, str], reading: Reading
) -> datasets.Dataset:
    """Columns of a table that stay where they are, under our names, beside those that were made."""
    if not kept:
        return made
    ours = table.select_columns(list(kept)).rename_columns(dict(kept))
    # Without its metadata an Image or Audio feature is the struct that it is stored as, and is never decoded.
    joined = datasets.Dataset(ours.data.replace_schema_metadata(None))
    if made.column_names:
        joined = datasets.concatenate_datasets([joined, made], axis=1)
    return joined.select_columns([column.name for column in reading.columns if column.name in joined.column_names])


def _null_rows(table: datasets.Dataset, name: str) -> list[int]:
    nulls: list[int] = []
    start = 0
    for batch in table.select_columns([name]).with_format("arrow").iter(batch_size=BATCH_ROWS):
        column = batch.column(name)
        if column.null_count:
            nulls += [start + index for index, null in enumerate(column.is_null().to_pylist()) if null]
        start += len(batch)
    return nulls
