"""A few rows for each metric, as its `compute` takes them: what every file of the room is tried with."""

from __future__ import annotations

from typing import Any

SPAN = {"start": 0, "end": 2, "label": "PER"}
BOX = {"boxes": [[1.0, 2.0, 30.0, 40.0]], "labels": ["cat"]}
ROWS: dict[str, dict[str, Any]] = {
    "detection": {
        "predictions": [BOX | {"scores": [0.9]}, {"boxes": [], "scores": [], "labels": []}],
        "references": [BOX, BOX],
    },
    "entities": {"predictions": [[SPAN], []], "references": [[SPAN], [SPAN | {"label": "LOC"}]]},
    "extractive_answers": {"predictions": ["Denver", ""], "references": [["Denver Broncos"], []]},
    "generated_text": {"predictions": ["a cat sat", "x"], "references": ["a cat sat", "y"]},
    "language_model": {"loss_sum": [2.0, 1.0], "tokens": [2, 1], "correct": [1, 1]},
    "multi_label": {"predictions": [[0, 1], [1, 0]], "references": [[0, 1], [1, 0]]},
    "preferences": {"chosen": [1.0, 0.0], "rejected": [0.5, 2.0]},
    "regression": {"predictions": [0.0, 1.0], "references": [0.0, 1.0]},
    "single_label": {"predictions": [0, 1], "references": [0, 1]},
    "transcripts": {"predictions": ["a cat", ""], "references": ["a cat sat", "no"]},
}
NEEDS = {"transcripts": "jiwer", "detection": "faster_coco_eval"}
"""Metrics of an extra -> the module without which they cannot be tried."""
