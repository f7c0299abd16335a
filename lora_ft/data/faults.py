"""Rows that cannot be used: all of them in one message, or left out and counted."""

from __future__ import annotations

from collections.abc import Sequence

from lora_ft.data.rows import BadRows, Splits
from lora_ft.errors import DataError

SHOWN_REASONS = 5
SKIP = ", or write `dataset.on_bad_row: skip`"


def reason_of(column: str, told: str) -> str:
    """What is wrong with a value, its column first: `spans[2].end = ...`, `text is null`."""
    return f"{column}{told}" if told.startswith(("[", ".")) else f"{column} {told}"


def refusal(bad: Sequence[BadRows], *, remedy: str = SKIP) -> DataError:
    """The error that lists bad rows with their reasons by split, rows of the same reason together.

    Args:
        bad: The bad rows; at least one.
        remedy: What else can be done than mending them.
    """
    told = [_told(group) for group in bad]
    if [len(reasons) for reasons in told] == [1]:
        (group,), ((where, reason),) = bad, told[0]
        rows = f"{len(group.rows)} of {group.of} rows{f' of {group.split}' if group.split else ''}"
        return DataError(f"{where}: {reason} in {rows}. {_advice(len(group.rows), remedy)}")
    lines: list[str] = []
    for split in dict.fromkeys(group.split for group in bad):
        groups = [group for group in bad if group.split == split]
        own = [reasons for group, reasons in zip(bad, told, strict=True) if group.split == split]
        count, total, file = sum(len(group.rows) for group in groups), max(one.of for one in groups), _only_file(groups)
        header = ", ".join(name for name in (split, file) if name)
        lines.append(f"{header}{': ' if header else ''}{count} of {total} rows cannot be used")
        for reasons in own:
            places = ((where.removeprefix(f"{file}, "), reason) for where, reason in reasons[:SHOWN_REASONS])
            lines += [f"  {place}: {reason}" for place, reason in places]
            if len(reasons) > SHOWN_REASONS:
                lines.append(f"  ... and {len(reasons) - SHOWN_REASONS} more faults")
    return DataError("\n".join([*lines, _advice(sum(len(group.rows) for group in bad), remedy)]))


def refuse_held(splits: Splits) -> None:
    """Refuses the bad rows that were held back to be told with others.

    Raises:
        DataError: There are some; lists them.
    """
    if splits.bad:
        raise refusal(splits.bad)


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


def _told(group: BadRows) -> list[tuple[str, str]]:
    """Where and why, one for each reason; a file that is named before its reason is not named in it too."""
    origin = group.origin
    rows_of: dict[str, list[int]] = {}
    for row, reason in group.faults:
        name = origin.names[origin.source[row]]
        rows_of.setdefault(reason.replace(f"{name}: ", ""), []).append(row)
    return [(origin.describe(rows), reason) for reason, rows in rows_of.items()]


def _only_file(bad: Sequence[BadRows]) -> str:
    """The file that all bad rows are in; empty where they are in several, or are files themselves."""
    places = [
        (group.origin.names[group.origin.source[row]], group.origin.number[row]) for group in bad for row in group.rows
    ]
    names = {name for name, _ in places}
    return names.pop() if len(names) == 1 and all(number for _, number in places) else ""


def _advice(rows: int, remedy: str) -> str:
    return f"Mend or remove {'it' if rows == 1 else 'them'}{remedy}"
