r"""One file of rows -> its columns and the row numbers that a person sees.

One row of a CSV: `review,sentiment\n"Broke after a week, sadly.",negative`.

The standard library's parsers read the text formats, because they say where a file is broken and change
nothing: pandas (behind `datasets.load_dataset("csv")`) fills short rows with nulls, takes "NA" and "None" for
nulls and turns "007" into 7. The files are held in memory; for more rows than that, `Dataset.save_to_disk`
and `dataset.path`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lora_ft.data.coco import coco_rows, is_coco
from lora_ft.data.conll import conll_rows
from lora_ft.data.rows import FileRows
from lora_ft.data.squad import is_squad, squad_rows
from lora_ft.data.values import json_kind
from lora_ft.errors import DataError

logger = logging.getLogger(__name__)

TEXT_FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", ".conll", ".bio", ".iob2")
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

SampleBy = Literal["line", "paragraph", "document"]


def file_format(file: Path) -> str:
    """The ending that says how a file is read, without `.gz`: `.csv`, `.jsonl`, `.parquet`, ..."""
    name = file.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def read_rows(file: Path, *, sample_by: SampleBy = "line") -> FileRows:
    """Reads one text file.

    Args:
        file: A file in one of `TEXT_FORMATS`, or one of these with .gz; .json may be nested SQuAD or COCO.
        sample_by: What of a .txt file is one row.

    Returns:
        Its columns and row numbers.

    Raises:
        DataError: It cannot be read, is empty, is not UTF-8, or is broken; says at which line.
    """
    readers: dict[str, Callable[[Path, str], FileRows]] = {
        ".csv": _read_csv,
        ".tsv": _read_tsv,
        ".json": _read_json,
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
        ".txt": lambda file, text: _read_samples(file, text, sample_by=sample_by),
        ".conll": conll_rows,
        ".bio": conll_rows,
        ".iob2": conll_rows,
    }
    reader = readers.get(file_format(file))
    if reader is None:
        known = ", ".join((*TEXT_FORMATS, ".xml", ".parquet"))
        raise DataError(f"{file}: the ending says no format that can be read. Expected one of {known} (text also .gz)")
    text = _read_text(file)
    if not text.strip():
        raise DataError(f"{file}: the file is empty. Expected rows; check the path or export the file again")
    rows = reader(file, text)
    if not rows.numbers:
        raise DataError(f"{file}: the file has no rows below its header. Export it again, or take it out")
    return rows


def _read_text(file: Path) -> str:
    """The text of a file, gzip undone, a byte order mark removed."""
    try:
        data = file.read_bytes()
        if file.name.lower().endswith(".gz"):
            data = gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file}: is not a whole gzip file ({error}). Copy or compress it again") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}. Check the path") from error
    if data.startswith(UTF16_MARKS):
        raise DataError(f"{file}: the text is UTF-16. Expected UTF-8: `iconv -f UTF-16 -t UTF-8`, or save as CSV UTF-8")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{file}:{line}: byte 0x{data[error.start]:02x} at position {error.start} is not UTF-8. "
            "Expected UTF-8 text: find out the encoding and convert, `iconv -f WINDOWS-1252 -t UTF-8` (or "
            "GB18030, LATIN1, ...), or save as UTF-8"
        ) from error


def _read_csv(file: Path, text: str) -> FileRows:
    rows = _delimited(file, text, delimiter=",", quoting=csv.QUOTE_MINIMAL)
    (first, *others) = rows.columns
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if not others and mark in first:
            raise DataError(
                f"{file}:1: the header {first!r} is separated by {name}. Expected commas: export with commas"
                + (", or rename the file to .tsv" if mark == "\t" else "")
            )
    return rows


def _read_tsv(file: Path, text: str) -> FileRows:
    """Quoted as pandas writes it if that is sound in the whole file, else literally as TSV is defined."""
    try:
        rows = _delimited(file, text, delimiter="\t", quoting=csv.QUOTE_MINIMAL)
        swallowed = any("\t" in cell and "\n" in cell for column in rows.columns.values() for cell in column)
    except DataError:
        swallowed = True
    if not swallowed:
        return rows
    logger.info("%s: quotes are not used as quotes in this file; read literally", file)
    return _delimited(file, text, delimiter="\t", quoting=csv.QUOTE_NONE)


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lifts the csv module's limit of 131,072 characters a field, which is global, and puts it back."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _delimited(file: Path, text: str, *, delimiter: str, quoting: Literal[0, 3]) -> FileRows:
    with _long_fields():
        lines = io.StringIO(text, newline="")
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
        start = 1
        try:
            header = next(reader)
            _check_header(file, header)
            values: list[list[str]] = [[] for _ in header]
            numbers: list[int] = []
            start = reader.line_num + 1
            for number, row in enumerate(reader, start=2):
                if row:
                    _check_width(file, row, header, line=start)
                    numbers.append(number)
                    for column, cell in zip(values, row, strict=True):
                        column.append(cell)
                start = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{file}:{start}: the row that begins here is broken: {error}. Expected every quote inside a "
                "quoted "
                f'field to be doubled (""). Export the file again, or write JSON lines'
            ) from error
    return FileRows(dict(zip(header, values, strict=True)), numbers, cells=True)


def _check_header(file: Path, header: Sequence[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if not header:
        raise DataError(f"{file}:1: the first line is empty. Expected the column names")
    if twice:
        raise DataError(f"{file}:1: column {twice[0]!r} occurs more than once in the header. Give each its own name")


def _check_width(file: Path, row: Sequence[str], header: Sequence[str], *, line: int) -> None:
    if len(row) != len(header):
        raise DataError(
            f"{file}:{line}: the row has {len(row)} fields, the header has {len(header)} "
            f"({', '.join(header)}). Expected as many as the header: put quotes around a field that contains "
            "the separator"
        )


def _read_json(file: Path, text: str) -> FileRows:
    try:
        content = json.loads(text)
    except ValueError as error:
        lines = text.strip().splitlines()
        hint = "; one object a line is JSON lines, name it .jsonl" if len(lines) > 1 and lines[0].endswith("}") else ""
        raise DataError(f"{file}: is not JSON: {error}{hint}. Mend the file") from error
    if is_squad(content):
        return squad_rows(file, content)
    if is_coco(content):
        return coco_rows(file, content)
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list):
        raise DataError(
            f"{file}: the JSON is {json_kind(content)}. Expected a list of objects, one a row (or "
            '{"data": [...]}), nested SQuAD, or COCO'
        )
    return _objects(file, list(enumerate(content, start=1)), unit="row")


def _read_json_lines(file: Path, text: str) -> FileRows:
    rows: list[tuple[int, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except ValueError as error:
                raise DataError(f"{file}:{number}: is not JSON: {error}. Expected one object a line") from error
    return _objects(file, rows, unit="line")


def _objects(file: Path, rows: Sequence[tuple[int, Any]], *, unit: str) -> FileRows:
    names: dict[str, None] = {}
    for number, row in rows:
        if not isinstance(row, dict):
            raise DataError(
                f"{file}, {unit} {number}: is {json_kind(row)}. Expected an object with a value for each column"
            )
        names.update(dict.fromkeys(row))
    columns = {name: [row.get(name) for _, row in rows] for name in names}
    return FileRows(columns, [number for number, _ in rows])


def _read_samples(_: Path, text: str, *, sample_by: SampleBy) -> FileRows:
    """The lines of a text, blank ones too; its paragraphs, which blank lines separate; or all of it."""
    if sample_by == "line":
        lines = text.split("\n")
        if not lines[-1]:
            lines.pop()
        whole = [line.removesuffix("\r") for line in lines]
        return FileRows({"text": whole}, range(1, len(whole) + 1), cells=True, ours=True)
    text = text.replace("\r\n", "\n")
    if sample_by == "document":
        return FileRows({"text": [text]}, [1], cells=True, ours=True)
    texts: list[str] = []
    numbers: list[int] = []
    lines = []
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if line.strip():
            numbers += [] if lines else [number]
            lines.append(line)
        elif lines:
            texts.append("\n".join(lines))
            lines = []
    return FileRows({"text": texts}, numbers, cells=True, ours=True)
