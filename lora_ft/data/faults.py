"""Rows that cannot be used: all of them in one message, or left out and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_ft.data.rows import Origin
from lora_ft.errors import DataError

SHOWN_REASONS = 10
SKIP = ", or leave them out with `dataset.on_bad_row: skip`"


@dataclass(frozen=True)
class BadRows:
    """The bad rows of one file, or of one split.

    Attributes:
        faults: Position of a row, and the reason with the column first; in the order of the rows.
        origin: Where the rows came from, bad and good.
    """

    faults: Sequence[tuple[int, str]]
    origin: Origin

    @property
    def rows(self) -> set[int]:
        """The positions of the bad rows; a row may have several faults."""
        return {row for row, _ in self.faults}


def reason_of(column: str, told: str) -> str:
    """What is wrong with a value, its column first: `spans[2].end = ...`, `text is null`."""
    return f"{column}{told}" if told.startswith(("[", ".")) else f"{column} {told}"


def refusal(bad: Sequence[BadRows], *, remedy: str = SKIP) -> DataError:
    """The error that lists bad rows with their reasons, rows of the same reason together.

    Args:
        bad: The bad rows; at least one.
        remedy: What else can be done than mending them.
    """
    told: list[tuple[BadRows, str, list[int]]] = []
    for group in bad:
        rows_of: dict[str, list[int]] = {}
        for row, reason in group.faults:
            rows_of.setdefault(reason, []).append(row)
        told += [(group, reason, rows) for reason, rows in rows_of.items()]
    advice = f"Expected a value in every row: fill these in or take them out{remedy}"
    if len(told) == 1:
        group, reason, rows = told[0]
        return DataError(
            f"{group.origin.describe(rows)}: {reason} in {len(rows)} of {len(group.origin.number)} rows. {advice}"
        )
    lines = [f"{group.origin.describe(rows)}: {reason}" for group, reason, rows in told[:SHOWN_REASONS]]
    if len(told) > SHOWN_REASONS:
        lines.append(f"... and {len(told) - SHOWN_REASONS} more faults")
    count, total = sum(len(group.rows) for group in bad), sum(len(group.origin.number) for group in bad)
    return DataError("\n".join([*lines, f"{count} of {total} rows cannot be used. {advice}"]))


def refuse_most(bad: Sequence[BadRows], *, split: str, rows: int) -> None:
    """Refuses to leave out more than half of a split: then not the rows are wrong but how they are read.

    Raises:
        DataError: Lists the rows, whatever `on_bad_row` says.
    """
    count = sum(len(group.rows) for group in bad)
    if 2 * count > rows:
        raise DataError(
            f"{refusal(bad, remedy='')}\n{split}: {count} of {rows} rows would be left out, too many to skip. "
            "Check `dataset.columns` and the other words of `dataset`"
        )
