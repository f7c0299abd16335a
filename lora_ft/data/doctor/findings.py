"""What the data doctor says: one finding for each thing that is wrong, with its rows and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lora_ft.data.rows import Origin

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
SHOWN_ROWS = 20
FEW = 0.001
"""Below this share of a split's rows what would be a warning is a note."""

Rows = npt.NDArray[np.int64]


def no_rows() -> Rows:
    """The rows of a finding that is about a split as a whole."""
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong in one split.

    Attributes:
        name: Its stable name, `near-duplicates`.
        severity: `error`: the run would fail or be about something else; `warning`: the model or its metrics would be
            worse than they look; `note`: good to know.
        split: Where.
        count: How many rows; where it is not about rows (labels, lengths), how many of what `told` speaks of.
        of: Rows that were looked at.
        told: What was seen, one sentence without a full stop.
        remedy: What to do, and which key of the recipe it is about.
        rows: Positions of the rows in the split, ascending; empty where it is about no single rows.
        others: For each of `rows` the split and position of the row that it repeats, where there is one.
        details: For each of `rows` what else there is to say (a suggested label, a score), JSON-serialisable.
        origin: Where `rows` are, if these are not rows of the split as it is used (bad rows).
    """

    name: str
    severity: Severity
    split: str
    count: int
    of: int
    told: str
    remedy: str
    rows: Rows = field(default_factory=no_rows)
    others: Sequence[tuple[str, int]] = ()
    details: Sequence[Mapping[str, Any]] = ()
    origin: Origin | None = None

    @property
    def share(self) -> float:
        """Its share of the rows that were looked at, 0 to 1."""
        return self.count / self.of if self.of else 0.0


def by_share(count: int, of: int) -> Severity:
    """A warning, or a note where hardly any row is concerned."""
    return "warning" if count >= FEW * of else "note"


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first; within a severity the order of the checks."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def place(origin: Origin, row: int) -> str:
    """Where a row is: `train.csv:17`, or the file alone where it is one row."""
    name, number = origin.names[origin.source[row]], int(origin.number[row])
    return f"{name}:{number}" if number else name


def places(origin: Origin, rows: Sequence[int] | Rows) -> str:
    """Where the first 20 rows are, each file named once: `train.csv:3, 7, 9 ... (41 in all)`."""
    by_file: dict[str, list[str]] = {}
    for row in rows[:SHOWN_ROWS]:
        by_file.setdefault(origin.names[origin.source[row]], []).append(str(origin.number[row]))
    told = [name if numbers == ["0"] else f"{name}:{', '.join(numbers)}" for name, numbers in by_file.items()]
    return "; ".join(told) + (f" ... ({len(rows)} in all)" if len(rows) > SHOWN_ROWS else "")


def as_json(finding: Finding, origins: Mapping[str, Origin]) -> dict[str, Any]:
    """A finding with all its rows, for `--json`."""
    rows: list[dict[str, Any]] = []
    for at, row in enumerate(finding.rows.tolist()):
        told: dict[str, Any] = {"at": place(finding.origin or origins[finding.split], row)}
        if finding.others:
            split, other = finding.others[at]
            told["like"] = place(origins[split], other)
        rows.append({**told, **(finding.details[at] if finding.details else {})})
    return {
        "name": finding.name, "severity": finding.severity, "split": finding.split, "count": finding.count,
        "of": finding.of, "share": round(finding.share, 6), "told": finding.told, "remedy": finding.remedy,
        "rows": rows,
    }  # fmt: skip
