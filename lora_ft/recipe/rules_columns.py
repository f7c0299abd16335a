"""The rules on the columns of the rows: which there must be, and whether the files have them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_ft.recipe.draft import Draft, sets_of
from lora_ft.recipe.faults import Fault, KeyPath, nearest
from lora_ft.recipe.peek import Header, PeekError, header_of, saved_columns
from lora_ft.recipe.rules_data import files_of, short_path
from lora_ft.recipe.schema import Column

MOST_FILES_PEEKED = 20


@dataclass(frozen=True)
class _Source:
    """A file or a saved dataset, as the recipe would write it, and what was seen in it."""

    name: str
    header: Header

    @property
    def columns(self) -> tuple[str, ...]:
        """Its columns."""
        return self.header.names

    def listed(self) -> str:
        """Its columns as the end of a message."""
        return f" Its columns: {', '.join(self.columns[:20])}{', ...' if len(self.columns) > 20 else ''}"


def a_column_is_read_once(draft: Draft) -> Iterator[Fault]:
    """Two of our columns read from one of the data."""
    seen: dict[str, str] = {}
    for ours, theirs in draft.section("dataset").get("columns", {}).items():
        for name in _names(theirs):
            if name in seen:
                yield Fault(("dataset", "columns", ours), f"the column {name!r} is already read as {seen[name]!r}")
            seen[name] = ours


def columns_belong_together(draft: Draft) -> Iterator[Fault]:
    """Columns of different kinds of rows named side by side."""
    if draft.task is None or not draft.task.column_sets or draft.wrong("dataset", "columns") or sets_of(draft):
        return
    alternatives = _alternatives(draft.task.column_sets.values())
    yield Fault(("dataset", "columns"), f"no row has all of these. Expected the columns of one kind: {alternatives}")


def columns_exist(draft: Draft) -> Iterator[Fault]:
    """A column that a file does not have, or a file whose columns cannot be read."""
    if draft.task is None or draft.wrong("dataset", "columns"):
        return
    sources: list[_Source] = []
    for split, files in files_of(draft).items():
        whole = ("dataset", "data_files")
        at = (*whole, split) if draft.given(*whole, split) else whole
        for file in files[:MOST_FILES_PEEKED]:
            try:
                sources.append(_Source(short_path(draft, file), header_of(Path(file))))
            except PeekError as error:
                yield Fault(at, f"{short_path(draft, file)}: {error}")
    folder = draft.value("dataset", "path")
    if folder is not None and Path(folder).is_absolute():
        sources.append(_Source(short_path(draft, folder), Header(saved_columns(Path(folder)))))
    sources = [source for source in sources if source.columns]
    for source in sources:
        yield from _mapped_columns(draft, source)
    yield from _needed_columns(draft, sources)


def _mapped_columns(draft: Draft, source: _Source) -> Iterator[Fault]:
    """Columns that the recipe names and a file does not have."""
    for ours, theirs in draft.section("dataset").get("columns", {}).items():
        found = source.header.ours and ours in source.columns
        for index, name in enumerate(_names(theirs)):
            if not found and name not in source.columns:
                path: KeyPath = ("dataset", "columns", ours)
                path = (*path, index) if isinstance(theirs, tuple) else path
                near = nearest(name, source.columns)
                yield Fault(path, f"{source.name} has no column {name!r}.{near}{source.listed()}")


def _needed_columns(draft: Draft, sources: Sequence[_Source]) -> Iterator[Fault]:
    """Columns that the recipe does not name, that the task needs and that a file does not have."""
    sets = list(sets_of(draft).values())
    lacking = [[_lacking(draft, needed, source) for source in sources] for needed in sets]
    if not sets or any(not any(missing) for missing in lacking):
        return
    if len(sets) == 1:
        for source, missing in zip(sources, lacking[0], strict=True):
            for column in missing:
                yield Fault(
                    ("dataset", "columns", column.name),
                    f"the task needs a column {column.name!r} ({column.help}), and {source.name} has none of that "
                    f"name. Write columns: {{{column.name}: NAME}}.{source.listed()}",
                )
        return
    told: set[tuple[str, ...]] = set()
    for index, source in enumerate(sources):
        if all(missing[index] for missing in lacking) and source.columns not in told:
            told.add(source.columns)
            yield Fault(
                ("dataset", "columns"),
                f"the task needs the columns {_alternatives(sets)}, and {source.name} has none of these sets. "
                f"Write columns: {{{sets[0][0]}: NAME}}.{source.listed()}",
            )
    if not told:
        yield Fault(
            ("dataset", "data_files"),
            f"the files hold different kinds of rows. Expected all of them to have {_alternatives(sets)}",
        )


def _lacking(draft: Draft, needed: Sequence[str], source: _Source) -> list[Column]:
    """The columns of a set that a file lacks; those that `columns` names are looked at elsewhere."""
    mapped = draft.section("dataset").get("columns", {})
    columns = draft.task.columns if draft.task else ()
    return [
        column
        for column in columns
        if column.name in needed and column.name not in (*mapped, *source.columns) and not _misspelt(draft, column.name)
    ]


def _misspelt(draft: Draft, name: str) -> bool:
    """Whether `columns` has this key or an unknown one near it, with a fault: that says enough."""
    written = draft.document.find(("dataset", "columns"))[1]
    known = {column.name for column in draft.task.columns} if draft.task else set()
    return isinstance(written, dict) and any(
        value is not None and (key == name or (key not in known and nearest(key, [name])))
        for key, value in written.items()
    )


def _alternatives(sets: Iterable[Sequence[str]]) -> str:
    """`text, or prompt + completion, or messages`."""
    return ", or ".join(dict.fromkeys(" + ".join(names) for names in sets))


def _names(theirs: str | tuple[str, ...]) -> tuple[str, ...]:
    return theirs if isinstance(theirs, tuple) else (theirs,)
