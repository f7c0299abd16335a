"""Adapter folder + rows -> metrics of base and adapter side by side, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import datasets
import numpy as np

from lora_ft.adapters.manifest import Manifest
from lora_ft.assemble.encode import has_targets, references_of
from lora_ft.assemble.prepare import fitting_rows, label_column, sets_of, usable_rows
from lora_ft.assemble.prepared_splits import prepare_splits
from lora_ft.assemble.recorded import RecordedColumns
from lora_ft.assemble.saved import SavedAdapter
from lora_ft.data.labels import canonical_labels
from lora_ft.data.rows import Splits
from lora_ft.data.sources import load_rows, load_splits
from lora_ft.errors import DataError
from lora_ft.metrics.intervals import RESAMPLES, Interval, bootstrap_intervals, paired_intervals
from lora_ft.recipe.schema import Recipe
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.problem import Problem


class Described(Protocol):
    """What has to be known of an adapter in order to find its rows."""

    @property
    def task(self) -> Task:
        """Its task."""
        ...

    @property
    def manifest(self) -> Manifest:
        """What it says of itself."""
        ...

    @property
    def problem(self) -> Problem:
        """What it was trained for."""
        ...


@dataclass(frozen=True)
class Comparison:
    """Base and adapter on the same rows.

    Attributes:
        split: The split, or the file.
        rows: How many rows.
        base_answer: What stands for the base: its own head, or the best constant answer.
        adapter: Metrics of the adapter.
        base: Metrics of the base.
        intervals: 95 % interval of each metric of the adapter.
        differences: 95 % interval of adapter minus base, paired on the rows.
        predictions: Predictions in the order of the rows.
        references: What they were compared with, in the order of the rows.
        truncated: Features that were cut at `max_length`; None where features are made as they are read.
    """

    split: str
    rows: int
    base_answer: str
    adapter: Mapping[str, float]
    base: Mapping[str, float]
    intervals: Mapping[str, Interval]
    differences: Mapping[str, Interval]
    predictions: list[dict[str, Any]]
    references: list[Any]
    truncated: int | None

    def to_mapping(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "split": self.split,
            "rows": self.rows,
            "truncated": self.truncated,
            "base_answer": self.base_answer,
            "adapter": dict(self.adapter),
            "base": dict(self.base),
            "interval_95": {name: [value.low, value.high] for name, value in self.intervals.items()},
            "difference_95": {name: [value.low, value.high] for name, value in self.differences.items()},
        }


def rows_of_recipe(adapter: Described, recipe: Recipe, split: str | None) -> tuple[str, datasets.Dataset]:
    """Rows of a split of the recipe that made the adapter: the test split if there is one, else validation.

    Raises:
        DataError: The split does not exist, or has rows that cannot be used and the recipe does not skip them.
    """
    task = adapter.task
    splits = load_splits(
        recipe.dataset,
        columns=task.columns,
        column_sets=sets_of(task, adapter.manifest.problem_type),
        offline=recipe.offline,
    )
    splits = prepare_splits(recipe, task, splits, until="splits", as_given=True).splits
    name = split or ("test" if "test" in splits else "validation")
    if name not in splits:
        raise DataError(
            f"{recipe.file}: the recipe has no split {name!r}; it has: {', '.join(splits)}. "
            "Choose one with --split, or give rows with --data FILE"
        )
    wanted = Splits({name: splits[name]}, origins={name: splits.origins[name]})
    return name, canonical(adapter, wanted, on_bad_row=recipe.dataset.on_bad_row)[name]


def rows_of_file(adapter: SavedAdapter, file: Path, recorded: RecordedColumns) -> datasets.Dataset:
    """Rows of a file with targets, read as the recipe reads its own.

    Raises:
        DataError: The file cannot be read, has nothing to compare with, or has rows that cannot be used.
    """
    task = adapter.task
    splits = load_rows(
        file, columns=recorded.columns, wanted=task.columns, label_delimiter=recorded.label_delimiter,
        column_sets=sets_of(task, adapter.manifest.problem_type),
        sample_by=recorded.sample_by, media_dir=recorded.media_dir,
    )  # fmt: skip
    if not has_targets(splits["rows"], task):
        names = " or ".join(column.name for column in task.columns if column.target)
        raise DataError(
            f"{file}: there is no {names} column, so nothing can be measured. "
            "To predict without: lora-ft predict ADAPTER --input FILE"
        )
    return canonical(adapter, splits, on_bad_row="error")["rows"]


def canonical(
    adapter: Described, splits: Splits, *, on_bad_row: Literal["error", "skip"]
) -> Mapping[str, datasets.Dataset]:
    """The rows that can be measured, with labels as the manifest names them."""
    task, manifest = adapter.task, adapter.manifest
    usable = usable_rows(task, splits, labels=manifest.labels, on_bad_row=on_bad_row)
    usable = fitting_rows(task, usable, adapter.problem, on_bad_row=on_bad_row)
    if not label_column(task):
        return usable
    return {
        name: canonical_labels(rows, problem_type=manifest.problem_type, labels=manifest.labels)
        for name, rows in usable.items()
    }


def compare(
    adapter: SavedAdapter,
    rows: datasets.Dataset,
    *,
    split: str,
    batch_size: int = 32,
    resamples: int = RESAMPLES,
    advance: Callable[[int], None] | None = None,
    advance_draw: Callable[[int], None] | None = None,
) -> Comparison:
    """Measures base and adapter on the same rows.

    A base without a head of its own cannot answer; there the best constant answer for the training rows stands for it.

    Args:
        adapter: A verified adapter.
        rows: Rows with canonical labels.
        split: What the rows are called in the report.
        batch_size: Features a batch.
        resamples: Bootstrap resamples of the 95 % intervals.
        advance: Called with the number of features done.
        advance_draw: Called after each draw of the intervals, `2 * resamples` times in all.

    Returns:
        Metrics, intervals and predictions.
    """
    manifest, task, problem = adapter.manifest, adapter.task, adapter.problem
    features = adapter.encode(rows)
    references = references_of(rows, task=task, problem=problem)
    predictions = adapter.predict(rows, features=features, batch_size=batch_size, advance=advance)
    constant = manifest.run["majority"]
    if constant is not None and not manifest.run["base_answers"]:
        base_predictions = [dict(constant)] * len(references)
        base_answer = "the best constant answer (it has no head for these labels)"
    else:
        with adapter.model.disable_adapter():
            base_predictions = adapter.predict(rows, features=features, batch_size=batch_size)
        base_answer = "an untrained head" if manifest.new_head else "its own head"

    ours, theirs = (task.scorer(answers, references, problem) for answers in (predictions, base_predictions))
    count, everything = len(references), np.arange(len(references))
    return Comparison(
        split=split,
        rows=count,
        base_answer=base_answer,
        adapter=ours(everything),
        base=theirs(everything),
        intervals=bootstrap_intervals(ours, count, resamples=resamples, advance=advance_draw),
        differences=paired_intervals(ours, theirs, count, resamples=resamples, advance=advance_draw),
        predictions=predictions,
        references=references,
        truncated=None if task.lazy else sum(features["truncated"][:]),
    )
