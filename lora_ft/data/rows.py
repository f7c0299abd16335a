"""Rows of several splits that know where they came from, so that every message can name file and row."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from lora_ft.data.store import RowStore

SHOWN_ROWS = 5
BATCH_ROWS = 10_000


@dataclass(frozen=True)
class Origin:
    """Where each row of a table came from.

    Attributes:
        names: The files (or tables) the rows came from.
        source: For each row an index into `names`, `(rows,)`.
        number: For each row its number as a person counts in that file, `(rows,)`: the header of a CSV is row
            1; 0 where the whole file is one row.
    """

    names: tuple[str, ...]
    source: npt.NDArray[np.int64]
    number: npt.NDArray[np.int64]

    @classmethod
    def of(cls, name: str, numbers: Sequence[int] | npt.NDArray[np.int64]) -> Origin:
        """The origin of rows that all came from one file."""
        number = np.asarray(numbers, dtype=np.int64)
        return cls((name,), np.zeros(len(number), dtype=np.int64), number)

    @classmethod
    def of_files(cls, names: Sequence[str]) -> Origin:
        """The origin of rows that are a file each: an image, an annotation."""
        return cls(tuple(names), np.arange(len(names), dtype=np.int64), np.zeros(len(names), dtype=np.int64))

    @classmethod
    def concat(cls, origins: Sequence[Origin]) -> Origin:
        """The origin of the rows of several tables, one after the other."""
        names = tuple(name for origin in origins for name in origin.names)
        starts = np.cumsum([0, *(len(origin.names) for origin in origins)])
        sources = [origin.source + start for origin, start in zip(origins, starts, strict=False)]
        return cls(names, np.concatenate(sources), np.concatenate([origin.number for origin in origins]))

    def take(self, indices: Sequence[int]) -> Origin:
        """The origin of some of the rows."""
        picked = np.asarray(indices, dtype=np.int64)
        return Origin(self.names, self.source[picked], self.number[picked])

    def describe(self, indices: Sequence[int]) -> str:
        """Names rows for a message: `shop.csv, rows 3, 7, 9` (the first five, then how many in all)."""
        by_file: dict[str, list[str]] = {}
        for index in indices[:SHOWN_ROWS]:
            by_file.setdefault(self.names[self.source[index]], []).append(str(self.number[index]))
        parts = [
            name if numbers == ["0"] else f"{name}, {'row' if len(numbers) == 1 else 'rows'} {', '.join(numbers)}"
            for name, numbers in by_file.items()
        ]
        more = f" ... ({len(indices)} rows in all)" if len(indices) > SHOWN_ROWS else ""
        return "; ".join(parts) + more


@dataclass(frozen=True)
class BadRows:
    """The bad rows of one file, or of one split.

    Attributes:
        faults: Position of a row, and the reason with the column first; in the order of the rows.
        origin: Where the rows came from, bad and good.
        split: The split that they are of; empty where there are no splits.
        total: How many rows the whole split has; None: as many as `origin`.
    """

    faults: Sequence[tuple[int, str]]
    origin: Origin
    split: str = ""
    total: int | None = None

    @property
    def rows(self) -> set[int]:
        """The positions of the bad rows; a row may have several faults."""
        return {row for row, _ in self.faults}

    @property
    def of(self) -> int:
        """How many rows the whole split has."""
        return len(self.origin.number) if self.total is None else self.total


@dataclass(frozen=True)
class FileRows:
    """What a reader of one format makes of one file, a folder, or several files of one row each.

    Attributes:
        columns: Column name -> values, one a row.
        numbers: For each row its number in the file, counted from 1, a header included.
        cells: Whether the values are untyped text cells (CSV, TSV) and not typed values (JSON).
        ours: Whether the format decides the names of the columns, so that they are ours already (COCO).
        files: The files of the rows where each row is a file; `numbers` then says nothing.
        faults: Rows that the reader could not understand: position, and the reason with the column first.
        label_names: The order that the file gives its labels, or None.
        notes: What was left out on purpose, one line each.
        lacks: Why a column that the format may have is not there; empty: all are.
    """

    columns: Mapping[str, Sequence[Any]]
    numbers: Sequence[int] | npt.NDArray[np.int64]
    cells: bool = False
    ours: bool = False
    files: Sequence[str] | None = None
    faults: Sequence[tuple[int, str]] = ()
    label_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    lacks: str = ""

    def origin(self, name: str) -> Origin:
        """Where the rows came from, for messages."""
        return Origin.of(name, self.numbers) if self.files is None else Origin.of_files(self.files)


class Splits(dict[str, datasets.Dataset]):
    """Rows of each split under our column names, with what the messages and the labels need beside them.

    Args:
        tables: Split name -> rows.
        origins: Split name -> where its rows came from.
        label_names: The order of the labels that the source itself has (a ClassLabel feature, several 0/1
            columns, COCO categories, folders of classes).
        skipped: Split name -> bad rows that were left out; without the splits that have none.
        notes: What else was left out in reading, one line each.
        bad: Bad rows that are not among the rows and must be refused, with those that are found later.
    """

    def __init__(
        self,
        tables: Mapping[str, datasets.Dataset],
        *,
        origins: Mapping[str, Origin],
        label_names: tuple[str, ...] | None = None,
        skipped: Mapping[str, int] | None = None,
        notes: tuple[str, ...] = (),
        bad: Sequence[BadRows] = (),
    ) -> None:
        super().__init__(tables)
        self.origins = dict(origins)
        self.label_names = label_names
        self.skipped = dict(skipped or {})
        self.notes = notes
        self.bad = tuple(bad)


def describe_rows(splits: Mapping[str, datasets.Dataset], split: str, indices: Sequence[int]) -> str:
    """Names rows of a split for a message; a plain mapping of tables has only positions, counted from 1."""
    if isinstance(splits, Splits):
        return splits.origins[split].describe(indices)
    return Origin.of(f"split {split}", range(1, len(splits[split]) + 1)).describe(indices)


def each_value(table: datasets.Dataset, name: str) -> Iterator[Any]:
    """The values of a column, read in batches: a column of `datasets` hands out one row at a time, slowly."""
    for start in range(0, len(table), BATCH_ROWS):
        yield from table[name][start : start + BATCH_ROWS]


def with_column(table: datasets.Dataset, name: str, values: Sequence[Any], *, feature: Any) -> datasets.Dataset:
    """The table with one more column; nothing is cached, so no time goes into a hash of the values."""
    return table.add_column(name, list(values), feature=feature, new_fingerprint=uuid.uuid4().hex)


def take_rows(table: datasets.Dataset, rows: Sequence[int]) -> datasets.Dataset:
    """Some rows as a table of its own, made piece by piece; from mere indices `datasets` would write a cache file."""
    source = table.with_format("arrow")
    chunks = range(0, max(1, len(rows)), BATCH_ROWS)
    tables = (source[list(rows[start : start + BATCH_ROWS])].combine_chunks() for start in chunks)  # not a chunk a row
    first = next(tables)
    store = RowStore(first.schema)
    for one in itertools.chain([first], tables):
        store.append(one)
    return store.dataset()
