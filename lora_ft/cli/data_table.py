"""The tables of `lora-ft data check`: what was counted, and what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from lora_ft.assemble.examination import Examination
    from lora_ft.data.doctor.lengths import Spread

COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
MOST_LABELS = 6
WIDEST = 100
"""Characters of the last column, also in a pipe, where nothing else is folded."""


def splits_table(examination: Examination) -> Table:
    """A line for each split: rows, labels, lengths, and what max_length cuts."""
    table = Table(title=escape(f"{examination.recipe}: {examination.task}"), title_justify="left")
    table.add_column("split")
    for heading in ("rows", "bad"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("labels", overflow="fold", max_width=60)
    texts = examination.max_length is not None
    for heading in ("characters\nmedian/95 %/max", "tokens\nmedian/95 %/max", "too long") if texts else ():
        table.add_column(heading, justify="right", no_wrap=True)
    for name, one in examination.splits.items():
        labels = [f"{label} {count}" for label, count in list(one.labels.items())[:MOST_LABELS]]
        labels += [f"{len(one.labels) - MOST_LABELS} more"] if len(one.labels) > MOST_LABELS else []
        cells = [str(one.rows), str(one.bad), escape(", ".join(labels))]
        if texts:
            cells += [_spread(one.characters), _spread(one.tokens), f"{(one.longer or 0) / one.rows:.1%}"]
        table.add_row(escape(name), *cells)
    if texts:
        table.caption = (
            f"max_length is {examination.max_length}; {examination.suggested} would leave 99 % of the training rows "
            "whole"
        )
    return table


def findings_table(examination: Examination) -> Table:
    """A line for each finding, the worst first: how many rows, what was seen, where, and what to do."""
    table = Table(title="findings", title_justify="left", show_lines=True)
    table.add_column("finding", overflow="fold")
    table.add_column("rows", justify="right")
    table.add_column("what was seen, where, and what to do", overflow="fold", max_width=WIDEST)
    for one in examination.findings:
        colour = COLOURS[one.severity]
        where = f"\n[dim]{escape(examination.places(one))}[/dim]" if len(one.rows) else ""
        table.add_row(
            f"[{colour}]{one.name}[/{colour}]\n{one.severity}, {escape(one.split)}",
            f"{one.count}\n{one.share:.1%}",
            f"{escape(one.told)}{where}\n{escape(one.remedy)}",
        )
    return table


def _spread(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median}/{spread.most_rows}/{spread.most}"
