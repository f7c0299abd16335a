"""Rows of all splits, batch by batch, as the checks want them: texts, inputs as one, and what is to be learned.

One row: {"text": "Broke after a week.", "label": "negative"} -> texts {"text": "Broke after a week."}, input
"Broke after a week.", target "negative"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import datasets

from lora_ft.data.contents import TEXT_KINDS, text_inputs
from lora_ft.data.doctor.findings import Finding
from lora_ft.recipe.schema import Column

BATCH_ROWS = 1_000
BETWEEN = "\n"
JOINT = " \u241f "
"""What stands between the inputs of a row where they are looked at as one text; no text has it, and it is no blank."""

Advance = Callable[[int], None]
TargetOf = Callable[[Any], tuple[str | None, Sequence[str]]]
NO_TARGET: tuple[None, tuple[str, ...]] = (None, ())


@dataclass(frozen=True)
class Batch:
    """Some rows of one split.

    Attributes:
        split: Their split.
        start: Position in the split of the first of them.
        texts: Text column -> a text for each row; required columns, and others where the row has them.
        inputs: For each row all that a model is given of it, as one text; where a task has no inputs, all its texts.
        targets: For each row what is to be learned, as a text to compare; None where that is nothing to compare.
        labels: For each row its labels, or the types of its entities; empty where there are none.
        raw: Column -> values as the rows have them, of the text columns and of what is to be learned.
    """

    split: str
    start: int
    texts: Mapping[str, Sequence[str]]
    inputs: Sequence[str]
    targets: Sequence[str | None]
    labels: Sequence[Sequence[str]]
    raw: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class Check(Protocol):
    """Looks at the rows of all splits in order, train first, and says in the end what is wrong with them."""

    def add(self, batch: Batch) -> None:
        """Looks at the next rows."""

    def findings(self) -> list[Finding]:
        """What is wrong with all that were looked at."""


def text_columns(table: datasets.Dataset, columns: Sequence[Column]) -> list[Column]:
    """All columns of texts, what is given and what is learned."""
    return [column for column in columns if column.kind in TEXT_KINDS and column.name in table.column_names]


def target_column(table: datasets.Dataset, columns: Sequence[Column]) -> Column | None:
    """The column of labels, tags or spans, if there is one: equal texts must have equal ones."""
    kinds = ("label", "labels", "spans")
    return next((one for one in columns if one.kind in kinds and one.name in table.column_names), None)


def each_batch(
    splits: Mapping[str, datasets.Dataset],
    columns: Sequence[Column],
    *,
    target_of: TargetOf,
    most: int | None = None,
    advance: Advance | None = None,
) -> Iterator[Batch]:
    """The rows of all splits, a thousand at a time; no more of them are in memory than that.

    Args:
        splits: Rows under our column names.
        columns: The columns of the task.
        target_of: A value of the target column -> what it is compared as, and its labels.
        most: At most so many rows of a split, in evenly spaced batches; None: all.
        advance: Called with the number of rows done.
    """
    for split, table in splits.items():
        texts = text_columns(table, columns)
        given = {column.name for column in text_inputs(table, columns)} or {column.name for column in texts}
        target = target_column(table, columns)
        wanted = [column.name for column in texts] + ([target.name] if target else [])
        chosen = table.select_columns(wanted)
        for start in _starts(len(table), most):
            rows = chosen[start : start + BATCH_ROWS]
            read = {column.name: [text_of(value) for value in rows[column.name]] for column in texts}
            size = len(rows[wanted[0]])
            parts = [read[name] for name in read if name in given]
            inputs = parts[0] if len(parts) == 1 else [JOINT.join(row) for row in zip(*parts, strict=True)]
            targets = [target_of(value) for value in rows[target.name]] if target else [NO_TARGET] * size
            keys, labels = [key for key, _ in targets], [names for _, names in targets]
            yield Batch(split, start, read, inputs, keys, labels, rows)
            if advance is not None:
                advance(size)


def _starts(rows: int, most: int | None) -> list[int]:
    """Where the batches begin: at every thousandth row, or evenly spaced where not all rows are looked at."""
    if most is None or rows <= most:
        return list(range(0, rows, BATCH_ROWS))
    batches = most // BATCH_ROWS
    return [index * (rows - BATCH_ROWS) // max(1, batches - 1) for index in range(batches)]


def text_of(value: Any) -> str:
    """A value of a text kind as one text: words with blanks between them, turns of a chat with line breaks."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if value and isinstance(value[0], str):
        return " ".join(value)
    return BETWEEN.join(str(turn["content"]) for turn in value)


def content_of(value: Mapping[str, Any]) -> bytes:
    """The bytes of an image or a sound, from the row or from its file.

    Raises:
        OSError: The file cannot be read.
    """
    data: bytes | None = value["bytes"]
    return data if data is not None else Path(value["path"]).read_bytes()
