"""Metrics of a single-label classifier, by scikit-learn: accuracy, macro F1, MCC, and F1 of each label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix

DESCRIPTION = """Accuracy, F1, precision and recall as unweighted means over labels, and Matthews'
correlation. A label that occurs neither in the references nor in the predictions has no part in the means
(scikit-learn's default); its own f1/<label> is 0.0. A division by zero is 0.0."""

INPUTS = """
Args:
    predictions: Class numbers.
    references: Class numbers.
    label_names: The names of all classes in order, for f1/<label>; may be left out.
"""

CITATION = """@article{scikit-learn, title={Scikit-learn: Machine Learning in {P}ython},
author={Pedregosa, F. and others}, journal={Journal of Machine Learning Research}, volume={12},
pages={2825--2830}, year={2011}}"""


def single_label_scores(
    predictions: Sequence[int], references: Sequence[int], *, label_names: Sequence[str] | None = None
) -> dict[str, float]:
    """The metrics without the detour through evaluate's tables: for bootstrap intervals.

    Args:
        predictions: Class numbers, `(rows,)`.
        references: Class numbers, `(rows,)`.
        label_names: The names of all classes in order.

    Returns:
        Metric -> value.
    """
    seen = np.union1d(predictions, references)
    # a second class that never occurs keeps scikit-learn from warning of a single one
    classes = seen if len(seen) > 1 else np.append(seen, seen[-1] + 1)
    matrix = confusion_matrix(references, predictions, labels=classes)  # (true, predicted)
    matrix = matrix[: len(seen), : len(seen)]
    right, true, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    f1 = 2 * right / (true + predicted)  # a class of `seen` occurs on one side at least
    scores = {
        "accuracy": float(right.sum() / matrix.sum()),
        "f1_macro": float(f1.mean()),
        "precision_macro": float((right / np.maximum(predicted, 1)).mean()),
        "recall_macro": float((right / np.maximum(true, 1)).mean()),
        "matthews_corrcoef": _matthews(matrix),
    }
    by_class = dict(zip(seen.tolist(), f1.tolist(), strict=True))
    for index, name in enumerate(label_names or ()):
        scores[f"f1/{name}"] = float(by_class.get(index, 0.0))
    return scores


def label_ranks(ranked: Sequence[Sequence[Any]], references: Sequence[Any]) -> npt.NDArray[np.int64]:
    """At which place each row's true label is named: 0 is the best, a label that is not named is beyond every place.

    Args:
        ranked: For each row labels (or class numbers), the likeliest first.
        references: The true label of each row.

    Returns:
        Places, `(rows,)`.
    """
    places = [
        list(labels).index(true) if true in labels else np.iinfo(np.int64).max
        for labels, true in zip(ranked, references, strict=True)
    ]
    return np.asarray(places, dtype=np.int64)


def top_k_accuracy(ranks: npt.NDArray[np.int64], k: int) -> float:
    """The share of rows whose true label is among the `k` likeliest; 0.0 without rows.

    Args:
        ranks: As `label_ranks` gives them, of all rows or of drawn ones (`ranks[rows]`).
        k: How many labels a row may name, 5 for top-5 accuracy.
    """
    return float((ranks < k).mean()) if len(ranks) else 0.0


def _matthews(matrix: npt.NDArray[np.int64]) -> float:
    """Matthews' correlation for any number of classes, 0.0 where one side is constant.

    Source: Gorodkin, J., Comparing two K-category assignments by a K-category correlation coefficient, 2004,
    equation 8.
    """
    true, predicted = matrix.sum(axis=1, dtype=np.float64), matrix.sum(axis=0, dtype=np.float64)
    rows = true.sum()
    spread = (rows**2 - predicted @ predicted) * (rows**2 - true @ true)
    return float((np.trace(matrix) * rows - true @ predicted) / np.sqrt(spread)) if spread > 0 else 0.0


class SingleLabel(evaluate.Metric):  # type: ignore[misc]
    """Metrics of class numbers against class numbers."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
            reference_urls=["https://scikit-learn.org/stable/modules/model_evaluation.html#classification-metrics"],
        )

    def _compute(
        self, predictions: Any, references: Any, *, label_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        return single_label_scores(predictions, references, label_names=label_names)
