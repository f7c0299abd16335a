"""One label, several labels or a number for a row: loss, prediction and metrics of every classification task.

A prediction: {"label": "negative", "score": 0.97, "scores": {"negative": 0.97, "positive": 0.03}}
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_ft.tasks.parts.class_loss import row_losses
from lora_ft.tasks.parts.label_names import label_fields
from lora_ft.tasks.parts.problem import Problem
from lora_ft.tasks.parts.thresholds import KEY, TUNED, known_thresholds, tuned_thresholds

if TYPE_CHECKING:
    import numpy as np
    import torch

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"

MULTI_LABEL_THRESHOLD = 0.5
CRITICAL = 1.645
"""One-sided 5 % of a standard normal."""

METRICS: Mapping[str, tuple[str, ...]] = {
    SINGLE: ("f1_macro", "accuracy", "precision_macro", "recall_macro", "matthews_corrcoef"),
    MULTI: (
        "f1_macro", "f1_micro", "precision_macro", "recall_macro", "precision_micro", "recall_micro", "accuracy",
    ),
    REGRESSION: ("pearsonr", "spearmanr", "mse", "mae", "r2"),
}  # fmt: skip


def classification_config(problem: Problem) -> dict[str, Any]:
    """The config fields that labels decide; a regression has one output."""
    if problem.problem_type == REGRESSION:
        return {"num_labels": 1, "problem_type": REGRESSION}
    return {**label_fields(problem.labels), "problem_type": problem.problem_type}


def uniform_loss(problem: Problem) -> float | None:
    """The loss of equal probabilities; None for numbers, and where the recipe's loss is not plain cross-entropy."""
    if problem.problem_type == REGRESSION or problem.loss:
        return None
    return math.log(2 if problem.problem_type == MULTI else len(problem.labels))


def encode_labels(values: Sequence[Any], problem: Problem) -> list[Any]:
    """Canonical label values as class numbers, 0/1 vectors or floats."""
    if problem.problem_type == REGRESSION:
        return [float(value) for value in values]
    index = {label: position for position, label in enumerate(problem.labels)}
    if problem.problem_type == SINGLE:
        return [index[value] for value in values]
    return [[float(label in row) for label in problem.labels] for row in values]


def label_tensor(features: Sequence[Mapping[str, Any]], problem: Problem) -> torch.Tensor:
    """The labels of some features: class numbers `(rows,)`, 0/1 `(rows, labels)` or floats `(rows,)`."""
    import torch

    dtype = torch.long if problem.problem_type == SINGLE else torch.float32
    return torch.tensor([row["labels"] for row in features], dtype=dtype)


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    problem: Problem,
    *,
    items: torch.Tensor | int | float,
    class_weight: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy, binary cross-entropy a label, or squared error: a sum divided by `items`.

    Args:
        logits: `(rows, labels)`.
        labels: As `label_tensor` makes them.
        problem: Its problem type chooses the loss, and its `loss` what that weighs; see `row_losses`.
        items: What the sum is divided by.
        class_weight: Weight of each class; for several labels a row, of each positive.
        label_smoothing: For one label a row.
    """
    import torch
    import torch.nn.functional as F  # noqa: N812

    logits = logits.float()
    if problem.problem_type == REGRESSION:
        return F.mse_loss(logits.squeeze(-1), labels, reduction="sum") / items
    weight = torch.tensor(class_weight, device=logits.device) if class_weight is not None else None
    rows = row_losses(
        logits,
        labels,
        several=problem.problem_type == MULTI,
        weight=weight,
        label_smoothing=label_smoothing,
        settings=problem.loss,
    )
    return rows.sum() / items


def decode_classes(logits: np.ndarray, problem: Problem) -> list[dict[str, Any]]:
    """Logits `(rows, labels)` -> one prediction a row; scores are softmax or sigmoid probabilities.

    The likeliest class, or each label from 0.5 on; `decided` applies other thresholds.
    """
    import numpy as np
    from scipy.special import expit, softmax

    labels = problem.labels
    values = np.asarray(logits, dtype=np.float64)
    if problem.problem_type == REGRESSION:
        return [{"value": float(value)} for value in values[:, 0]]
    if problem.problem_type == MULTI:
        return [
            {
                "labels": [label for label, p in zip(labels, row, strict=True) if p >= MULTI_LABEL_THRESHOLD],
                "scores": {label: float(p) for label, p in zip(labels, row, strict=True)},
            }
            for row in expit(values)
        ]
    return [
        {
            "label": labels[int(row.argmax())],
            "score": float(row.max()),
            "scores": {label: float(p) for label, p in zip(labels, row, strict=True)},
        }
        for row in softmax(values, axis=-1)
    ]


def decided(prediction: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    """A prediction of `decode_classes` by the thresholds in the settings, if there are any; its scores stay.

    Of two classes the one with a threshold is predicted from it on, and the other one below.
    """
    thresholds = known_thresholds(problem.settings)
    if not thresholds or problem.problem_type == REGRESSION:
        return dict(prediction)
    scores = prediction["scores"]
    if problem.problem_type == MULTI:
        chosen = [label for label, score in scores.items() if score >= thresholds.get(label, MULTI_LABEL_THRESHOLD)]
        return {**prediction, "labels": chosen}
    ((own, threshold),) = thresholds.items()
    (other,) = (label for label in problem.labels if label != own)
    label = own if scores[own] >= threshold else other
    return {**prediction, "label": label, "score": scores[label]}


def tune_thresholds(
    predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
) -> dict[str, Any]:
    """See `Task.tune`: the thresholds of labels, where the recipe wants them tuned."""
    if problem.settings.get(KEY) != TUNED:
        return {}
    several = problem.problem_type == MULTI
    return {KEY: tuned_thresholds(predictions, references, labels=problem.labels, several=several)}


def classification_scorer(
    predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
) -> Callable[[Any], dict[str, float]]:
    """Metrics of any of the rows; see `Task.scorer`. References are as `encode_labels` makes them."""
    import numpy as np

    from lora_ft.metrics.multi_label import multi_label_scores
    from lora_ft.metrics.regression import regression_scores
    from lora_ft.metrics.single_label import single_label_scores

    labels = problem.labels
    if problem.problem_type == REGRESSION:
        values, targets = np.array([prediction["value"] for prediction in predictions]), np.array(references)
        return lambda rows: regression_scores(values[rows], targets[rows])
    if problem.problem_type == MULTI:
        hot = np.array([[int(label in prediction["labels"]) for label in labels] for prediction in predictions])
        truth = np.array(references, dtype=np.int64)
        return lambda rows: multi_label_scores(hot[rows], truth[rows], label_names=labels)
    index = {label: position for position, label in enumerate(labels)}
    ids, truth = np.array([index[prediction["label"]] for prediction in predictions]), np.array(references)
    return lambda rows: single_label_scores(ids[rows], truth[rows], label_names=labels)


def majority_answer(references: Sequence[Any], problem: Problem) -> dict[str, Any]:
    """The best constant answer for the training rows: the majority class, the frequent labels, or the mean."""
    labels, count = problem.labels, len(references)
    if problem.problem_type == REGRESSION:
        return {"value": float(sum(references) / count)}
    if problem.problem_type == MULTI:
        shares = [sum(row[index] for row in references) / count for index in range(len(labels))]
        chosen = [label for label, share in zip(labels, shares, strict=True) if share >= MULTI_LABEL_THRESHOLD]
        return {"labels": chosen, "scores": dict(zip(labels, shares, strict=True))}
    counts = Counter(int(value) for value in references)
    shares = [counts[index] / count for index in range(len(labels))]
    best = max(range(len(labels)), key=shares.__getitem__)
    return {"label": labels[best], "score": shares[best], "scores": dict(zip(labels, shares, strict=True))}


def beats_majority(ours: Mapping[str, float], constant: Mapping[str, float], *, rows: int, problem_type: str) -> bool:
    """Whether an adapter is better than a constant answer, at the 5 % level.

    Accuracy alone would call a good classifier of rare classes useless, and macro F1 a coin a success. Matthews'
    correlation is 0 for every constant and, over `rows` rows, about normal with deviation `1 / sqrt(rows)` for a coin;
    so is Pearson's for a regression that guesses.

    Args:
        ours: Metrics of the adapter.
        constant: Metrics of the majority answer (of the mean, for regression).
        rows: Rows that they were measured on.
        problem_type: As in `Task.metrics`.

    Source:
        Fisher, Statistical Methods for Research Workers (1925), section 34; the phi coefficient's chi-squared is
        `rows * phi ** 2`.
    """
    chance = CRITICAL / math.sqrt(rows)
    if problem_type == MULTI:
        return ours["f1_micro"] > constant["f1_micro"] and ours["f1_macro"] > constant["f1_macro"]
    if problem_type == REGRESSION:
        return ours["mse"] < constant["mse"] and ours["pearsonr"] > chance
    return ours["matthews_corrcoef"] > chance
