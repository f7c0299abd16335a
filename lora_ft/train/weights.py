"""How a run makes up for unequal classes: weights in the loss, a focal loss, adjusted logits, which rows it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lora_ft.assemble.encode import references_of
from lora_ft.assemble.prepare import Prepared
from lora_ft.data.balancing import NO_LABEL, ClassDraw, class_groups
from lora_ft.errors import RecipeError, closest
from lora_ft.tasks.parts.class_loss import logit_offsets
from lora_ft.tasks.parts.problem import Problem

MULTI = "multi_label_classification"


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
    if problem_type == MULTI:
        positives = np.asarray(references).sum(axis=0)
        return [float(value) for value in (len(references) - positives) / np.maximum(positives, 1)]
    from sklearn.utils.class_weight import compute_class_weight  # here: scikit-learn takes 40 MB

    present = sorted(set(references))
    computed = compute_class_weight("balanced", classes=np.asarray(present), y=np.asarray(references))
    weights = dict(zip(present, computed, strict=True))
    return [float(weights.get(index, 1.0)) for index in range(len(labels))]


def training_loss(prepared: Prepared) -> dict[str, Any]:
    """What `Problem.loss` has beside the rest while a run trains; losses that are measured do without it.

    Args:
        prepared: The training rows as they are, before any is drawn more often than others.

    Returns:
        `focal_gamma` and `logit_offsets`, as far as the recipe asks for them.
    """
    asked = prepared.recipe.loss
    found: dict[str, Any] = {}
    if asked.focal_gamma:
        found["focal_gamma"] = asked.focal_gamma
    if asked.logit_adjustment:
        found["logit_offsets"] = logit_offsets(
            references_of(prepared.rows["train"], task=prepared.task, problem=prepared.problem),
            labels=len(prepared.problem.labels),
            several=prepared.problem.problem_type == MULTI,
            tau=asked.logit_adjustment,
        )
    return found


def class_draw(prepared: Prepared, *, seed: int) -> ClassDraw | None:
    """Which training features each epoch draws; None where each comes once.

    Args:
        prepared: Rows, features and recipe of the run.
        seed: Seed of the draw.
    """
    asked = prepared.recipe.balancing
    if asked.strategy is None:
        return None
    references = references_of(prepared.rows["train"], task=prepared.task, problem=prepared.problem)
    groups = class_groups(references, several=prepared.problem.problem_type == MULTI)
    features = groups[np.asarray(prepared.features["train"]["row"][:], dtype=np.int64)]
    return ClassDraw(features, strategy=asked.strategy, ratio=asked.ratio, seed=seed)


def draw_line(draw: ClassDraw, *, labels: Sequence[str]) -> str:
    """What an epoch draws of each class, for the log.

    Args:
        draw: The draw.
        labels: All labels in order.
    """
    counts = draw.counts()
    told = [f"{_named(name, labels)} {drawn} of {own}" for name, (own, drawn) in counts.items()]
    return f"balancing ({draw.strategy}): an epoch draws {len(draw)} rows: " + ", ".join(told)


def rows_of_an_epoch(prepared: Prepared) -> int:
    """Features that an epoch draws."""
    draw = class_draw(prepared, seed=0)
    return len(prepared.features["train"]) if draw is None else len(draw)


def made_up_for(problem: Problem, *, class_weight: Sequence[float] | None, draw: ClassDraw | None) -> dict[str, Any]:
    """How a run made up for unequal classes, for the manifest; empty where it did nothing.

    Args:
        problem: As the run trains on it, with `training_loss` in its loss.
        class_weight: One weight a label, or None.
        draw: What an epoch draws, or None.
    """
    found = {name: problem.loss[name] for name in ("focal_gamma", "logit_offsets") if name in problem.loss}
    if class_weight is not None:
        found["class_weight"] = list(class_weight)
    if draw is not None:
        found["drawn"] = {_named(name, problem.labels): list(counts) for name, counts in draw.counts().items()}
    return found


def _named(group: int, labels: Sequence[str]) -> str:
    return "no label" if group == NO_LABEL else labels[group]
