r"""One file of rows -> its columns and the row numbers that a person sees, ten thousand rows at a time.

One row of a CSV: `review,sentiment\n"Broke after a week, sadly.",negative`.

The standard library's parsers read the text formats, because they say where a file is broken and change
nothing: pandas (behind `datasets.load_dataset("csv")`) fills short rows with nulls, takes "NA" and "None" for
nulls and turns "007" into 7. CSV, TSV, JSON lines and plain texts are never in memory as a whole; .json and CoNLL are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lora_ft.data.coco import coco_rows, is_coco
from lora_ft.data.conll import conll_rows
from lora_ft.data.delimited import csv_chunks, tsv_chunks
from lora_ft.data.lines import SampleBy, check_object, json_lines_chunks, objects, sample_chunks
from lora_ft.data.rows import FileRows
from lora_ft.data.squad import is_squad, squad_rows
from lora_ft.data.text_stream import is_blank, whole_text
from lora_ft.data.values import json_kind
from lora_ft.errors import DataError

TEXT_FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", ".conll", ".bio", ".iob2")


def file_format(file: Path) -> str:
    """The ending that says how a file is read, without `.gz`: `.csv`, `.jsonl`, `.parquet`, ..."""
    name = file.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def each_chunk(file: Path, *, sample_by: SampleBy = "line") -> Iterator[FileRows]:
    """Reads one text file piece by piece; all pieces have the same columns.

    Args:
        file: A file in one of `TEXT_FORMATS`, or one of these with .gz; .json may be nested SQuAD or COCO.
        sample_by: What of a .txt file is one row.

    Yields:
        Columns and row numbers of the next rows.

    Raises:
        DataError: It cannot be read, is empty, is not UTF-8, or is broken; says at which line.
    """
    if file_format(file) not in TEXT_FORMATS:
        known = ", ".join((*TEXT_FORMATS, ".xml", ".parquet"))
        raise DataError(f"{file}: the ending says no format that can be read. Expected one of {known} (text also .gz)")
    if is_blank(file):
        raise DataError(f"{file}: the file is empty. Expected rows; check the path or export the file again")
    some = False
    for rows in _chunks(file, sample_by=sample_by):
        if rows.numbers:
            some = True
            yield rows
    if not some:
        raise DataError(f"{file}: the file has no rows below its header. Export it again, or take it out")


def _chunks(file: Path, *, sample_by: SampleBy) -> Iterator[FileRows]:
    ending = file_format(file)
    if ending == ".csv":
        yield from csv_chunks(file)
    elif ending == ".tsv":
        yield from tsv_chunks(file)
    elif ending in (".jsonl", ".ndjson"):
        yield from json_lines_chunks(file)
    elif ending == ".txt":
        yield from sample_chunks(file, sample_by=sample_by)
    elif ending == ".json":
        yield _read_json(file, whole_text(file))
    else:
        yield conll_rows(file, whole_text(file))


def read_rows(file: Path, *, sample_by: SampleBy = "line") -> FileRows:
    """Reads one text file as a whole; see `each_chunk`."""
    first, *others = each_chunk(file, sample_by=sample_by)
    if not others:
        return first
    chunks = [first, *others]
    columns = {name: [value for chunk in chunks for value in chunk.columns[name]] for name in first.columns}
    return replace(first, columns=columns, numbers=[number for chunk in chunks for number in chunk.numbers])


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
    for number, row in enumerate(content, start=1):
        check_object(file, row, f"row {number}")
    return objects(list(enumerate(content, start=1)), {name: None for row in content for name in row})
