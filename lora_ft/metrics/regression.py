"""Metrics of a regression, by scipy and scikit-learn: Pearson's and Spearman's correlation, errors, R2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

DESCRIPTION = """Pearson's and Spearman's correlation, mean squared and mean absolute error, and R2. A
correlation is undefined where predictions or references are constant, and R2 where references are: it is 0.0
there, never nan."""

INPUTS = """
Args:
    predictions: Numbers.
    references: Numbers.
"""

CITATION = """@article{scipy, title={{SciPy} 1.0: Fundamental Algorithms for Scientific Computing in Python},
author={Virtanen, Pauli and others}, journal={Nature Methods}, volume={17}, pages={261--272}, year={2020}}"""


def regression_scores(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """The metrics without the detour through evaluate's tables: for bootstrap intervals.

    Args:
        predictions: Numbers, `(rows,)`.
        references: Numbers, `(rows,)`.

    Returns:
        Metric -> value.
    """
    predicted = np.asarray(predictions, dtype=np.float64)
    true = np.asarray(references, dtype=np.float64)
    varied = len(true) > 1 and _varies(predicted) and _varies(true)
    return {
        "pearsonr": float(pearsonr(true, predicted).statistic) if varied else 0.0,
        "spearmanr": float(spearmanr(true, predicted).statistic) if varied else 0.0,
        "mse": float(mean_squared_error(true, predicted)),
        "mae": float(mean_absolute_error(true, predicted)),
        "r2": float(r2_score(true, predicted)) if _varies(true) else 0.0,
    }


def _varies(values: np.ndarray[Any, Any]) -> bool:
    """Whether numbers differ by more than rounding, relative to their size."""
    return bool(np.ptp(values) > 1e-12 * np.abs(values).max())


class Regression(evaluate.Metric):  # type: ignore[misc]
    """Metrics of numbers against numbers."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
            reference_urls=["https://docs.scipy.org/doc/scipy/reference/stats.html#correlation-tests"],
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return regression_scores(predictions, references)
