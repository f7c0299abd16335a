"""Transcripts that do not fit their sounds: far more or far fewer characters a second than the others.

One row: a sound of 0.4 seconds with the text "seven" has 12.5 characters a second.
"""

from __future__ import annotations

from array import array

import numpy as np

from lora_ft.data.doctor.findings import Finding, by_share

LEAST_ROWS = 20
LEAST_TIMES = 3.0
SPREADS = 6.0
"""Widths of the middle half, on the scale of logarithms, from the median: 8 standard deviations of normal ones."""


class TranscriptCheck:
    """Keeps sixteen bytes for each sound: its row and its characters a second."""

    NAMES = ("odd-transcripts",)

    def __init__(self) -> None:
        self.rows: dict[str, array[int]] = {}
        self.rates: dict[str, array[float]] = {}

    def add(self, split: str, row: int, text: str, *, seconds: float) -> None:
        """Looks at one transcript and how long its sound is, in seconds."""
        if text.strip() and seconds > 0:
            self.rows.setdefault(split, array("q")).append(row)
            self.rates.setdefault(split, array("d")).append(len(text.strip()) / seconds)

    def findings(self) -> list[Finding]:
        """What is far away from the median of the training rows."""
        train = np.log(np.array(self.rates.get("train", ()), dtype=np.float64))
        if len(train) < LEAST_ROWS:
            return []
        low, median, high = np.quantile(train, (0.25, 0.5, 0.75))
        margin = max(np.log(LEAST_TIMES), SPREADS * (high - low))
        found = []
        for split, rates in self.rates.items():
            far, of = np.abs(np.log(np.array(rates)) - median) > margin, len(rates)
            rows = np.array(self.rows[split], dtype=np.int64)[far]
            if len(rows):
                found.append(
                    Finding(
                        "odd-transcripts", by_share(len(rows), of), split, len(rows), of,
                        f"have over {np.exp(margin):.1f} times more or fewer characters a second than usual "
                        f"({np.exp(median):.1f})",
                        "Listen to them: the transcript of another sound, a cut sound or a cut text looks like this",
                        rows=rows, details=[{"characters_a_second": round(rate, 2)} for rate in np.array(rates)[far]],
                    )
                )  # fmt: skip
        return found
