"""Reads the column names of a data file, and nothing else of it.

One real header: `review,sentiment` -> `("review", "sentiment")`.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from itertools import islice
from pathlib import Path
from typing import IO, Any

TEXT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
SUFFIXES = (*TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES), ".parquet")

ROWS_SEEN = 100
LONGEST_JSON_BYTES = 1 << 24


class PeekError(Exception):
    """A file whose columns cannot be read; the text says why and what to do."""


def suffix_of(file: Path) -> str:
    """The suffix that says the format, with `.gz` where the file is compressed; in lower case."""
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def column_names(file: Path) -> tuple[str, ...]:
    """The columns of a file.

    Args:
        file: A file with one of `SUFFIXES`.

    Returns:
        Their names in order: the header of a table, the keys of the first 100 JSON rows.

    Raises:
        PeekError: The file is empty, unreadable, or not what its suffix says.
    """
    suffix = suffix_of(file)
    try:
        if suffix == ".parquet":
            return _parquet(file)
        with _open(file, suffix) as stream:
            match suffix.removesuffix(".gz"):
                case ".csv":
                    return _header(stream, delimiter=",")
                case ".tsv":
                    return _header(stream, delimiter="\t")
                case ".json":
                    return _json(stream)
            return _json_lines(stream)
    except UnicodeDecodeError as error:
        raise PeekError(f"it is not UTF-8 (byte 0x{error.object[error.start]:02x}). Save it in UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise PeekError(f"it cannot be read: {error}") from error
    except (csv.Error, ValueError) as error:
        raise PeekError(f"it is not {suffix.removesuffix('.gz')[1:]}: {error}") from error


def _open(file: Path, suffix: str) -> IO[str]:
    if suffix.endswith(".gz"):
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="")
    return file.open(encoding="utf-8-sig", newline="")


def _header(stream: IO[str], *, delimiter: str) -> tuple[str, ...]:
    header = next(csv.reader(stream, delimiter=delimiter), [])
    if not header:
        raise PeekError("it is empty. Expected a header line with the column names")
    return tuple(header)


def _json_lines(stream: IO[str]) -> tuple[str, ...]:
    rows = [json.loads(line) for line in islice((line for line in stream if line.strip()), ROWS_SEEN)]
    return _keys(rows)


def _json(stream: IO[str]) -> tuple[str, ...]:
    """A list of rows, one mapping of columns, or JSON lines under the name `.json`."""
    text = stream.read(LONGEST_JSON_BYTES)
    decoder = json.JSONDecoder()
    rest = text.lstrip()
    if not rest.startswith("["):
        rows = []
        for _ in range(ROWS_SEEN):
            row, end = decoder.raw_decode(rest) if rest else (None, 0)
            rest = rest[end:].lstrip()
            rows += [] if row is None else [row]
        return _keys(rows)
    rest = rest[1:].lstrip()
    row = decoder.raw_decode(rest)[0] if rest[:1] not in ("", "]") else None
    return _keys([] if row is None else [row])


def _keys(rows: list[Any]) -> tuple[str, ...]:
    if not rows:
        raise PeekError("it is empty. Expected at least one row")
    if not all(isinstance(row, dict) for row in rows):
        raise PeekError("expected each row to be an object with the columns as keys")
    return tuple(dict.fromkeys(key for row in rows for key in row))


def _parquet(file: Path) -> tuple[str, ...]:
    import pyarrow as pa  # 60 ms, and only parquet needs it
    import pyarrow.parquet as pq

    try:
        return tuple(pq.read_schema(file).names)
    except pa.ArrowException as error:
        raise PeekError(f"it is not parquet: {error}") from error


def saved_columns(folder: Path) -> tuple[str, ...]:
    """The columns of a folder written by `save_to_disk`; empty where they cannot be seen."""
    first = next(iter(sorted(folder.glob("dataset_info.json")) + sorted(folder.glob("*/dataset_info.json"))), None)
    if first is None:
        return ()
    try:
        features = json.loads(first.read_text(encoding="utf-8")).get("features")
    except (OSError, ValueError, AttributeError):
        return ()
    return tuple(features) if isinstance(features, dict) else ()
