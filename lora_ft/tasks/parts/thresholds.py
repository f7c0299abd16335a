"""From which score on a label is predicted: given, or chosen on validation rows so that a rare label has the best F1.

In the settings of an adapter: {"thresholds": {"urgent": 0.31}}; of two classes one has a threshold, of several labels
a row each.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

logger = logging.getLogger(__name__)

KEY = "thresholds"
TUNED = "tuned"
"""What the settings hold in the place of thresholds until training is over."""

DEFAULT = 0.5
LEAST_ROWS = 10
"""Rows with a label, and without it, that a threshold of its own is chosen on at least; fewer would be chance."""


class Cut(NamedTuple):
    """A threshold and what it is worth.

    Attributes:
        value: The threshold.
        score: F1 with it, on the rows that it was chosen on.
        default: F1 with 0.5.
    """

    value: float
    score: float
    default: float


def known_thresholds(settings: Mapping[str, Any]) -> Mapping[str, float]:
    """Label -> threshold; none where the likeliest class, or 0.5, decides, or as long as they are not tuned."""
    found = settings.get(KEY, {})
    return {} if found == TUNED else found


def tuned_thresholds(
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Any],
    *,
    labels: Sequence[str],
    several: bool,
) -> dict[str, float]:
    """Chooses thresholds on rows that were not learned.

    Of two classes the rarer one gets the threshold with the best macro F1. Where a row may have several labels, each
    gets the one with its own best F1; labels that too few rows have share the one with the best F1 of them all.

    Args:
        predictions: With the scores of all labels.
        references: Class numbers, or 0/1 vectors where `several`.
        labels: All labels in order; two unless `several`.
        several: Whether a row may have several labels.

    Returns:
        Label -> threshold.
    """
    import numpy as np

    if not several:
        truth = np.asarray(references, dtype=np.int64)
        rare = int(np.bincount(truth, minlength=2).argmin())
        scores = np.array([one["scores"][labels[rare]] for one in predictions])
        return {labels[rare]: _chosen(labels[rare], scores, truth == rare, both=True)}
    hot = np.asarray(references, dtype=np.float64) > 0  # (rows, labels)
    scores = np.array([[one["scores"][label] for label in labels] for one in predictions])
    enough = np.minimum(hot.sum(axis=0), (~hot).sum(axis=0)) >= LEAST_ROWS
    shared = DEFAULT if enough.all() else _chosen("all labels", scores.ravel(), hot.ravel(), both=False)
    return {
        label: _chosen(label, scores[:, at], hot[:, at], both=False) if enough[at] else shared
        for at, label in enumerate(labels)
    }


def best_cut(scores: npt.ArrayLike, positive: npt.ArrayLike, *, both: bool) -> Cut:
    """The threshold with the best F1: the middle of the widest stretch of scores in which it is the best.

    Args:
        scores: Probabilities of the label, `(rows,)`; from the threshold on it is predicted.
        positive: Whether a row has the label, `(rows,)`.
        both: Whether the mean of F1 of the label and F1 of its absence counts (macro F1 of two classes).

    Returns:
        The cut; 0.5 unless another one is better.
    """
    import numpy as np

    score, has = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    order = np.argsort(score, kind="stable")
    ends = np.unique(score)  # a row is predicted or not with all that have its score
    last = max(1.0, np.nextafter(ends[-1], 2.0))
    edges = np.concatenate([[0.0], ends, [last]])  # every threshold in (edges[i], edges[i + 1]] predicts the same rows
    below = np.append(np.searchsorted(score[order], ends), len(score))  # rows that are not predicted in stretch i
    worth = _f1(below, np.append(0, np.cumsum(has[order])), both=both)
    default = float(worth[np.searchsorted(ends, DEFAULT)])
    best = float(worth.max())
    if best <= default + 1e-12:
        return Cut(DEFAULT, default, default)
    stretches: list[tuple[float, float]] = []
    for at in np.flatnonzero(worth >= best - 1e-12):
        low, high = float(edges[at]), float(edges[at + 1])
        if stretches and stretches[-1][1] == low:
            stretches[-1] = (stretches[-1][0], high)
        else:
            stretches.append((low, high))
    low, high = max(stretches, key=lambda one: one[1] - one[0])
    middle = (low + high) / 2
    return Cut(middle if low < middle else high, best, default)


def _f1(below: npt.NDArray[np.int64], had: npt.NDArray[np.int64], *, both: bool) -> npt.NDArray[np.float64]:
    """F1 of a label, or the mean of it and F1 of its absence; 0 where a part has nothing to count.

    Args:
        below: How many rows, by rising score, are not predicted; one number for each cut.
        had: How many of the first n rows by rising score have the label, for n from 0 on.
        both: Whether the absence counts as well.
    """
    import numpy as np

    rows, positives = len(had) - 1, had[-1]
    right = positives - had[below]
    wrong = had[below] + (rows - below - right)
    found = 2 * right / np.maximum(2 * right + wrong, 1)
    if not both:
        return np.asarray(found)
    absent = below - had[below]
    return np.asarray((found + 2 * absent / np.maximum(2 * absent + wrong, 1)) / 2)


def _chosen(name: str, scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_], *, both: bool) -> float:
    """The best threshold of a label, and a line in the log about it; 0.5 where too few rows could tell."""
    count, rows = int(positive.sum()), len(positive)
    if min(count, rows - count) < LEAST_ROWS:
        logger.warning(
            "decision.threshold: %d of %d validation rows have %s, at least %d must have it and not have it to choose "
            "its threshold: it stays at %.1f",
            count, rows, name, LEAST_ROWS, DEFAULT,
        )  # fmt: skip
        return DEFAULT
    cut = best_cut(scores, positive, both=both)
    logger.info(
        "threshold of %s: %.4f, chosen on %d validation rows that have it of %d: %s %.4f, with %.1f %.4f; these rows "
        "flatter it, a test split does not",
        name, cut.value, count, rows, "macro F1" if both else "F1", cut.score, DEFAULT, cut.default,
    )  # fmt: skip
    return cut.value
