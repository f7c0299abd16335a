"""The contract of a task: everything that makes one task different from another, and nothing else."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from lora_ft.errors import InputError, closest
from lora_ft.recipe.schema import Column, TaskFacts

Rows = Mapping[str, Sequence[Any]]
"""A batch of rows, column by column, under our column names."""

Features = dict[str, list[Any]]
"""A batch of features, column by column; always with `length`, the tokens of each row without padding."""


class Task(ABC):
    """One task. A subclass in a file of this folder is the whole of a task; it holds no state.

    A file of this folder must import neither torch nor transformers at its top: `lora-ft check` reads it.

    Attributes:
        name: The Hub's pipeline tag; the file is named after it with `_` for `-`.
        summary: One line for `lora-ft tasks`.
        auto_class: Name of the transformers auto class that builds the model.
        peft_task_type: peft's TaskType, or None where it does harm (vision, speech).
        head: Module names that hold the head in the families of this task; what `modules_to_save` defaults to.
        columns: The columns it reads.
        metrics: For each problem type its metric names; the first one picks the best model.
        lower_is_better: Metrics that improve downwards.
        processor_fields: The `processor` keys it understands with their types, or with their values.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    auto_class: ClassVar[str]
    peft_task_type: ClassVar[str | None]
    head: ClassVar[tuple[str, ...]]
    columns: ClassVar[tuple[Column, ...]]
    metrics: ClassVar[Mapping[str, tuple[str, ...]]]
    lower_is_better: ClassVar[frozenset[str]]
    processor_fields: ClassVar[Mapping[str, tuple[Any, ...]]]

    @abstractmethod
    def model_config(self, *, labels: Sequence[str], problem_type: str) -> dict[str, Any]:
        """Config fields that the data decides, such as `num_labels`, `id2label`, `label2id`, `problem_type`."""

    @abstractmethod
    def encode(
        self,
        rows: Rows,
        processor: Any,
        *,
        labels: Sequence[str],
        problem_type: str,
        settings: Mapping[str, Any],
    ) -> Features:
        """Turns a batch of rows into features.

        Args:
            rows: Columns under our names; the label column may be absent (prediction).
            processor: The base's tokenizer or processor.
            labels: All labels in order; empty for regression.
            problem_type: One of the keys of `metrics`.
            settings: The recipe's `processor` section.

        Returns:
            Model inputs without padding, `length`, `truncated` (bool), and `labels` where the rows have labels.
        """

    @abstractmethod
    def collator(self, processor: Any, *, problem_type: str, settings: Mapping[str, Any]) -> Callable[..., Any]:
        """A function from a list of features to a padded batch of tensors."""

    @abstractmethod
    def loss(
        self, *, problem_type: str, class_weight: Sequence[float] | None, label_smoothing: float
    ) -> Callable[..., Any]:
        """The loss as `f(outputs, labels, num_items_in_batch=None) -> scalar`, a sum over rows divided by the items.

        With `num_items_in_batch` the sum over all accumulated batches equals the loss of one large batch.
        """

    @abstractmethod
    def decode(self, logits: Any, *, labels: Sequence[str], problem_type: str) -> list[dict[str, Any]]:
        """Turns logits `(rows, labels)` into one prediction a row: the one truth for evaluate, predict and serve."""

    @abstractmethod
    def scorer(
        self,
        predictions: Sequence[dict[str, Any]],
        references: Sequence[Any],
        *,
        labels: Sequence[str],
        problem_type: str,
    ) -> Callable[[Any], dict[str, float]]:
        """Metrics of any of the rows: for all of them, and for the draws of a bootstrap.

        Args:
            predictions: As `decode` makes them.
            references: As `encode` gave them in `labels`.
            labels: All labels in order.
            problem_type: One of the keys of `metrics`.

        Returns:
            A function from row numbers `(rows,)`, with repetition, to metrics.
        """

    def score(
        self,
        predictions: Sequence[dict[str, Any]],
        references: Sequence[Any],
        *,
        labels: Sequence[str],
        problem_type: str,
    ) -> dict[str, float]:
        """Metrics of all rows; see `scorer`."""
        scored = self.scorer(predictions, references, labels=labels, problem_type=problem_type)
        return scored(range(len(references)))

    @abstractmethod
    def example_rows(self, problem_type: str) -> dict[str, list[Any]]:
        """A few rows, column by column: documentation, probe inputs and test data at once."""

    def facts(self) -> TaskFacts:
        """What a recipe is checked against."""
        return TaskFacts(
            name=self.name,
            columns=self.columns,
            metrics=self.metrics,
            lower_is_better=self.lower_is_better,
            processor_fields=self.processor_fields,
        )


def task_names() -> tuple[str, ...]:
    """All tasks: the files of this folder."""
    folder = importlib.import_module(__package__ or "").__path__
    names = (module.name for module in pkgutil.iter_modules(folder) if module.name != "base")
    return tuple(sorted(name.replace("_", "-") for name in names))


def load_task(name: str) -> Task:
    """Finds a task by name.

    Args:
        name: The pipeline tag, `text-classification`.

    Returns:
        The task.

    Raises:
        InputError: No file of this folder has that name.
    """
    if name not in task_names():
        known = task_names()
        raise InputError(f"task = {name!r}: there is no such task.{closest(name, known)} Known: {', '.join(known)}")
    module = importlib.import_module(f"lora_ft.tasks.{name.replace('-', '_')}")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    ]
    (task_class,) = classes
    return task_class()
