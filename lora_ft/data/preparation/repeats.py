"""Training rows that say what another row says, exactly or nearly: a training row, or one that is measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import datasets

from lora_ft.data.doctor.duplicates import DuplicateCheck
from lora_ft.data.doctor.stream import BATCH_ROWS, JOINT, Batch, text_of

TRAIN = "train"


@dataclass(frozen=True)
class Repeats:
    """Training rows that repeat others.

    Attributes:
        rows: Their positions.
        conflicts: How many of them have another label than the row that they repeat.
    """

    rows: frozenset[int]
    conflicts: int


def repeats_within(train: datasets.Dataset, *, texts: Sequence[str], target: str | None, near: bool) -> Repeats:
    """Rows that repeat an earlier one; the first of those that say the same is not among them.

    Args:
        train: The training rows.
        texts: Columns that must all be alike.
        target: Column of labels, tags or spans, to count conflicts by; None: there is none.
        near: Whether nearly the same counts too.
    """
    check = _checked({TRAIN: train}, texts=texts, target=target, near=near)
    findings = [one for one in check.findings() if one.name in ("exact-duplicates", "near-duplicates")]
    rows = frozenset(row for one in findings for row in one.rows.tolist())
    if target is None:
        return Repeats(rows, 0)
    labels = [repr(value) for value in train[target][:]]
    differ = sum(
        labels[row] != labels[other]
        for one in findings
        for row, (_, other) in zip(one.rows.tolist(), one.others, strict=True)
    )
    return Repeats(rows, differ)


def repeats_of_measured(
    train: datasets.Dataset, measured: Mapping[str, datasets.Dataset], *, texts: Sequence[str], near: bool
) -> Repeats:
    """Training rows that repeat one of a split that is measured on, or that repeat such a training row.

    Args:
        train: The training rows.
        measured: Validation and test.
        texts: Columns that must all be alike.
        near: Whether nearly the same counts too.
    """
    check = _checked({**measured, TRAIN: train}, texts=texts, target=None, near=near)
    findings = [one for one in check.findings() if one.split == TRAIN]
    leaked: set[int] = set()
    while True:
        found = {
            row
            for one in findings
            for row, (split, other) in zip(one.rows.tolist(), one.others, strict=True)
            if split != TRAIN or other in leaked
        }
        if found == leaked:
            return Repeats(frozenset(leaked), 0)
        leaked = found


def _checked(
    tables: Mapping[str, datasets.Dataset], *, texts: Sequence[str], target: str | None, near: bool
) -> DuplicateCheck:
    """The doctor's check with all rows of these tables added."""

    def joined(split: str, positions: Sequence[int]) -> list[str]:
        rows = tables[split].select_columns(list(texts))[list(positions)]
        return [JOINT.join(map(text_of, values)) for values in zip(*(rows[name] for name in texts), strict=True)]

    check = DuplicateCheck(joined if near else None)
    for split, table in tables.items():
        for start in range(0, len(table), BATCH_ROWS):
            inputs = joined(split, range(start, min(start + BATCH_ROWS, len(table))))
            targets = (
                [None] * len(inputs) if target is None else list(map(repr, table[target][start : start + BATCH_ROWS]))
            )
            check.add(Batch(split, start, {}, inputs, targets, [()] * len(inputs)))
    return check
