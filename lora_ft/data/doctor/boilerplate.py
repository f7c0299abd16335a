"""The same long sentence or line in many rows: signatures, disclaimers, headings, what a crawler left.

One row: "Great pan. This review was collected as part of a promotion."
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from lora_ft.data.doctor.findings import Finding, by_share
from lora_ft.data.doctor.stream import Batch

PARTS = re.compile(r"\n+|(?<=[.!?。！？])\s+|(?<=[。！？])")
LEAST_CHARACTERS = 25
LEAST_ROWS = 8
LEAST_SHARE = 0.005
MOST_KEPT = 1_000_000
MOST_SHOWN = 5


def parts_of(text: str) -> set[str]:
    """The long sentences and lines of a text that has more than one, folded."""
    parts = {part.strip().casefold() for part in PARTS.split(text) if len(part) >= LEAST_CHARACTERS}
    return parts if len(text) > max(map(len, parts), default=0) + 1 else set()


class BoilerplateCheck:
    """Counts hashes of sentences; of more than a million, those seen once are forgotten (Manku and Motwani 2002).

    Args:
        again: Reads all rows once more; only asked if a sentence occurs in many rows.
        distinct: A split -> positions of its rows that are no exact duplicates; a duplicate repeats all its sentences.
    """

    NAMES = ("boilerplate",)

    def __init__(self, again: Callable[[], Iterable[Batch]], distinct: Callable[[str], set[int]]) -> None:
        self.again = again
        self.distinct = distinct
        self.counts: Counter[int] = Counter()
        self.looked: dict[str, int] = {}

    def add(self, batch: Batch) -> None:
        """See `Check`."""
        self.looked[batch.split] = self.looked.get(batch.split, 0) + len(batch.inputs)
        for text in batch.inputs:
            self.counts.update(map(hash, parts_of(text)))
        if len(self.counts) > MOST_KEPT:
            self.counts = Counter({part: count for part, count in self.counts.items() if count > 1})

    def findings(self) -> list[Finding]:
        """See `Check`; a split is told of the sentences that are in many of its own rows."""
        least = max(LEAST_ROWS, LEAST_SHARE * min(self.looked.values(), default=0))
        often = {part for part, count in self.counts.items() if count >= least}
        if not often:
            return []
        rows: dict[str, dict[str, array[int]]] = {}
        distinct = {split: self.distinct(split) for split in self.looked}
        for split, row, part in self._places(often):
            if row in distinct[split]:
                rows.setdefault(split, {}).setdefault(part, array("q")).append(row)
        return [finding for split, parts in rows.items() for finding in self._told(split, parts)]

    def _places(self, often: set[int]) -> Iterator[tuple[str, int, str]]:
        for batch in self.again():
            for at, text in enumerate(batch.inputs):
                for part in parts_of(text):
                    if hash(part) in often:
                        yield batch.split, batch.start + at, part

    def _told(self, split: str, parts: dict[str, array[int]]) -> list[Finding]:
        """One finding of all sentences that are in many rows of a split."""
        of = self.looked[split]
        found = {part: rows for part, rows in parts.items() if len(rows) >= max(LEAST_ROWS, LEAST_SHARE * of)}
        if not found:
            return []
        rows = np.unique(np.concatenate([np.array(one, dtype=np.int64) for one in found.values()]))
        most = sorted(found, key=lambda part: -len(found[part]))
        shown = "; ".join(f"{part[:80]!r} in {len(found[part])}" for part in most[:MOST_SHOWN])
        more = f"; {len(most) - MOST_SHOWN} more" if len(most) > MOST_SHOWN else ""
        return [
            Finding(
                "boilerplate", by_share(len(rows), of), split, len(rows), of,
                f"share a long sentence with many others ({shown}{more})",
                "Take the sentence out of the texts: it fills `processor.max_length`, and where it goes with a label "
                "the model learns it instead",
                rows=rows,
            )
        ]  # fmt: skip
