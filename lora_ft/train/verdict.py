"""Whether a run learned anything: better than a constant answer, by more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping

CRITICAL = 1.645
"""One-sided 5 % of a standard normal."""


def learned_something(
    ours: Mapping[str, float], constant: Mapping[str, float], *, rows: int, problem_type: str
) -> bool:
    """Compares an adapter with the majority answer on the same rows.

    Accuracy alone would call a good classifier of rare classes useless, and macro F1 a coin a success. Matthews'
    correlation is 0 for every constant and, over `rows` rows, about normal with deviation `1 / sqrt(rows)` for a coin;
    so is Pearson's for a regression that guesses.

    Args:
        ours: Metrics of the adapter.
        constant: Metrics of the majority answer (of the mean, for regression).
        rows: Rows that they were measured on.
        problem_type: As in `Task.metrics`.

    Returns:
        Whether the adapter is better than a constant, at the 5 % level.

    Source:
        Fisher, Statistical Methods for Research Workers (1925), section 34; the phi coefficient's chi-squared is
        `rows * phi ** 2`.
    """
    chance = CRITICAL / math.sqrt(rows)
    if problem_type == "multi_label_classification":
        return ours["f1_micro"] > constant["f1_micro"] and ours["f1_macro"] > constant["f1_macro"]
    if problem_type == "regression":
        return ours["mse"] < constant["mse"] and ours["pearsonr"] > chance
    return ours["matthews_corrcoef"] > chance
