"""Numbers to be learned: the same text with clearly different ones, and numbers far away from all others.

One row: {"text": "Broke after a week.", "label": 1.5}
"""

from __future__ import annotations

import hashlib
from array import array

import numpy as np
import numpy.typing as npt

from lora_ft.data.doctor.duplicates import folded
from lora_ft.data.doctor.findings import Finding, by_share
from lora_ft.data.doctor.stream import Batch

CLEAR = 1.0
"""Spreads: two numbers that are so far apart are not the same opinion."""
FAR = 5.0
"""Widths of the middle half beyond its edges; of a million normal numbers none is so far out."""
NORMAL_WIDTH = 1.349
"""The middle half of a normal distribution is so many standard deviations wide."""
LEAST_ROWS = 20

Numbers = npt.NDArray[np.float64]


class NumberCheck:
    """Keeps sixteen bytes for each row: a hash of its text and its number.

    Args:
        column: The column of numbers.
    """

    NAMES = ("conflicting-numbers", "outlying-numbers")

    def __init__(self, column: str) -> None:
        self.column = column
        self.rows: dict[str, array[int]] = {}
        self.hashes: dict[str, array[int]] = {}
        self.numbers: dict[str, array[float]] = {}

    def add(self, batch: Batch) -> None:
        """See `Check`."""
        self.rows.setdefault(batch.split, array("q")).extend(range(batch.start, batch.start + len(batch.inputs)))
        self.numbers.setdefault(batch.split, array("d")).extend(map(float, batch.raw[self.column]))
        self.hashes.setdefault(batch.split, array("Q")).extend(
            int.from_bytes(hashlib.blake2b(folded(text).encode("utf-8", "replace"), digest_size=8).digest(), "little")
            for text in batch.inputs
        )

    def findings(self) -> list[Finding]:
        """See `Check`; what is far away is judged by the training rows."""
        train = np.array(self.numbers.get("train", ()), dtype=np.float64)
        if len(train) < LEAST_ROWS:
            return []
        found = []
        for split in self.numbers:
            found += self._conflicting(split, train) + self._outlying(split, train)
        return found

    def _conflicting(self, split: str, train: Numbers) -> list[Finding]:
        numbers = np.concatenate([np.array(one) for one in self.numbers.values()])
        hashes = np.concatenate([np.array(one, dtype=np.uint64) for one in self.hashes.values()])
        _, group = np.unique(hashes, return_inverse=True)
        least, most = np.full(group.max() + 1, np.inf), np.full(group.max() + 1, -np.inf)
        np.minimum.at(least, group, numbers)
        np.maximum.at(most, group, numbers)
        clear = CLEAR * (middle_width(train) / NORMAL_WIDTH)
        start = sum(len(self.numbers[one]) for one in list(self.numbers)[: list(self.numbers).index(split)])
        own, of = group[start : start + len(self.numbers[split])], len(self.numbers[split])
        rows = np.flatnonzero((most - least)[own] > clear)
        if not len(rows) or not clear:
            return []
        return [
            Finding(
                "conflicting-numbers", "warning", split, len(rows), of,
                f"have a text that occurs with a number more than {clear:.3g} away, too",
                "Decide which number is right, or put their mean into one row: no model can learn both",
                rows=np.array(self.rows[split], dtype=np.int64)[rows],
                details=[{"label": self.numbers[split][row]} for row in rows],
            )
        ]  # fmt: skip

    def _outlying(self, split: str, train: Numbers) -> list[Finding]:
        numbers, of = np.array(self.numbers[split]), len(self.numbers[split])
        far = is_far(numbers, train)
        if train.min() > 0:  # prices and counts have long tails, which are none on the scale of their logarithm
            far &= (numbers <= 0) | is_far(np.log(np.maximum(numbers, np.finfo(float).tiny)), np.log(train))
        rows = np.flatnonzero(far)
        if not len(rows):
            return []
        shown = ", ".join(f"{value:g}" for value in sorted(set(numbers[rows].tolist()))[:5])
        low, high = np.quantile(train, (0.25, 0.75))
        return [
            Finding(
                "outlying-numbers", by_share(len(rows), of), split, len(rows), of,
                f"have a number far away from all others ({shown}; half of the training rows are from {low:g} to "
                f"{high:g})",
                "Look at them: 999 and -1 often stand for a number that is missing, and a wrong unit looks like this; "
                "a squared error is governed by them",
                rows=np.array(self.rows[split], dtype=np.int64)[rows],
                details=[{"label": float(numbers[row])} for row in rows],
            )
        ]  # fmt: skip


def middle_width(numbers: Numbers) -> float:
    """How wide the middle half is, or the middle nine tenths where half of the numbers are the same."""
    low, q1, q3, high = np.quantile(numbers, (0.05, 0.25, 0.75, 0.95))
    return float(q3 - q1) or float(high - low)


def is_far(numbers: Numbers, train: Numbers) -> npt.NDArray[np.bool_]:
    """Which numbers are five widths of the middle half outside of it, `(rows,)`; none where that has no width."""
    low, high = np.quantile(train, (0.25, 0.75))
    margin = FAR * middle_width(train)
    return np.asarray(((numbers < low - margin) | (numbers > high + margin)) & (margin > 0))
