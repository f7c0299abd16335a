"""Texts that questions are asked about, in several splits: training has read what validation asks about.

One row: {"question": "How many points did the Panthers give up?", "context": "The Panthers gave up just 308 points."}
"""

from __future__ import annotations

import hashlib
from array import array

import numpy as np

from lora_ft.data.doctor.duplicates import folded
from lora_ft.data.doctor.findings import Finding
from lora_ft.data.doctor.stream import Batch


class ContextCheck:
    """Keeps eight bytes for each row: a hash of its context.

    Args:
        column: The column of texts that questions are about.
    """

    NAMES = ("context-leakage",)

    def __init__(self, column: str) -> None:
        self.column = column
        self.hashes: dict[str, array[int]] = {}
        self.rows: dict[str, array[int]] = {}

    def add(self, batch: Batch) -> None:
        """See `Check`."""
        texts = batch.texts[self.column]
        self.rows.setdefault(batch.split, array("q")).extend(range(batch.start, batch.start + len(texts)))
        self.hashes.setdefault(batch.split, array("Q")).extend(
            int.from_bytes(hashlib.blake2b(folded(text).encode("utf-8", "replace"), digest_size=8).digest(), "little")
            for text in texts
        )

    def findings(self) -> list[Finding]:
        """See `Check`."""
        found: list[Finding] = []
        first: dict[int, tuple[str, int]] = {}
        for split, hashes in self.hashes.items():
            positions, own = self.rows[split], dict[int, tuple[str, int]]()
            leaked, others = [], []
            for row, text in zip(positions, hashes, strict=True):
                if text in first:
                    leaked.append(row)
                    others.append(first[text])
                else:
                    own.setdefault(text, (split, row))
            first.update(own)
            if leaked:
                contexts = len(set(others))
                found.append(
                    Finding(
                        "context-leakage", "warning", split, len(leaked), len(hashes),
                        f"ask about a text that questions of an earlier split are about, too ({contexts} texts)",
                        "Split by text and not by question (`dataset.group`: the column of the texts): a model that "
                        f"has learned the text answers them better, and the metrics on {split} look too good",
                        rows=np.array(leaked, dtype=np.int64), others=others,
                    )
                )  # fmt: skip
        return found
