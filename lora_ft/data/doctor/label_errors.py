"""Labels that are probably wrong: a simple classifier that has not seen a row is sure that it has another label.

Confident learning. Source: Northcutt, Jiang, Chuang (2021), "Confident Learning: Estimating Uncertainty in Dataset
Labels", section 3: the thresholds are equation 2, the confident joint is equation 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDS = 5
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""scikit-learn's C: few rows would be learned by heart at 0.1, many would be learned badly at 0.00001."""
MOST_TRIED = 4_000
MOST_STEPS = 300


@dataclass(frozen=True)
class Suspects:
    """Rows whose label is probably wrong, the surest first.

    Attributes:
        rows: Their positions, `(suspects,)`.
        suggested: The number of the label that each most likely has, `(suspects,)`.
        scores: How much likelier it is than the given one: a difference of probabilities, 0 to 1, `(suspects,)`.
        accuracy: Of the classifier on rows it has not seen, against the labels as given, 0 to 1.
    """

    rows: npt.NDArray[np.int64]
    suggested: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    accuracy: float


def out_of_fold(vectors: npt.NDArray[np.float32], labels: Sequence[int], *, seed: int) -> npt.NDArray[np.float64]:
    """What a logistic regression says of each row when it was fitted on four fifths of the others.

    How strongly it is held back is chosen by its loss on rows it has not seen.

    Args:
        vectors: `(rows, width)`.
        labels: Numbers of the labels as given, 0 to classes - 1, `(rows,)`; each at least five times.
        seed: Of the folds.

    Returns:
        Probabilities, `(rows, classes)`.
    """
    given = np.asarray(labels)
    few = np.random.default_rng(seed).permutation(len(given))[:MOST_TRIED]
    tried = few if len(given) > MOST_TRIED and np.bincount(given[few]).min() >= FOLDS else np.arange(len(given))
    losses = {c: log_loss(given[tried], _predicted(vectors[tried], given[tried], c=c, seed=seed)) for c in STRENGTHS}
    return _predicted(vectors, given, c=min(losses, key=losses.__getitem__), seed=seed)


def _predicted(
    vectors: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], *, c: float, seed: int
) -> npt.NDArray[np.float64]:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=MOST_STEPS))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    return np.asarray(cross_val_predict(model, vectors, labels, cv=folds, method="predict_proba"))


def suspects(probabilities: npt.NDArray[np.float64], labels: Sequence[int]) -> Suspects:
    """The off-diagonal of the confident joint.

    A row counts for the label whose probability is above that label's threshold, the mean probability of the label
    among the rows that have it; of several the likeliest. It is suspect if that is not its own.

    Args:
        probabilities: Out of fold, `(rows, classes)`.
        labels: Numbers of the labels as given, `(rows,)`.
    """
    given = np.asarray(labels, dtype=np.int64)
    classes = probabilities.shape[1]
    thresholds = np.array([probabilities[given == label, label].mean() for label in range(classes)])
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)  # (rows, classes)
    likeliest = confident.argmax(axis=1)
    rows = np.flatnonzero((confident.max(axis=1) >= 0) & (likeliest != given))
    scores = probabilities[rows, likeliest[rows]] - probabilities[rows, given[rows]]
    rows, scores = rows[scores > 0], scores[scores > 0]
    order = np.argsort(-scores, kind="stable")
    accuracy = float((probabilities.argmax(axis=1) == given).mean())
    return Suspects(rows[order], likeliest[rows[order]], scores[order], accuracy)
