"""The data doctor: what would spoil a run is refused, what a user should know is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import datasets

from lora_ft.data.contents import (
    OUTSIDE,
    chats,
    count_names,
    counted_column,
    hashed_inputs,
    is_empty,
    names_in,
    text_inputs,
    type_of,
)
from lora_ft.data.faults import refusal, refuse_most
from lora_ft.data.labels import MULTI, REGRESSION, SINGLE, row_labels
from lora_ft.data.progress import watched
from lora_ft.data.rows import BadRows, Splits, describe_rows, each_value, take_rows
from lora_ft.errors import DataError, closest
from lora_ft.recipe.schema import Column

SHOWN_LABELS = 8


@dataclass(frozen=True)
class RowReport:
    """What was counted in the rows.

    Attributes:
        rows: Split -> number of rows.
        labels: Split -> label -> number of rows, or of entities or boxes where a row has several; empty where there
            are no labels.
        empty_texts: Split -> rows whose text is empty or white space; empty where there are no texts.
        repeated: Split other than train -> rows whose texts occur in the training rows too.
        notes: What a user should know before training, one line each.
        skipped: Split -> bad rows that were left out, and are not among `rows`.
    """

    rows: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]]
    empty_texts: Mapping[str, int]
    repeated: Mapping[str, int]
    notes: tuple[str, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report for display: a line for each split, then the notes."""
        shown: list[str] = []
        for split, count in self.rows.items():
            labels = sorted(self.labels.get(split, {}).items(), key=lambda item: -item[1])
            parts = [f"{name} {number}" for name, number in labels[:SHOWN_LABELS]]
            if len(labels) > SHOWN_LABELS:
                parts.append(f"{len(labels) - SHOWN_LABELS} more labels")
            left_out = self.skipped.get(split, 0)
            shown.append(
                f"{split}: {count} rows"
                + (f", {left_out} bad rows left out" if left_out else "")
                + (f" ({', '.join(parts)})" if parts else "")
            )
        return shown + list(self.notes)


def check_rows(
    splits: Mapping[str, datasets.Dataset],
    *,
    columns: Sequence[Column],
    problem_type: str,
    labels: Sequence[str],
    without: Collection[str] = (),
) -> RowReport:
    """Looks through all rows before anything is trained.

    Args:
        splits: What `load_splits` returned.
        columns: The columns that the task reads.
        problem_type: What `infer_problem_type` said, the recipe, or the task. The three of classification are about
            a column `label`; for all others, tags, spans and boxes are counted where there are any.
        labels: What `label_vocabulary` returned, or the task's `vocabulary`: names, or tags.
        without: Names of findings of the data doctor that are not told of; what is refused is refused all the same.

    Returns:
        What was counted.

    Raises:
        DataError: An empty split, a label that training never sees, training rows of one class only or without
            any label, no number in a regression, or a split in which more than half of the texts are empty.
    """
    for split, table in splits.items():
        if not len(table):
            raise DataError(f"dataset: the {split} split has no rows. Expected at least one; fill it or take it out")
    inputs = text_inputs(splits["train"], columns)
    empty = {split: _empty_texts(splits, split, inputs[0].name) for split in splits} if inputs else {}
    if problem_type in (SINGLE, MULTI, REGRESSION):
        counts = _class_counts(splits, problem_type=problem_type, labels=labels)
    else:
        counts = _name_counts(splits, columns, labels=labels)
    compared = inputs or chats(splits["train"], columns)
    repeated = _repeated(splits, compared) if compared and "exact-leakage" not in without else {}
    skipped, left_out = (splits.skipped, splits.notes) if isinstance(splits, Splits) else ({}, ())
    return RowReport(
        rows={split: len(table) for split, table in splits.items()},
        labels=counts,
        empty_texts={split: len(rows) for split, rows in empty.items()},
        repeated=repeated,
        notes=(
            *left_out,
            *(() if "empty-texts" in without else _empty_notes(splits, empty)),
            *_repeated_notes(splits, repeated),
            *(() if "absent-labels" in without else _label_notes(counts)),
        ),
        skipped=skipped,
    )


def drop_bad_rows(
    splits: Splits,
    fault: Callable[[Mapping[str, Any]], str | None],
    *,
    on_bad_row: Literal["error", "skip"],
    description: str = "check rows",
    hold: bool = False,
    only: Collection[str] | None = None,
) -> Splits:
    """Asks of every row whether it can be used.

    Args:
        splits: What `load_splits` returned.
        fault: A row -> why it cannot be used, with the column's name first; None if it can.
        on_bad_row: `error`: bad rows are refused together; `skip`: they are left out.
        description: What a progress bar says; there is one if it takes longer than two seconds.
        hold: Whether bad rows that are to be refused are handed on in `bad`; see `load_splits`.
        only: The splits that are asked; None: all.

    Returns:
        The rows that can be used; those left out are added to `skipped`, or to `bad`.

    Raises:
        DataError: Bad rows that are not to be skipped, or more than half of a split, with numbers and reasons.
    """
    bad: dict[str, BadRows] = {}
    for split, table in splits.items():
        if only is not None and split not in only:
            continue
        rows = watched(enumerate(table), total=len(table), description=f"{description} of {split}")
        faults = [(row, reason) for row, reason in ((row, fault(values)) for row, values in rows) if reason is not None]
        if faults:
            total = len(table) + sum(len(group.rows) for group in splits.bad if group.split == split)
            bad[split] = BadRows(faults, splits.origins[split], split, total)
    held = (*splits.bad, *bad.values()) if on_bad_row == "error" else splits.bad
    if held and not hold:
        raise refusal(sorted(held, key=lambda group: list(splits).index(group.split)))
    if not bad:
        return splits
    tables, origins, skipped = dict(splits), dict(splits.origins), dict(splits.skipped)
    for split, found in bad.items():
        if on_bad_row == "skip":
            refuse_most([found], split=split, rows=len(splits[split]))
            skipped[split] = skipped.get(split, 0) + len(found.rows)
        gone = found.rows
        kept = [row for row in range(len(splits[split])) if row not in gone]
        tables[split], origins[split] = take_rows(splits[split], kept), origins[split].take(kept)
    return Splits(
        tables, origins=origins, label_names=splits.label_names, skipped=skipped, notes=splits.notes, bad=held
    )


def _class_counts(
    splits: Mapping[str, datasets.Dataset], *, problem_type: str, labels: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Rows of each label in each split; none for numbers, which must differ."""
    targets = {split: _targets(splits, split, problem_type=problem_type, labels=labels) for split in splits}
    if problem_type == REGRESSION:
        _check_spread(targets["train"])
        return {}
    counts = _label_counts(splits, targets, labels)
    _check_classes(counts["train"], len(splits["train"]), problem_type)
    return counts


def _name_counts(
    splits: Mapping[str, datasets.Dataset], columns: Sequence[Column], *, labels: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Entities, spans or boxes of each name in each split; none where a task has no such thing."""
    column = counted_column(splits["train"], columns)
    if column is None:
        return {}
    counts = {split: count_names(table, column) for split, table in splits.items() if column.name in table.column_names}
    if not counts["train"]:
        raise DataError(
            f"train: {column.name} names nothing in any row. Expected at least one label: check "
            f"`dataset.columns.{column.name}`"
        )
    types = labels if column.kind == "objects" else map(type_of, labels)
    known = [name for name in dict.fromkeys(types) if name != OUTSIDE] or sorted(counts["train"])
    unknown = [(split, name) for split, found in counts.items() for name in sorted(set(found) - set(known))]
    if unknown:
        raise DataError(
            "\n".join(_unknown_name(splits, split, column, name=name, known=known) for split, name in unknown)
        )
    return {split: {name: found[name] for name in known} for split, found in counts.items()}


def _unknown_name(
    splits: Mapping[str, datasets.Dataset], split: str, column: Column, *, name: str, known: Sequence[str]
) -> str:
    values = enumerate(each_value(splits[split], column.name))
    rows = [row for row, value in values if name in names_in(value, column.kind)]
    return (
        f"{describe_rows(splits, split, rows)}: {column.name} names {name!r}: in {len(rows)} {split} rows, but not "
        f"among the labels.{closest(name, known)} Expected one of the {len(known)} labels of the training rows or of "
        "`dataset.label_names`: add rows, or take these out"
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
    empty = [index for index, text in enumerate(each_value(splits[split], name)) if is_empty(text)]
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


def _repeated(splits: Mapping[str, datasets.Dataset], inputs: Sequence[Column]) -> dict[str, int]:
    seen = set(hashed_inputs(splits["train"], inputs))
    return {
        split: sum(row in seen for row in hashed_inputs(table, inputs))
        for split, table in splits.items()
        if split != "train"
    }


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
