"""Metrics of a multi-label classifier, by scikit-learn: macro and micro F1, and F1 of each label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import multilabel_confusion_matrix

DESCRIPTION = """F1, precision and recall, as unweighted means over labels (macro) and over all
decisions (micro), and the share of rows whose labels are all right (accuracy). A label that occurs neither in
the references nor in the predictions has no part in the macro means; its own f1/<label> is 0.0. A division by
zero is 0.0."""

INPUTS = """
Args:
    predictions: A 0/1 vector for each row.
    references: A 0/1 vector for each row.
    label_names: The names of all labels in order, for f1/<label>; may be left out.
"""

CITATION = """@article{scikit-learn, title={Scikit-learn: Machine Learning in {P}ython},
author={Pedregosa, F. and others}, journal={Journal of Machine Learning Research}, volume={12},
pages={2825--2830}, year={2011}}"""


def multi_label_scores(
    predictions: Sequence[Sequence[int]],
    references: Sequence[Sequence[int]],
    *,
    label_names: Sequence[str] | None = None,
) -> dict[str, float]:
    """The metrics without the detour through evaluate's tables: for bootstrap intervals.

    Args:
        predictions: 0/1 vectors, `(rows, labels)`.
        references: 0/1 vectors, `(rows, labels)`.
        label_names: The names of all labels in order.

    Returns:
        Metric -> value.
    """
    predicted, true = np.asarray(predictions), np.asarray(references)
    matrices = multilabel_confusion_matrix(true, predicted)  # (labels, true, predicted)
    right, missed, wrong = matrices[:, 1, 1], matrices[:, 1, 0], matrices[:, 0, 1]  # (labels,)
    precision, recall, f1 = _rates(right, missed, wrong)
    occurs = (right + missed + wrong) > 0
    scores = {"accuracy": float(np.equal(predicted, true).all(axis=1).mean())}
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        scores[f"{name}_macro"] = float(values[occurs].mean()) if occurs.any() else 0.0
    for name, value in zip(("precision", "recall", "f1"), _rates(right.sum(), missed.sum(), wrong.sum()), strict=True):
        scores[f"{name}_micro"] = float(value)
    for index, name in enumerate(label_names or ()):
        scores[f"f1/{name}"] = float(f1[index])
    return scores


def _rates(right: Any, missed: Any, wrong: Any) -> tuple[Any, Any, Any]:
    """Precision, recall and F1 from counts, 0 where a rate has nothing to count."""
    return (
        right / np.maximum(right + wrong, 1),
        right / np.maximum(right + missed, 1),
        2 * right / np.maximum(2 * right + missed + wrong, 1),
    )


class MultiLabel(evaluate.Metric):  # type: ignore[misc]
    """Metrics of 0/1 vectors against 0/1 vectors."""

    def _info(self) -> evaluate.MetricInfo:
        vector = datasets.List(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": vector, "references": vector}),
            reference_urls=["https://scikit-learn.org/stable/modules/model_evaluation.html#multilabel-classification"],
        )

    def _compute(
        self, predictions: Any, references: Any, *, label_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        return multi_label_scores(predictions, references, label_names=label_names)
