"""The data doctor: what would spoil a run is refused, what a user should know is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from lora_ft.data.labels import REGRESSION, row_labels
from lora_ft.data.rows import describe_rows, each_value
from lora_ft.errors import DataError, closest
from lora_ft.recipe.schema import Column

SHOWN_LABELS = 8


@dataclass(frozen=True)
class RowReport:
    """What was counted in the rows.

    Attributes:
        rows: Split -> number of rows.
        labels: Split -> label -> number of rows; empty for regression.
        empty_texts: Split -> rows whose text is empty or white space.
        repeated: Split other than train -> rows whose texts occur in the training rows too.
        notes: What a user should know before training, one line each.
    """

    rows: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]]
    empty_texts: Mapping[str, int]
    repeated: Mapping[str, int]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for display: a line for each split, then the notes."""
        shown: list[str] = []
        for split, count in self.rows.items():
            labels = sorted(self.labels.get(split, {}).items(), key=lambda item: -item[1])
            parts = [f"{name} {number}" for name, number in labels[:SHOWN_LABELS]]
            if len(labels) > SHOWN_LABELS:
                parts.append(f"{len(labels) - SHOWN_LABELS} more labels")
            shown.append(f"{split}: {count} rows" + (f" ({', '.join(parts)})" if parts else ""))
        return shown + list(self.notes)


def check_rows(
    splits: Mapping[str, datasets.Dataset],
    *,
    columns: Sequence[Column],
    problem_type: str,
    labels: Sequence[str],
) -> RowReport:
    """Looks through all rows before anything is trained.

    Args:
        splits: What `load_splits` returned.
        columns: The columns that the task reads.
        problem_type: What `infer_problem_type` said, or the recipe.
        labels: What `label_vocabulary` returned.

    Returns:
        What was counted.

    Raises:
        DataError: An empty split, a label that training never sees, training rows of one class only, no
            number in a regression, or a split in which more than half of the texts are empty.
    """
    for split, table in splits.items():
        if not len(table):
            raise DataError(f"dataset: the {split} split has no rows. Expected at least one; fill it or take it out")
    texts = [column.name for column in columns if column.kind == "text" and column.name in splits["train"].column_names]
    empty = {split: _empty_texts(splits, split, texts[0]) for split in splits}
    targets = {split: _targets(splits, split, problem_type=problem_type, labels=labels) for split in splits}
    if problem_type == REGRESSION:
        _check_spread(targets["train"])
        counts: dict[str, dict[str, int]] = {}
    else:
        counts = _label_counts(splits, targets, labels)
        _check_classes(counts["train"], len(splits["train"]), problem_type)
    repeated = _repeated(splits, texts)
    return RowReport(
        rows={split: len(table) for split, table in splits.items()},
        labels=counts,
        empty_texts={split: len(rows) for split, rows in empty.items()},
        repeated=repeated,
        notes=(*_empty_notes(splits, empty), *_repeated_notes(splits, repeated), *_label_notes(counts)),
    )


def _targets(
    splits: Mapping[str, datasets.Dataset], split: str, *, problem_type: str, labels: Sequence[str]
) -> list[Any]:
    try:
        return row_labels(each_value(splits[split], "label"), problem_type=problem_type, labels=labels)
    except DataError as error:
        raise DataError(f"{split}: {error}") from error


def _empty_texts(splits: Mapping[str, datasets.Dataset], split: str, name: str) -> list[int]:
    """Rows without a text; kept, because a model must answer them too, but not if most of them are so."""
    empty = [index for index, text in enumerate(each_value(splits[split], name)) if not text.strip()]
    if 2 * len(empty) > len(splits[split]):
        raise DataError(
            f"{describe_rows(splits, split, empty)}: {name} is empty in {len(empty)} of {len(splits[split])} "
            f"{split} rows. Expected a text in most rows: check `dataset.columns.{name}`, or take these rows "
            "out"
        )
    return empty


def _label_counts(
    splits: Mapping[str, datasets.Dataset],
    targets: Mapping[str, Sequence[Sequence[str]]],
    labels: Sequence[str],
) -> dict[str, dict[str, int]]:
    """Rows of each label in each split; refuses labels outside the vocabulary."""
    known = set(labels)
    result: dict[str, dict[str, int]] = {}
    faults: list[str] = []
    for split, rows in targets.items():
        counts = Counter(name for row in rows for name in row)
        for name in sorted(set(counts) - known):
            indices = [index for index, row in enumerate(rows) if name in row]
            faults.append(
                f"{describe_rows(splits, split, indices)}: label = {name!r}: in {counts[name]} {split} rows, "
                f"but never in the training rows.{closest(name, labels)} Expected one of the {len(labels)} "
                "training labels: add training rows of it, or take these rows out"
            )
        result[split] = {name: counts[name] for name in labels}
    if faults:
        raise DataError("\n".join(faults))
    return result


def _check_classes(counts: Mapping[str, int], rows: int, problem_type: str) -> None:
    present = [name for name, count in counts.items() if count]
    if not present:
        raise DataError("train: no row has a label. Expected at least one label: check `dataset.columns.label`")
    if len(present) == 1 and problem_type == "single_label_classification":
        raise DataError(
            f"train: label = {present[0]!r} in all {rows} rows: a classifier cannot be trained on one class. "
            f"Expected rows of at least two labels; check `dataset.columns.label`"
        )


def _check_spread(targets: Sequence[float]) -> None:
    if len(set(targets)) == 1:
        raise DataError(
            f"train: label = {targets[0]} in all {len(targets)} rows: there is nothing to learn. Expected "
            "numbers that differ; check `dataset.columns.label`"
        )


def _repeated(splits: Mapping[str, datasets.Dataset], texts: Sequence[str]) -> dict[str, int]:
    seen = {hash(row) for row in _inputs(splits["train"], texts)}
    return {
        split: sum(hash(row) in seen for row in _inputs(table, texts))
        for split, table in splits.items()
        if split != "train"
    }


def _inputs(table: datasets.Dataset, texts: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return zip(*(each_value(table, name) for name in texts), strict=True)


def _empty_notes(splits: Mapping[str, datasets.Dataset], empty: Mapping[str, Sequence[int]]) -> list[str]:
    return [
        f"{split}: {len(rows)} rows have an empty text and are kept ({describe_rows(splits, split, rows)})"
        for split, rows in empty.items()
        if rows
    ]


def _repeated_notes(splits: Mapping[str, datasets.Dataset], repeated: Mapping[str, int]) -> list[str]:
    return [
        f"{split}: {count} of {len(splits[split])} rows have a text that is in the training rows too; "
        f"its metrics will look too good"
        for split, count in repeated.items()
        if count
    ]


def _label_notes(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    notes: list[str] = []
    for split, labels in counts.items():
        absent = [name for name, count in labels.items() if not count]
        if absent:
            more = f" and {len(absent) - SHOWN_LABELS} more" if len(absent) > SHOWN_LABELS else ""
            notes.append(f"{split}: no row of label {', '.join(map(repr, absent[:SHOWN_LABELS]))}{more}")
    return notes
