"""What a user probably did not mean by the rows that `predict` is given: each hint once, on standard error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lora_ft.tasks.base import Task
    from lora_ft.tasks.parts.problem import Problem

ROWS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", ".parquet")


def hinted(
    rows: Iterable[Mapping[str, Any]], task: Task, problem: Problem, *, words: bool
) -> Iterator[Mapping[str, Any]]:
    """The rows as they are, and on standard error what the first odd one of them is told.

    Args:
        rows: The rows.
        task: The task.
        problem: Its processor and settings.
        words: Whether the rows are words of the command line.
    """
    said = False
    for row in rows:
        hint = None if said else (task.hint(row, problem) or (file_hint(row.get(task.argument)) if words else None))
        if hint is not None:
            click.echo(hint, err=True)
            said = True
        yield row


def file_hint(value: Any) -> str | None:
    """Why a text may have been meant as a file; None if it looks like a text."""
    from lora_ft.recipe.peek import AUDIO_SUFFIXES, IMAGE_SUFFIXES

    endings = (*IMAGE_SUFFIXES, *AUDIO_SUFFIXES, *ROWS)
    if not isinstance(value, str) or not value.strip() or value.split() != [value]:
        return None
    if PurePath(value).suffix.lower() not in endings:
        return None
    return (
        f"{value!r} is answered as a text, though it looks like the name of a file. This adapter reads texts; "
        "--input FILE answers the rows of a file"
    )
