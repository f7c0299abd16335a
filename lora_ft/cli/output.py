"""What the verbs print: tables, progress bars on standard error, JSON lines to a file or standard output."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_ft.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console


def open_console() -> Console:
    """The terminal that tables are printed to."""
    from rich.console import Console

    return Console()


@contextmanager
def progress_bar(total: int | None, what: str, *, hidden: bool = False) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit="row", disable=hidden or None, leave=False) as bar:

        def advance(rows: int) -> None:
            bar.update(rows)

        yield advance


def write_lines(rows: Iterable[Mapping[str, Any]], output: Path | None) -> None:
    """Writes JSON lines to a file, whole or not at all, or to standard output as they come."""
    if output is None:
        for row in rows:
            click.echo(json.dumps(dict(row), ensure_ascii=False))
        return
    temporary = output.with_name(f".{output.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
        temporary.replace(output)
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
