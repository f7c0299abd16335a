"""The data's values -> our columns, piece by piece: canonical in Arrow, labels as they are, faults by row.

One piece: {"review": ["Fine."], "stars": ["5"]} -> text "Fine.", label "5".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from lora_ft.data.faults import reason_of
from lora_ft.data.kinds import FEATURES, reader_of
from lora_ft.data.reading import Reading
from lora_ft.data.store import RowStore
from lora_ft.data.values import BadValue, flag_of, has_half_character, label_of, split_label
from lora_ft.recipe.schema import Column

Faults = list[tuple[int, str]]
LABEL = "label"
MOST_SHARED = 10_000
HALF = r"has half of a character (as \ud83d, an emoji that was cut), expected whole ones"


class MadeColumns:
    """Makes our columns; only their Arrow form and the labels are kept.

    Args:
        columns: What is made; labels are not among them, whose type is settled over all files.
        found: Our name -> the data's columns.
        reading: How columns are read.
        cells: Whether values are untyped text cells.
        folder: Where relative paths of images and sounds start.
        faults: Our name -> faults that are known already.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        found: Mapping[str, tuple[str, ...]],
        *,
        reading: Reading,
        cells: bool = False,
        folder: Path | None,
        faults: Mapping[str, Faults] | None = None,
    ) -> None:
        self.sources = {column.name: found[column.name][0] for column in columns}
        self.readers = {column.name: reader_of(column.kind, cells=cells, folder=folder) for column in columns}
        self.features = datasets.Features({column.name: FEATURES[column.kind] for column in columns})
        self.store = RowStore(self.features.arrow_schema)
        self.label_sources = found.get(LABEL, ())
        several = not isinstance(reading.mapping.get(LABEL, ""), str)
        self.flags = self.label_sources if several and self.label_sources else None
        self.delimiter = reading.label_delimiter
        self.labels: list[Any] | None = [] if self.label_sources else None
        self.shared: dict[str, str] = {}
        self.broken: Faults = []
        self.faults: dict[str, Faults] = {name: list(told) for name, told in (faults or {}).items()}
        self.rows = 0

    def add(self, values: Mapping[str, Sequence[Any]], *, broken: Sequence[tuple[int, str]] = ()) -> None:
        """Adds rows.

        Args:
            values: The data's columns of these rows.
            broken: Of these rows those that the reader could not understand: position and reason.
        """
        start = self.rows
        self.rows += len(next(iter(values.values())))
        self.broken += [(start + row, reason) for row, reason in broken]
        bad = {row for row, _ in broken}
        made = {
            name: self._canonical(values[source], name, start=start, bad=bad) for name, source in self.sources.items()
        }
        if made:
            table = datasets.Dataset.from_dict(made, features=self.features).with_format("arrow")[:]
            self.store.append(table)
        if self.labels is not None:
            columns = [values[source] for source in self.label_sources]
            self.labels += self._flagged(columns, start=start) if self.flags else self._labels(columns[0], start=start)

    def dataset(self) -> datasets.Dataset:
        """The columns that were made; null where a row is bad."""
        return self.store.dataset() if self.sources else datasets.Dataset.from_dict({})

    def told(self, order: Sequence[Column]) -> Faults:
        """All faults in the order of the rows, those of one row in the order of the columns."""
        names = [column.name for column in order if column.name != LABEL]
        faults = [fault for name in (*names, LABEL) for fault in self.faults.get(name, ())]
        return sorted([*self.broken, *faults], key=lambda fault: fault[0])

    def _canonical(self, values: Sequence[Any], name: str, *, start: int, bad: set[int]) -> list[Any]:
        """A column in its canonical form, None where a value is not of its kind."""
        read = self.readers[name]
        canonical: list[Any] = []
        for row, value in enumerate(values):
            try:
                one = None if row in bad else read(value)
                if has_half_character(one):
                    raise BadValue(HALF)
                canonical.append(one)
            except BadValue as error:
                canonical.append(None)
                self.faults.setdefault(name, []).append((start + row, reason_of(name, str(error))))
        return canonical

    def _labels(self, values: Sequence[Any], *, start: int) -> list[Any]:
        """The label column as the file has it: one value a row, or a list where cells are split."""
        labels: list[Any] = []
        for row, value in enumerate(values):
            if self.delimiter is None or isinstance(value, list):
                label = label_of(value)
            else:
                label = split_label(value, self.delimiter)
            if has_half_character(label):
                label = None
                self.faults.setdefault(LABEL, []).append((start + row, reason_of(LABEL, HALF)))
            elif label is None:
                self.faults.setdefault(LABEL, []).append((start + row, "label is empty or null"))
            elif isinstance(label, str) and len(self.shared) < MOST_SHARED:
                label = self.shared.setdefault(label, label)  # a million rows of two labels need two texts
            labels.append(label)
        return labels

    def _flagged(self, columns: Sequence[Sequence[Any]], *, start: int) -> list[list[str]]:
        """Several 0/1 columns as the list of the names whose value is 1."""
        labels: list[list[str]] = []
        for row, values in enumerate(zip(*columns, strict=True), start=start):
            flags = {name: flag_of(value) for name, value in zip(self.label_sources, values, strict=True)}
            self.faults.setdefault(LABEL, []).extend(
                (row, f"column {name!r} = {value!r}: expected 0 or 1, as in each of several label columns")
                for (name, flag), value in zip(flags.items(), values, strict=True)
                if flag is None
            )
            labels.append([name for name, flag in flags.items() if flag])
        return labels
