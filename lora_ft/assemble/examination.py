"""What the data doctor hands out: what was counted in each split, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from lora_ft.data.doctor.findings import Finding, as_json, places
from lora_ft.data.doctor.lengths import Spread
from lora_ft.data.preparation.counts import StepCount
from lora_ft.data.rows import Origin

Watch = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""A number of rows and what is done with them -> a progress bar, and how to move it on."""


@dataclass(frozen=True)
class SplitReport:
    """What was counted in one split.

    Attributes:
        rows: Rows that can be used.
        bad: Rows that cannot.
        labels: Label -> rows, or entities; empty where there are no labels.
        characters: Of all that a model is given of a row; None without texts.
        tokens: The same in tokens, special ones included, nothing cut; None without texts.
        longer: Rows with more tokens than max_length; None without texts.
    """

    rows: int
    bad: int
    labels: Mapping[str, int]
    characters: Spread | None = None
    tokens: Spread | None = None
    longer: int | None = None


Seen = tuple[dict[str, SplitReport], list[Finding], tuple[int | None, int | None]]
"""What was counted, what was found, max_length and a better one."""


@dataclass(frozen=True)
class Examination:
    """What the doctor found.

    Attributes:
        recipe: The recipe's file.
        task: Its task.
        splits: What was counted, split by split.
        findings: What is wrong, the worst first.
        excerpts: For each finding the beginnings of a few of its texts.
        origins: Split -> where its rows are.
        max_length: Of the recipe, or its default; None without texts.
        suggested: The least max_length that leaves 99 % of the training rows whole; None without texts.
        seconds: How long it took, reading the files included.
        off: Names of findings that the recipe turned off.
        prepared: What the preparation did to the rows before they were looked at.
    """

    recipe: str
    task: str
    splits: Mapping[str, SplitReport]
    findings: Sequence[Finding]
    excerpts: Sequence[Sequence[str]]
    origins: Mapping[str, Origin]
    max_length: int | None
    suggested: int | None
    seconds: float
    off: Sequence[str] = ()
    prepared: Sequence[StepCount] = ()

    def places(self, finding: Finding) -> str:
        """Where the first 20 rows of a finding are."""
        return places(finding.origin or self.origins[finding.split], finding.rows)

    def as_json(self) -> dict[str, Any]:
        """All of it, every row of every finding included."""
        splits = {
            name: {
                "rows": one.rows, "bad_rows": one.bad, "labels": dict(one.labels),
                "characters": _spread(one.characters), "tokens": _spread(one.tokens),
                "longer_than_max_length": one.longer,
            }
            for name, one in self.splits.items()
        }  # fmt: skip
        return {
            "recipe": self.recipe, "task": self.task, "seconds": round(self.seconds, 2), "splits": splits,
            "max_length": self.max_length, "suggested_max_length": self.suggested, "checks_off": list(self.off),
            "preparation": [count.as_json() for count in self.prepared],
            "findings": [as_json(finding, self.origins) for finding in self.findings],
        }  # fmt: skip


def _spread(spread: Spread | None) -> dict[str, Any] | None:
    if spread is None:
        return None
    return {
        "min": spread.least, "median": spread.median, "mean": spread.mean, "p95": spread.most_rows,
        "p99": spread.nearly_all, "max": spread.most,
    }  # fmt: skip


@contextmanager
def unwatched(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A progress bar that nobody sees."""
    del total, what

    def advance(rows: int) -> None:
        del rows

    yield advance
