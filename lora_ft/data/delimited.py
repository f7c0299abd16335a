r"""CSV and TSV, ten thousand rows at a time.

One row of a CSV: `review,sentiment\n"Broke after a week, sadly.",negative`.
"""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lora_ft.data.rows import BATCH_ROWS, FileRows
from lora_ft.data.text_stream import opened
from lora_ft.errors import DataError

logger = logging.getLogger(__name__)

Quoting = Literal[0, 3]


class Record(NamedTuple):
    """A row of a file with separators.

    Attributes:
        number: Its number in the file, the header being 1; an empty line counts.
        line: The line that it begins on.
        cells: Its fields; none of an empty line.
    """

    number: int
    line: int
    cells: list[str]


def csv_chunks(file: Path) -> Iterator[FileRows]:
    """The rows of a CSV.

    Raises:
        DataError: The header, a row or a quote is wrong; says at which line.
    """
    for rows in _chunks(file, delimiter=",", quoting=csv.QUOTE_MINIMAL):
        (first, *others) = rows.columns
        for mark, name in ((";", "semicolons"), ("\t", "tabs")):
            if not others and mark in first:
                raise DataError(
                    f"{file}:1: the header {first!r} is separated by {name}. Expected commas: export with commas"
                    + (", or rename the file to .tsv" if mark == "\t" else "")
                )
        yield rows


def tsv_chunks(file: Path) -> Iterator[FileRows]:
    """The rows of a TSV: quoted as pandas writes it if that is sound in the whole file, else literally, as it is meant.

    Raises:
        DataError: The header or a row is wrong; says at which line.
    """
    if _is_quoted(file):
        yield from _chunks(file, delimiter="\t", quoting=csv.QUOTE_MINIMAL)
        return
    logger.info("%s: quotes are not used as quotes in this file; read literally", file)
    yield from _chunks(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _is_quoted(file: Path) -> bool:
    """Whether quotes are quotes in a TSV; one that opens by chance swallows rows, or is never closed."""
    try:
        return not any(
            "\t" in cell and "\n" in cell
            for rows in _chunks(file, delimiter="\t", quoting=csv.QUOTE_MINIMAL)
            for column in rows.columns.values()
            for cell in column
        )
    except DataError:
        return False


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lifts the csv module's limit of 131,072 characters a field, which is global, and puts it back."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _chunks(file: Path, *, delimiter: str, quoting: Quoting) -> Iterator[FileRows]:
    """At least one chunk, if only to tell the columns of a file without rows."""
    with opened(file, newline="") as stream:
        reader = csv.reader(stream.text, delimiter=delimiter, quoting=quoting, strict=True)
        records = _records(file, reader)
        with _long_fields():
            header = next(records, Record(1, 1, [])).cells
        _check_header(file, header)
        first = True
        while True:
            with _long_fields():
                taken = list(islice(records, BATCH_ROWS))
            if not taken and not first:
                return
            kept = [record for record in taken if record.cells]
            for record in kept:
                _check_width(file, record, header)
            columns = zip(*(record.cells for record in kept), strict=True) if kept else ([] for _ in header)
            named = dict(zip(header, map(list, columns), strict=True))
            stream.seen()
            yield FileRows(named, [record.number for record in kept], cells=True)
            first = False


def _records(file: Path, reader: Any) -> Iterator[Record]:
    start = 1
    try:
        for number, cells in enumerate(reader, start=1):
            yield Record(number, start, cells)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{file}:{start}: the row that begins here is broken: {error}. Expected every quote inside a quoted "
            'field to be doubled (""). Export the file again, or write JSON lines'
        ) from error


def _check_header(file: Path, header: Sequence[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if not header:
        raise DataError(f"{file}:1: the first line is empty. Expected the column names")
    if twice:
        raise DataError(f"{file}:1: column {twice[0]!r} occurs more than once in the header. Give each its own name")


def _check_width(file: Path, record: Record, header: Sequence[str]) -> None:
    if len(record.cells) != len(header):
        raise DataError(
            f"{file}:{record.line}: the row has {len(record.cells)} fields, the header has {len(header)} "
            f"({', '.join(header)}). Expected as many as the header: put quotes around a field that contains "
            "the separator"
        )
