"""What a model that learned nothing would answer: the majority class of the training rows, or their mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any


def majority_answer(references: Sequence[Any], *, labels: Sequence[str], problem_type: str) -> dict[str, Any]:
    """The best constant answer for the training rows.

    Args:
        references: Encoded labels of the training rows: class numbers, 0/1 vectors or floats.
        labels: All labels in order.
        problem_type: As in `Task.metrics`.

    Returns:
        A prediction as `Task.decode` makes them.
    """
    if problem_type == "regression":
        return {"value": float(sum(references) / len(references))}
    if problem_type == "multi_label_classification":
        shares = [sum(row[index] for row in references) / len(references) for index in range(len(labels))]
        chosen = [label for label, share in zip(labels, shares, strict=True) if share >= 0.5]
        return {"labels": chosen, "scores": dict(zip(labels, shares, strict=True))}
    counts = Counter(int(value) for value in references)
    shares = [counts[index] / len(references) for index in range(len(labels))]
    best = max(range(len(labels)), key=shares.__getitem__)
    return {
        "label": labels[best],
        "score": shares[best],
        "scores": dict(zip(labels, shares, strict=True)),
    }
