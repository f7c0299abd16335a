"""Texts, files and streams -> predictions, one JSON object a row, in the order of the input."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import datasets

from lora_ft.assemble.saved import SavedAdapter
from lora_ft.data.kinds import reader_of
from lora_ft.data.media import ENDINGS
from lora_ft.data.preparation.texts import prepared_row
from lora_ft.data.values import BadValue
from lora_ft.errors import DataError
from lora_ft.models.precision import autocast_context
from lora_ft.recipe.schema import Column

Row = TypeVar("Row")


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
        rows: Mappings with input columns of the task, such as `text` and `text_pair`, and any other keys.
        batch_size: Features a batch.
        window: Batches read before the first of them is answered; 1 answers soonest.
        advance: Called with the number of rows done.

    Yields:
        Each row with its prediction, in the order of the input; images and sounds as their paths.

    Raises:
        DataError: A row cannot be used, such as an unreadable image; those before it have been answered.
    """
    for given, prediction in answered(adapter, rows, batch_size=batch_size, window=window, advance=advance):
        yield {**{name: shown(value) for name, value in given.items()}, **prediction}


def answered(
    adapter: SavedAdapter,
    rows: Iterable[Mapping[str, Any]],
    *,
    batch_size: int = 32,
    window: int = 8,
    advance: Callable[[int], None] | None = None,
) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Rows with their predictions, as they come; see `predict`."""
    iterator = iter(rows)
    done, refused = 0, None
    while refused is None:
        chunk, unread = taken(iterator, batch_size * window)
        wanted, unusable = taken(usable(adapter, chunk, first=done + 1), len(chunk))
        refused = unusable or unread
        if not wanted and refused is None:
            return
        if wanted:  # those before a bad row have their answers before it is told
            predictions = adapter.predict(datasets.Dataset.from_list(wanted), batch_size=batch_size)
            yield from zip(chunk[: len(wanted)], predictions, strict=True)
            done += len(wanted)
            if advance is not None:
                advance(len(wanted))
    raise refused


def taken(rows: Iterator[Row], count: int) -> tuple[list[Row], DataError | None]:
    """The next rows, and what is wrong with the one after them, if that is why they are fewer."""
    found: list[Row] = []
    try:
        for row in itertools.islice(rows, count):
            found.append(row)  # what was read before a fault is kept
    except DataError as error:
        return found, error
    return found, None


def usable(adapter: SavedAdapter, rows: Iterable[Mapping[str, Any]], *, first: int = 1) -> Iterator[dict[str, Any]]:
    """The input columns of rows, none of which the task finds fault with.

    Args:
        adapter: A verified adapter.
        rows: Mappings with input columns of its task.
        first: Number of the first row, for messages.

    Raises:
        DataError: A row cannot be used, or has other input columns than the one before it.
    """
    names: list[str] | None = None
    for number, row in enumerate(rows, start=first):
        found = [column.name for column in adapter.task.inputs() if column.name in row]
        if not found or found != (names or found):
            known = ", ".join(column.name for column in adapter.task.inputs())
            raise DataError(
                f"row {number}: has {', '.join(found) or 'none of the columns'}, the rows before it have "
                f"{', '.join(names or [known])}. Expected the same of {known} in every row"
            )
        names = found
        wanted = {name: row[name] for name in names}
        fault = adapter.task.fault(wanted, labels=adapter.manifest.labels)
        if fault is not None:
            raise DataError(f"row {number}: {fault}")
        yield wanted


def shown(value: Any) -> Any:
    """A value as it goes into a JSON line: an image or a sound is its path."""
    return value["path"] if isinstance(value, Mapping) and set(value) == {"path", "bytes"} else value


def json_rows(lines: Iterable[str], *, columns: Sequence[Column], needed: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of JSON objects, one a line.

    Args:
        lines: The lines; empty ones are left out.
        columns: The columns that the task reads.
        needed: Names of those that each object must have; other keys are handed through.

    Raises:
        DataError: A line is no JSON object, lacks a column, or has something else in it.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        expected = f"Expected an object with {', '.join(needed) or 'the columns of a row'}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"line {number}: not JSON: {error}. {expected}") from error
        if not isinstance(row, dict):
            raise DataError(f"line {number}: not a JSON object. {expected}")
        missing = [name for name in needed if row.get(name) is None]
        if missing:
            raise DataError(f"line {number}: nothing under {missing[0]!r}. {expected}")
        for column in columns:
            if column.name in row:
                try:
                    row[column.name] = reader_of(column.kind, folder=Path())(row[column.name])
                except BadValue as error:
                    raise DataError(f"line {number}: {column.name}: {error}") from error
        yield row


def argument_rows(words: Iterable[str], column: Column) -> Iterator[dict[str, Any]]:
    """Rows of the words of a command line: texts; for images and sounds files, and folders of them.

    Args:
        words: The words.
        column: The column that they fill.

    Raises:
        DataError: There is no such file, or no file of that kind in a folder.
    """
    for word in words:
        if column.kind not in ENDINGS:
            yield {column.name: word}
            continue
        for file in files_of(Path(word), ENDINGS[column.kind]):
            yield {column.name: {"path": str(file), "bytes": None}}


def files_of(path: Path, endings: Sequence[str]) -> list[Path]:
    """A file, or the files with one of these endings below a folder, by name; hidden ones are left out.

    Raises:
        DataError: There is no such file, or none in the folder.
    """
    if is_file(path):
        return [path]
    try:
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in endings and file.name[0] != ".")
    except OSError:
        found = []
    if not found:
        raise DataError(f"{path}: there is no such file, and no folder with files that end in {', '.join(endings)}")
    return found


def is_file(path: Path) -> bool:
    """Whether there is such a file; a text may be too long to be the name of one."""
    try:
        return path.is_file()
    except OSError:
        return False


def text_rows(texts: Iterable[str], *, column: str = "text") -> Iterator[dict[str, str]]:
    """Rows of plain texts, one a line; the line end is not part of the text."""
    for text in texts:
        yield {column: text.rstrip("\r\n")}


def streamed(adapter: SavedAdapter, rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The generated text of each row piece by piece, a line end after each row.

    Raises:
        InputError: The task generates no text.
        DataError: A row cannot be used.
    """
    for row in usable(adapter, rows):
        with autocast_context(adapter.precision):
            prepared = prepared_row(row, adapter.task.free_texts, adapter.problem.preparation)
            yield from adapter.task.stream(adapter.model, prepared, adapter.problem)
        yield "\n"


def drawn(
    adapter: SavedAdapter, rows: Iterable[Mapping[str, Any]], folder: Path, **options: Any
) -> Iterator[dict[str, Any]]:
    """Answers rows as `predict` does, and writes a picture of each into a folder, named after its image.

    Args:
        adapter: A verified adapter.
        rows: Mappings with an image each.
        folder: Made if it is not there.
        **options: As of `predict`.

    Raises:
        InputError: The task has nothing to draw.
        DataError: The folder or a picture cannot be written.
    """
    seen: set[str] = set()
    for number, (row, prediction) in enumerate(answered(adapter, rows, **options), start=1):
        picture = adapter.task.draw(row, prediction)
        given = row["image"]["path"]
        name = Path(given).stem if given else f"row-{number}"
        name = f"{name}-{number}" if name in seen else name
        seen.add(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{name}.png")
        except OSError as error:
            raise DataError(f"{folder / name}.png: cannot be written: {error}. Choose another --pictures") from error
        yield {**{key: shown(value) for key, value in row.items()}, **prediction}
