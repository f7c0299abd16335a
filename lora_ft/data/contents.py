"""What the rows of a table hold: their inputs as something to compare, their entities, boxes and spans counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import datasets

from lora_ft.data.columns import is_target
from lora_ft.data.rows import each_value
from lora_ft.recipe.schema import Column

TAG = re.compile(r"([BIESLU])-(.+)")
OUTSIDE = "O"
BEGINS = ("B", "S", "U")
TEXT_KINDS = ("text", "texts", "messages")
COUNTED_KINDS = ("labels", "spans", "objects")


def text_inputs(table: datasets.Dataset, columns: Sequence[Column]) -> list[Column]:
    """The columns of texts that a model is given, in the order of the task."""
    return [
        column
        for column in columns
        if column.kind in TEXT_KINDS and not is_target(column) and column.name in table.column_names
    ]


def chats(table: datasets.Dataset, columns: Sequence[Column]) -> list[Column]:
    """The first column of chats, whose turns are given and learned at once."""
    return [one for one in columns if one.kind == "messages" and one.name in table.column_names][:1]


def is_empty(value: Any) -> bool:
    """Whether a value of a text kind says nothing."""
    parts = (
        [value] if isinstance(value, str) else [part if isinstance(part, str) else part["content"] for part in value]
    )
    return not any(part.strip() for part in parts)


def hashed_inputs(table: datasets.Dataset, inputs: Sequence[Column]) -> Iterator[int]:
    """A number for each row that is the same where its inputs are the same."""
    for values in zip(*(each_value(table, column.name) for column in inputs), strict=True):
        yield hash(tuple(value if isinstance(value, str) else repr(value) for value in values))


def counted_column(table: datasets.Dataset, columns: Sequence[Column]) -> Column | None:
    """The column of tags, spans or boxes, if the table has one."""
    found = (column for column in columns if column.kind in COUNTED_KINDS and column.name in table.column_names)
    return next(found, None)


def names_in(value: Any, kind: str) -> list[str]:
    """What a row has: the type of each entity (a tag without B- or I-), the label of each span, of each box.

    Args:
        value: A canonical value.
        kind: One of `COUNTED_KINDS`.
    """
    if kind == "spans":
        return [span["label"] for span in value]
    if kind == "objects":
        return list(value["category"])
    names: list[str] = []
    last = OUTSIDE
    for tag in value:
        name = type_of(tag)
        match = TAG.fullmatch(tag)
        if name != OUTSIDE and (match is None or match[1] in BEGINS or name != last):
            names.append(name)
        last = name
    return names


def type_of(tag: str) -> str:
    """A tag without what says where in an entity it stands: B-LOC -> LOC, NOUN -> NOUN."""
    match = TAG.fullmatch(tag)
    return match[2] if match else tag


def count_names(table: datasets.Dataset, column: Column) -> Counter[str]:
    """How many entities, spans or boxes of each name a table has."""
    return Counter(name for value in each_value(table, column.name) for name in names_in(value, column.kind))
