"""The rules on the rows: their source, their splits and their columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lora_ft.recipe.draft import Draft
from lora_ft.recipe.faults import Fault, KeyPath, nearest
from lora_ft.recipe.peek import PeekError, column_names, saved_columns
from lora_ft.recipe.schema import Column

MOST_FILES_PEEKED = 20
SHARES = ("validation", "test")


def one_source(draft: Draft) -> Iterator[Fault]:
    """No source of rows, or two."""
    if "dataset" not in draft.values:
        return
    path, files = draft.given("dataset", "path"), draft.given("dataset", "data_files")
    if path and files:
        yield Fault(("dataset", "path"), "path and data_files exclude each other. Keep one of them")
    elif not path and not files:
        yield Fault(
            ("dataset",),
            "there are no rows. Write data_files: {train: FILE}, or path: with a hub id or a saved folder",
        )


def options_fit_the_source(draft: Draft) -> Iterator[Fault]:
    """Options that only a `path` understands."""
    if draft.given("dataset", "path") or not draft.given("dataset", "data_files"):
        return
    for key in ("name", "revision", "split"):
        if draft.given("dataset", key):
            remedy = "name the files of each split in data_files" if key == "split" else "leave it out"
            yield Fault(("dataset", key), f"it needs dataset.path, and the rows come from data_files: {remedy}")


def there_is_a_training_split(draft: Draft) -> Iterator[Fault]:
    """Splits without one to train on."""
    for key in ("data_files", "split"):
        splits = draft.document.find(("dataset", key))[1]
        if isinstance(splits, dict) and not draft.given("dataset", key, "train"):
            yield Fault(("dataset", key), f"there is nothing to train on. Write dataset.{key}.train")


def a_split_comes_from_one_place(draft: Draft) -> Iterator[Fault]:
    """A split that is given and split off as well."""
    for split in SHARES:
        for key in ("data_files", "split"):
            if draft.given("dataset", split) and draft.given("dataset", key, split):
                yield Fault(
                    ("dataset", split),
                    f"dataset.{key}.{split} already gives the {split} split. Keep one of them",
                )


def shares_leave_training_rows(draft: Draft) -> Iterator[Fault]:
    """Shares that take all training rows."""
    shares = [draft.number("dataset", split) for split in SHARES]
    if all(0 < share < 1 for share in shares) and sum(shares) >= 1:
        yield Fault(
            ("dataset", "test"),
            f"validation and test take {sum(shares):g} of the rows and leave none to train on",
        )


def a_file_is_in_one_split(draft: Draft) -> Iterator[Fault]:
    """A file that is trained on and measured on."""
    seen: dict[str, str] = {}
    for split, files in _files(draft).items():
        for file in files:
            if seen.setdefault(file, split) != split:
                yield Fault(
                    ("dataset", "data_files", split),
                    f"{Path(file).name} is in the {seen[file]} split too. Give each split files of its own",
                )


def a_column_is_read_once(draft: Draft) -> Iterator[Fault]:
    """Two of our columns read from one of the data."""
    seen: dict[str, str] = {}
    for ours, theirs in draft.section("dataset").get("columns", {}).items():
        for name in _names(theirs):
            if name in seen:
                yield Fault(("dataset", "columns", ours), f"the column {name!r} is already read as {seen[name]!r}")
            seen[name] = ours


def columns_exist(draft: Draft) -> Iterator[Fault]:
    """A column that a file does not have, or a file whose columns cannot be read."""
    if draft.task is None or draft.wrong("dataset", "columns"):
        return
    for split, files in _files(draft).items():
        at = (
            ("dataset", "data_files", split)
            if draft.given("dataset", "data_files", split)
            else ("dataset", "data_files")
        )
        for file in files[:MOST_FILES_PEEKED]:
            try:
                names = column_names(Path(file))
            except PeekError as error:
                yield Fault(at, f"{_short(draft, file)}: {error}")
                continue
            yield from _missing_columns(draft, _short(draft, file), names)
    folder = draft.value("dataset", "path")
    if folder is not None and Path(folder).is_absolute():
        names = saved_columns(Path(folder))
        if names:
            yield from _missing_columns(draft, _short(draft, folder), names)


def _missing_columns(draft: Draft, file: str, names: Sequence[str]) -> Iterator[Fault]:
    columns: tuple[Column, ...] = draft.task.columns if draft.task else ()
    mapping = draft.section("dataset").get("columns", {})
    for column in columns:
        if column.name in mapping:
            for index, theirs in enumerate(_names(mapping[column.name])):
                if theirs not in names:
                    path: KeyPath = ("dataset", "columns", column.name)
                    path = (*path, index) if isinstance(mapping[column.name], tuple) else path
                    yield Fault(path, f"{file} has no column {theirs!r}.{nearest(theirs, names)}{_list(names)}")
        elif column.required and column.name not in names and not _misspelt(draft, column.name):
            yield Fault(
                ("dataset", "columns", column.name),
                f"the task needs a column {column.name!r} ({column.help}), and {file} has none of that name. "
                f"Write columns: {{{column.name}: NAME}}.{_list(names)}",
            )


def _misspelt(draft: Draft, name: str) -> bool:
    """Whether `columns` has a key that is wrong and near this name: its fault says enough."""
    written = draft.document.find(("dataset", "columns"))[1]
    return isinstance(written, dict) and any(name == key or nearest(key, [name]) for key in written)


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f" Its columns: {shown}"


def _names(theirs: str | tuple[str, ...]) -> tuple[str, ...]:
    return theirs if isinstance(theirs, tuple) else (theirs,)


def _files(draft: Draft) -> Mapping[str, tuple[str, ...]]:
    files = draft.section("dataset").get("data_files")
    return files if isinstance(files, dict) else {}


def _short(draft: Draft, file: str) -> str:
    """A path as the recipe would write it."""
    path = Path(file)
    return str(path.relative_to(draft.folder)) if path.is_relative_to(draft.folder) else file
