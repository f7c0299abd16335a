"""What the verbs print: tables, progress bars on standard error, JSON lines to a file or standard output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_ft.errors import InputError

if TYPE_CHECKING:
    from rich.panel import Panel
    from rich.table import Table

PIPE_WIDTH = 1 << 16
"""Characters: no table is as wide, so nothing is folded or cut."""


def print_table(table: Table) -> None:
    """Prints a table: as wide as the terminal or as it must be, and into a pipe or a file as wide as it is."""
    from rich.console import Console

    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    needed = console.measure(table, options=console.options.update(width=PIPE_WIDTH)).minimum
    console.width = max(console.width, needed)
    console.print(table)


def print_panel(panel: Panel) -> None:
    """Prints a framed text, folded where the terminal ends."""
    from rich.console import Console

    Console().print(panel)


@contextmanager
def progress_bar(total: int | None, what: str, *, hidden: bool = False) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit="row", disable=hidden or None, leave=False) as bar:

        def advance(rows: int) -> None:
            bar.update(rows)

        yield advance


def write_text(file: Path, text: str) -> None:
    """Writes a file whole, or not at all."""
    temporary = file.with_name(f".{file.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


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
