"""Class weights for the loss: scikit-learn's `balanced`, or as given in the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

from lora_ft.errors import RecipeError, closest


def class_weights(
    given: Literal["balanced"] | Mapping[str, float] | None,
    references: Sequence[Any],
    *,
    labels: Sequence[str],
    problem_type: str,
) -> list[float] | None:
    """One weight a label, in the order of the labels.

    Args:
        given: The recipe's `loss.class_weight`; labels that are not named get 1.0.
        references: Encoded labels of the training rows.
        labels: All labels in order.
        problem_type: As in `Task.metrics`.

    Returns:
        Weights for the classes; for multi-label the weight of each positive (negatives / positives when balanced);
        None when nothing is weighed.

    Raises:
        RecipeError: A name that is no label.

    Source:
        King and Zeng, Logistic Regression in Rare Events Data (2001): n / (classes * n_c), as in scikit-learn.
    """
    if given is None:
        return None
    if given != "balanced":
        unknown = [name for name in given if name not in labels]
        if unknown:
            raise RecipeError(
                [
                    f"loss.class_weight: {unknown[0]!r} is no label.{closest(unknown[0], labels)} "
                    f"The labels are: {', '.join(labels)}"
                ]
            )
        return [float(given.get(label, 1.0)) for label in labels]
    if problem_type == "multi_label_classification":
        positives = np.asarray(references).sum(axis=0)
        return [float(value) for value in (len(references) - positives) / np.maximum(positives, 1)]
    present = sorted(set(references))
    computed = compute_class_weight("balanced", classes=np.asarray(present), y=np.asarray(references))
    weights = dict(zip(present, computed, strict=True))
    return [float(weights.get(index, 1.0)) for index in range(len(labels))]
