"""Boxes of images: of hardly any size, twice the same, and images that have none; one outside its image is a bad row.

One row: {"bbox": [[68.0, 315.0, 218.0, 165.0]], "category": ["WBC"]}: x, y, width and height in pixels
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

from lora_ft.data.doctor.findings import Finding, Severity, by_share

LEAST_SIDE = 2.0
SAME = 0.95
"""From this overlap on (intersection over union) two boxes of one name are the same box."""


class BoxCheck:
    """Keeps the rows that have a fault."""

    NAMES = ("degenerate-boxes", "duplicate-boxes", "images-without-boxes")

    def __init__(self) -> None:
        self.faults: dict[tuple[str, str], array[int]] = {}
        self.looked: dict[str, int] = {}

    def add(self, split: str, row: int, value: Mapping[str, Any]) -> None:
        """Looks at the boxes of one row.

        Args:
            split: Its split.
            row: Its position.
            value: Its boxes and their names.
        """
        self.looked[split] = self.looked.get(split, 0) + 1
        boxes = np.array(value["bbox"], dtype=np.float64).reshape(-1, 4)  # (boxes, x y width height)
        if not len(boxes):
            self._mark("images-without-boxes", split, row)
            return
        if (boxes[:, 2:] < LEAST_SIDE).any():
            self._mark("degenerate-boxes", split, row)
        names = np.array(value["category"])
        same = (overlaps(boxes) >= SAME) & (names[:, None] == names[None, :])
        if np.triu(same, 1).any():
            self._mark("duplicate-boxes", split, row)

    def _mark(self, name: str, split: str, row: int) -> None:
        self.faults.setdefault((name, split), array("q")).append(row)

    def findings(self) -> list[Finding]:
        """What is wrong with the boxes of all rows that were looked at."""
        told = {
            "degenerate-boxes": (
                f"have a box with a side of less than {LEAST_SIDE:g} pixels",
                "Take these boxes out: most were drawn by a slip, and scaled down nothing of them is left",
            ),
            "duplicate-boxes": (
                f"have two boxes of one name that overlap to {SAME:.0%} or more",
                "Keep one of them: a model that finds the object once is told that it missed one",
            ),
            "images-without-boxes": (
                "have no box",
                "Right if there is nothing in them to find; else annotate them, or the model learns to overlook it",
            ),
        }
        found = []
        for (name, split), marked in self.faults.items():
            rows, of = np.array(marked, dtype=np.int64), self.looked[split]
            severity: Severity = "note" if name == "images-without-boxes" else by_share(len(rows), of)
            found.append(Finding(name, severity, split, len(rows), of, *told[name], rows=rows))
        return found


def overlaps(boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of all pairs, `(boxes, boxes)`, of boxes as x, y, width and height, `(boxes, 4)`."""
    starts, ends = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    low = np.maximum(starts[:, None], starts[None, :])
    high = np.minimum(ends[:, None], ends[None, :])
    inner = np.clip(high - low, 0, None).prod(axis=2)
    areas = boxes[:, 2] * boxes[:, 3]
    return np.asarray(inner / np.maximum(areas[:, None] + areas[None, :] - inner, 1e-9))
