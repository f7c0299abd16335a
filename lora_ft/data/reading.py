"""How the columns of any file are read: what the task wants, and what the recipe says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lora_ft.data.columns import ColumnSets, Mapped, choose_set, map_columns
from lora_ft.data.lines import SampleBy
from lora_ft.recipe.schema import Column


@dataclass(frozen=True)
class Reading:
    """How columns are read.

    Attributes:
        columns: The columns that are wanted.
        mapping: `dataset.columns`.
        column_sets: Problem type -> columns, one set of which must be complete.
        label_delimiter: Splits one text cell into several labels.
        targets_optional: Whether rows may have no targets (prediction).
        sample_by: What of a .txt file is one row.
        media_dir: Where relative paths of images and sounds start; None: the folder of the data file.
    """

    columns: Sequence[Column]
    mapping: Mapped
    column_sets: ColumnSets = field(default_factory=dict)
    label_delimiter: str | None = None
    targets_optional: bool = False
    sample_by: SampleBy = "line"
    media_dir: Path | None = None

    def find(
        self, available: Iterable[str], where: str, *, ours: bool = False
    ) -> tuple[str | None, dict[str, tuple[str, ...]]]:
        """The chosen column set, and the data's columns behind our names; see `map_columns`.

        Args:
            available: The columns of the data.
            where: Its name, for messages.
            ours: Whether the format gives them our names, whatever they are called in other files.
        """
        there = tuple(available)
        mapping = {name: name if ours and name in there else source for name, source in self.mapping.items()}
        found = map_columns(
            self.columns,
            mapping,
            available=there,
            where=where,
            column_sets=self.column_sets,
            targets_optional=self.targets_optional,
        )
        chosen = choose_set(
            self.columns,
            mapping,
            available=there,
            where=where,
            column_sets=self.column_sets,
            targets_optional=self.targets_optional,
        )
        return chosen, found

    def without_keys(self) -> Reading:
        """For files that nothing is split off from: what rows are grouped or ordered by is not read."""
        keys = {column.name for column in self.columns if column.kind == "key"}
        if not keys:
            return self
        return replace(
            self,
            columns=[column for column in self.columns if column.name not in keys],
            mapping={ours: theirs for ours, theirs in self.mapping.items() if ours not in keys},
        )

    def narrowed(self, column_set: str | None) -> Reading:
        """For the other files of the data: they must have the columns that the first one has."""
        if column_set is None:
            return self
        others = {name for names in self.column_sets.values() for name in names} - set(self.column_sets[column_set])
        return replace(
            self,
            columns=[column for column in self.columns if column.name not in others],
            column_sets={column_set: self.column_sets[column_set]},
        )
