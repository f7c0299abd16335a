"""Texts, files and streams -> predictions, one JSON object a row, in the order of the input."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import datasets

from lora_ft.assemble.saved import SavedAdapter
from lora_ft.errors import DataError


def predict(
    adapter: SavedAdapter,
    rows: Iterable[Mapping[str, Any]],
    *,
    batch_size: int = 32,
    window: int = 8,
    advance: Callable[[int], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Answers rows as they come.

    Rows are read `window` batches at a time, so a stream of any length runs in bounded memory, and batches of like
    length can be formed inside a window.

    Args:
        adapter: A verified adapter.
        rows: Mappings with the task's input columns, such as `text` and `text_pair`.
        batch_size: Rows a batch.
        window: Batches read before the first of them is answered; 1 answers soonest.
        advance: Called with the number of rows done.

    Yields:
        The input columns and the prediction of each row, in the order of the input.
    """
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, batch_size * window)):
        inputs = [{name: row[name] for name in adapter.manifest.run["columns"]} for row in chunk]
        features = list(adapter.encode(datasets.Dataset.from_list(inputs)))
        logits = adapter.logits(features, batch_size=batch_size, advance=advance)
        for row, prediction in zip(chunk, adapter.decode(logits), strict=True):
            yield {**row, **prediction}


def json_rows(lines: Iterable[str], *, wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of JSON objects, one a line.

    Args:
        lines: The lines; empty ones are left out.
        wanted: Columns that each object must have; others are handed through.

    Raises:
        DataError: A line is no JSON object, or lacks a column.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"line {number}: not JSON: {error}. Expected an object with {', '.join(wanted)}") from error
        missing = [name for name in wanted if not isinstance(row, dict) or not isinstance(row.get(name), str)]
        if missing:
            raise DataError(f"line {number}: no text under {missing[0]!r}. Expected an object with {', '.join(wanted)}")
        yield row


def text_rows(texts: Iterable[str]) -> Iterator[dict[str, str]]:
    """Rows of plain texts, one a line; the line end is not part of the text."""
    for text in texts:
        yield {"text": text.rstrip("\r\n")}
