"""A recipe while it is checked: the values that are right so far, and where each was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_ft.recipe.column_sets import possible_sets
from lora_ft.recipe.faults import Document, KeyPath
from lora_ft.recipe.schema import Column, TaskFacts

MULTI = "multi_label_classification"
REGRESSION = "regression"


@dataclass
class Draft:
    """The values that passed the check of their types, with our defaults; a value with a fault is absent.

    Rules read a draft. They can rely on types and must not rely on presence.

    Attributes:
        document: What was written, with places.
        folder: The folder of the recipe; relative paths start here.
        task: The task, or None while it is unknown.
        values: Section -> key -> value; `task` and `offline` on top.
    """

    document: Document
    folder: Path
    task: TaskFacts | None = None
    values: dict[str, Any] = field(default_factory=dict)

    def value(self, *path: str, default: Any = None) -> Any:
        """A value that is right so far, or the default."""
        value: Any = self.values
        for step in path:
            if not isinstance(value, dict) or step not in value:
                return default
            value = value[step]
        return value

    def section(self, name: str) -> dict[str, Any]:
        """The right values of a section; empty if it is absent."""
        section = self.values.get(name)
        return section if isinstance(section, dict) else {}

    def given(self, *path: str) -> bool:
        """Whether the user wrote a key with a value, right or wrong."""
        written, value = self.document.find(path)
        return written and value is not None

    def wrong(self, *path: str) -> bool:
        """Whether the user wrote a value that did not pass its check."""
        return self.given(*path) and self.value(*path) is None

    def number(self, *path: str, default: float = 0.0) -> float:
        """A number, or the default where it is absent."""
        value = self.value(*path)
        return default if value is None else float(value)


def problem_type(draft: Draft) -> str | None:
    """The problem type as far as the recipe says it.

    By name, by labels that come several at a time, by the columns that it names, or because the task has only one.
    """
    if draft.task is None:
        return None
    known = tuple(draft.task.metrics)
    given = draft.value("model", "problem_type")
    if given in known:
        return str(given)
    if several_labels(draft):
        return MULTI if MULTI in known else None
    sets = sets_of(draft)
    if len(sets) == 1 and draft.task.column_sets:
        return next(iter(sets))
    return known[0] if len(known) == 1 else None


def sets_of(draft: Draft) -> dict[str, tuple[str, ...]]:
    """The sets of columns that the rows may have; see `possible_sets`."""
    if draft.task is None:
        return {}
    return possible_sets(
        draft.task.columns,
        draft.task.column_sets,
        mapped=draft.section("dataset").get("columns", {}),
        problem_type=draft.value("model", "problem_type"),
    )


def reads_media(task: TaskFacts) -> bool:
    """Whether a task reads images or sounds."""
    return any(column.kind in ("image", "audio") for column in task.columns)


def several_labels(draft: Draft) -> KeyPath | None:
    """The key that says that a row has several labels; None if nothing does."""
    if draft.value("dataset", "label_delimiter") and label_columns(draft):
        return ("dataset", "label_delimiter")
    for column in label_columns(draft):
        if isinstance(draft.value("dataset", "columns", column.name), tuple):
            return ("dataset", "columns", column.name)
    return None


def label_columns(draft: Draft) -> tuple[Column, ...]:
    """The label columns of the task."""
    return tuple(column for column in draft.task.columns if column.kind == "label") if draft.task else ()


def has_split(draft: Draft, split: str) -> bool | None:
    """Whether the rows have a split: by files, by a split expression, or by a share of the training rows.

    Args:
        draft: The recipe.
        split: `validation` or `test`.

    Returns:
        Yes, no, or None where only the source knows (a `path` without `split`, or a value with a fault).
    """
    if (
        draft.given("dataset", split)
        or draft.given("dataset", "data_files", split)
        or draft.given("dataset", "split", split)
    ):
        return True
    if draft.wrong("dataset", "data_files") or draft.wrong("dataset", "split") or draft.wrong("dataset"):
        return None
    if draft.value("dataset", "path") is not None and not draft.section("dataset").get("split"):
        return None
    return False if draft.section("dataset") else None


def metric_name(draft: Draft) -> str | None:
    """`metric_for_best_model` without the `eval_` that transformers puts before it."""
    name = draft.value("training_args", "metric_for_best_model")
    return None if name is None else str(name).removeprefix("eval_")


def greater_is_better(task: TaskFacts, metric: str) -> bool:
    """Whether a metric improves upwards."""
    return metric != "loss" and metric.partition("/")[0] not in task.lower_is_better
