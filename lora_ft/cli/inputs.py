"""Rows on the command line: the words and lines that `predict` answers, the lines that `evaluate` writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ft.cli.environment import needs_rows
from lora_ft.errors import InputError

if TYPE_CHECKING:
    from lora_ft.tasks.base import Task


def rows_of_words(words: Sequence[str], *, task: Task, needed: Sequence[str]) -> list[Mapping[str, Any]]:
    """One row for each word; for images and sounds one for each file, also of folders.

    Args:
        words: Of the command line.
        task: The task.
        needed: Input columns that the adapter was trained with.

    Raises:
        InputError: The adapter wants more than one input, or a word is a file of rows.
    """
    from lora_ft.serve.predict import argument_rows, is_file

    if needs_rows(task, needed):
        raise InputError(
            f"predict: this adapter answers rows of {' and '.join(needed)}, not one input alone. Give --input FILE "
            "with these columns, or --input - with a JSON object a line"
        )
    (alone,) = (column for column in task.inputs() if column.name == task.argument)
    if alone.kind == "text" and len(words) == 1 and is_file(Path(words[0])):
        raise InputError(f"predict: {words[0]} is a file, not a text. To answer its rows: --input {words[0]}")
    return list(argument_rows(words, alone))


def rows_of_lines(
    lines: Iterable[str], *, task: Task, needed: Sequence[str], objects: bool = False
) -> Iterable[Mapping[str, Any]]:
    """One row for each line: a text where that is all the adapter wants, else a JSON object.

    Args:
        lines: Of standard input.
        task: The task.
        needed: Input columns that the adapter was trained with.
        objects: Whether lines are JSON objects in any case.
    """
    from lora_ft.serve.predict import json_rows, text_rows

    alone = next((column for column in task.inputs() if column.name == task.argument), None)
    if not objects and alone is not None and alone.kind == "text" and set(needed) <= {alone.name}:
        return text_rows(lines, column=alone.name)
    return json_rows(lines, columns=task.inputs(), needed=needed)


def with_references(task: Task, row: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a row and, as `reference` or `reference_...`, its targets."""
    from lora_ft.serve.predict import shown

    names = {column.name: column.name for column in task.inputs()}
    for column in task.columns:
        if column.target:
            names[column.name] = "reference" if column.kind == "label" else f"reference_{column.name}"
    return {names[key]: shown(value) for key, value in row.items() if key in names}
