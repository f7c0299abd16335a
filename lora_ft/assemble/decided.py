"""What a recipe says of classes, against the labels that the rows turned out to have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import datasets

from lora_ft.assemble.encode import references_of
from lora_ft.errors import RecipeError, closest
from lora_ft.recipe.schema import Recipe
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.problem import Problem
from lora_ft.tasks.parts.thresholds import KEY, TUNED

SINGLE = "single_label_classification"
REGRESSION = "regression"


def class_faults(recipe: Recipe, *, problem_type: str, labels: Sequence[str]) -> list[str]:
    """What the recipe asks of classes and these labels do not have.

    The recipe's own rules say the same where the recipe names problem type and labels.

    Args:
        recipe: The recipe.
        problem_type: Of the rows.
        labels: All labels in order.
    """
    threshold = recipe.decision.threshold
    if problem_type == REGRESSION:
        asked = {
            "loss.class_weight": recipe.loss.class_weight,
            "loss.focal_gamma": recipe.loss.focal_gamma,
            "loss.logit_adjustment": recipe.loss.logit_adjustment,
            "balancing.strategy": recipe.balancing.strategy,
            "decision.threshold": threshold,
        }
        return [
            f"{key}: the labels are numbers, there are no classes to weigh. Leave it out"
            for key, value in asked.items()
            if value is not None
        ]
    weights = recipe.loss.class_weight
    faults = [
        f"loss.class_weight: {name!r} is no label.{closest(name, labels)} The labels are: {', '.join(labels)}"
        for name in (weights if isinstance(weights, Mapping) else ())
        if name not in labels
    ]
    if threshold is not None and problem_type == SINGLE and len(labels) != 2:
        faults.append(
            f"decision.threshold: a threshold parts two classes, or each label of rows with several, and there are "
            f"{len(labels)} classes of which a row has one ({', '.join(labels[:8])}). Leave it out; "
            "loss.logit_adjustment: 1.0 helps rare ones"
        )
    elif isinstance(threshold, Mapping):
        faults += [
            f"decision.threshold: {name!r} is no label.{closest(name, labels)} The labels are: {', '.join(labels)}"
            for name in threshold
            if name not in labels
        ]
        if problem_type == SINGLE and len(threshold) > 1:
            faults.append(
                "decision.threshold: of two classes one has a threshold, the other is predicted below it. Name one"
            )
    return faults


def with_thresholds(recipe: Recipe, task: Task, problem: Problem, rows: Mapping[str, datasets.Dataset]) -> Problem:
    """The problem with what the recipe says of thresholds among its settings, which are saved with the adapter.

    Args:
        recipe: The recipe, without `class_faults`.
        task: Its task.
        problem: What it is about.
        rows: The rows of each split; of two classes a plain number is the threshold of the rarer one in training.

    Raises:
        RecipeError: A threshold is to be tuned on validation rows, and there are none.
    """
    asked = recipe.decision.threshold
    if asked is None:
        return problem
    if asked == TUNED:
        if "validation" not in rows:
            raise RecipeError(
                [
                    f"{recipe.file}: decision.threshold: the data has no validation split to tune it on, only "
                    f"{', '.join(rows)}. Add dataset.validation: 0.1, or give a number"
                ]
            )
        return replace(problem, settings={**problem.settings, KEY: TUNED})
    if isinstance(asked, Mapping):
        found = {name: float(value) for name, value in asked.items()}
    elif problem.problem_type == SINGLE:
        counts = Counter(references_of(rows["train"], task=task, problem=problem))
        rare = min(range(len(problem.labels)), key=lambda index: counts[index])
        found = {problem.labels[rare]: float(asked)}
    else:
        found = dict.fromkeys(problem.labels, float(asked))
    return replace(problem, settings={**problem.settings, KEY: found})
