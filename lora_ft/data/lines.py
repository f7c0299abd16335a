"""JSON lines and plain texts, ten thousand rows at a time.

One row of JSON lines: {"review": "Broke after a week, sadly.", "sentiment": "negative"}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lora_ft.data.rows import BATCH_ROWS, FileRows
from lora_ft.data.text_stream import opened, whole_text
from lora_ft.data.values import json_kind
from lora_ft.errors import DataError

SampleBy = Literal["line", "paragraph", "document"]


def json_lines_chunks(file: Path) -> Iterator[FileRows]:
    """The objects of a file, one a line; it is read twice, since any line may bring a column that others have not.

    Raises:
        DataError: A line is no JSON, or no object; says which.
    """
    names: dict[str, None] = {}
    for number, row in _each_object(file):
        check_object(file, row, f"line {number}")
        names.update(dict.fromkeys(row))
    rows = _each_object(file)
    while taken := list(islice(rows, BATCH_ROWS)):
        yield objects(taken, names)


def _each_object(file: Path) -> Iterator[tuple[int, Any]]:
    with opened(file) as stream:
        for number, line in enumerate(stream.text, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line.removesuffix("\n"))
                except ValueError as error:
                    raise DataError(f"{file}:{number}: is not JSON: {error}. Expected one object a line") from error
            if number % BATCH_ROWS == 0:
                stream.seen()


def check_object(file: Path, row: Any, where: str) -> None:
    """Refuses a row that has no columns.

    Raises:
        DataError: It is no object.
    """
    if not isinstance(row, dict):
        raise DataError(f"{file}, {where}: is {json_kind(row)}. Expected an object with a value for each column")


def objects(rows: Sequence[tuple[int, Any]], names: Iterable[str]) -> FileRows:
    """Objects with their numbers as columns; null where an object lacks one."""
    columns = {name: [row.get(name) for _, row in rows] for name in names}
    return FileRows(columns, [number for number, _ in rows])


def sample_chunks(file: Path, *, sample_by: SampleBy) -> Iterator[FileRows]:
    """The lines of a text, blank ones too; its paragraphs, which blank lines separate; or all of it."""
    if sample_by == "document":
        text = whole_text(file).replace("\r\n", "\n")
        yield FileRows({"text": [text]}, [1], cells=True, ours=True)
        return
    samples = _lines(file) if sample_by == "line" else _paragraphs(file)
    while taken := list(islice(samples, BATCH_ROWS)):
        yield FileRows({"text": [text for _, text in taken]}, [number for number, _ in taken], cells=True, ours=True)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    with opened(file) as stream:
        for number, line in enumerate(stream.text, start=1):
            yield number, line.removesuffix("\n").removesuffix("\r")
            if number % BATCH_ROWS == 0:
                stream.seen()


def _paragraphs(file: Path) -> Iterator[tuple[int, str]]:
    """The number of its first line, and each paragraph."""
    begun, lines = 0, list[str]()
    for number, line in _lines(file):
        if line.strip():
            begun = begun if lines else number
            lines.append(line)
        elif lines:
            yield begun, "\n".join(lines)
            lines = []
    if lines:
        yield begun, "\n".join(lines)
