"""Cells and JSON values -> texts and labels of one type over all files, with nothing lost on the way."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Label = str | int | bool | float | list[str]

WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
BOOLEANS = {"true": True, "false": False}


class BadValue(ValueError):
    """A value that is not of its kind; the text is the reason and reads on after the name of the column."""


def text_of(value: Any) -> str | None:
    """A text cell: texts as they are ("NA" and "None" too), numbers and booleans spelt out.

    Returns:
        The text, or None where the data has none (null, NaN) or something that is no text (a list, an
        object).
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and not math.isnan(value)):
        return str(value)
    return None


def has_half_character(value: Any) -> bool:
    r"""Whether a text, or one inside of a value, has half of a character: JSON can write it (`"\ud83d"`), UTF-8 not."""
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value)
    if isinstance(value, Mapping):
        return any(map(has_half_character, value.values()))
    return isinstance(value, list | tuple) and any(map(has_half_character, value))


def json_kind(value: Any) -> str:
    """What a value is, for messages: `an object`, `a list`, `a text`, ..."""
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        bytes: "bytes",
    }
    return kinds.get(type(value), "null" if value is None else "a value of another kind")


def label_of(value: Any) -> Any:
    """A label as the file has it, white space around a text taken off; None where there is none."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, list | tuple):
        parts = [label_of(part) for part in value]
        return None if None in parts else [canonical_label(part) for part in parts]
    if isinstance(value, bool | int | float):
        return value
    return None


def split_label(cell: Any, delimiter: str) -> list[str] | None:
    """The labels in a delimited cell; an empty cell has none of them, null is a fault."""
    if cell is None:
        return None
    return [part.strip() for part in canonical_label(cell).split(delimiter) if part.strip()]


def flag_of(value: Any) -> bool | None:
    """A 0/1 column's value as a boolean, None if it is anything else."""
    text = str(value).strip().lower()
    return {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}.get(text)


def canonical_label(value: Any) -> str:
    """The name under which a label is compared: 3 and 3.0 -> "3", True -> "true", a text as it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def settle_types(groups: Sequence[tuple[Sequence[Any], bool]]) -> list[list[Any]]:
    """Gives the labels of all files of all splits one type, so that a split cannot differ from another.

    Text cells become booleans if all of them say true or false, integers or floats if all are numbers; a
    number with a leading zero is a name. Floats that are all whole are integers. What stays mixed becomes
    text.

    Args:
        groups: For each file its labels (none of them null) and whether they are untyped text cells.

    Returns:
        For each file its labels, all of one type.
    """
    cells = [value for values, untyped in groups if untyped for value in values if isinstance(value, str)]
    parse = _cell_parser(cells)
    parsed = [[parse(v) if untyped and isinstance(v, str) else v for v in values] for values, untyped in groups]
    kinds = {type(value) for values in parsed for value in values}
    if kinds <= {int, float} and float in kinds:
        whole = all(float(value).is_integer() for values in parsed for value in values)
        return [[int(value) if whole else float(value) for value in values] for values in parsed]
    if len(kinds) <= 1:
        return parsed
    if list in kinds:
        return [
            [value if isinstance(value, list) else [canonical_label(value)] for value in values] for values in parsed
        ]
    return [[canonical_label(value) for value in values] for values, _ in groups]


def _cell_parser(cells: Sequence[str]) -> Any:
    distinct = set(cells)
    if all(cell.lower() in BOOLEANS for cell in distinct):
        return lambda cell: BOOLEANS[cell.lower()]
    if all(WHOLE.fullmatch(cell) for cell in distinct):
        return int
    if all(NUMBER.fullmatch(cell) and math.isfinite(float(cell)) for cell in distinct):
        return float
    return str
