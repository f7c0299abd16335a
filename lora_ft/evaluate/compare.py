"""Adapter folder + rows -> metrics of base and adapter side by side, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from lora_ft.assemble.saved import SavedAdapter
from lora_ft.data.labels import canonical_labels
from lora_ft.data.sources import load_file, load_splits
from lora_ft.errors import DataError
from lora_ft.metrics.intervals import RESAMPLES, Interval, bootstrap_intervals, paired_intervals
from lora_ft.recipe.schema import Recipe


@dataclass(frozen=True)
class Comparison:
    """Base and adapter on the same rows.

    Attributes:
        split: The split, or the file.
        rows: How many rows.
        base_answer: What stands for the base: `its own head`, or the majority answer it gives.
        adapter: Metrics of the adapter.
        base: Metrics of the base.
        intervals: 95 % interval of each metric of the adapter.
        differences: 95 % interval of adapter minus base, paired on the rows.
        predictions: Decoded predictions in the order of the rows.
        references: Encoded labels in the order of the rows.
        truncated: Rows that were cut at `max_length`.
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
    truncated: int

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


def rows_of_recipe(adapter: SavedAdapter, recipe: Recipe, split: str | None) -> tuple[str, datasets.Dataset]:
    """Rows of a split of the recipe that made the adapter: the test split if there is one, else validation.

    Raises:
        DataError: The split does not exist.
    """
    splits = load_splits(
        recipe.dataset,
        columns=adapter.task.columns,
        seed=int(recipe.training_args["seed"]),
        offline=recipe.offline,
    )
    name = split or ("test" if "test" in splits else "validation")
    if name not in splits:
        raise DataError(
            f"{recipe.file}: the recipe has no split {name!r}; it has: {', '.join(splits)}. "
            "Choose one with --split, or give rows with --data FILE"
        )
    return name, canonical(adapter, splits[name])


def rows_of_file(
    adapter: SavedAdapter,
    file: Path,
    *,
    columns: Mapping[str, str | tuple[str, ...]],
    label_delimiter: str | None,
) -> datasets.Dataset:
    """Rows of a file with labels, under the columns of the recipe."""
    rows = load_file(file, columns=columns, wanted=adapter.task.columns, label_delimiter=label_delimiter)
    if "label" not in rows.column_names:
        raise DataError(
            f"{file}: there is no label column, so nothing can be measured. "
            "To predict without labels: lora-ft predict ADAPTER --input FILE"
        )
    return canonical(adapter, rows)


def canonical(adapter: SavedAdapter, rows: datasets.Dataset) -> datasets.Dataset:
    """Rows with labels as the manifest names them."""
    return canonical_labels(rows, problem_type=adapter.manifest.problem_type, labels=adapter.manifest.labels)


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

    A base without a head of its own cannot answer; there the majority answer of the training rows stands for it.

    Args:
        adapter: A verified adapter.
        rows: Rows with canonical labels.
        split: What the rows are called in the report.
        batch_size: Rows a batch.
        resamples: Bootstrap resamples of the 95 % intervals.
        advance: Called with the number of rows done.
        advance_draw: Called after each draw of the intervals, `2 * resamples` times in all.

    Returns:
        Metrics, intervals and predictions.
    """
    manifest, task = adapter.manifest, adapter.task
    encoded = adapter.encode(rows)
    features = list(encoded)
    references = [row["labels"] for row in features]
    predictions = adapter.decode(adapter.logits(features, batch_size=batch_size, advance=advance))
    if not manifest.run["base_answers"]:
        base_predictions = [dict(manifest.run["majority"])] * len(features)
        base_answer = "the majority answer (it has no head for these labels)"
    else:
        with adapter.model.disable_adapter():
            base_predictions = adapter.decode(adapter.logits(features, batch_size=batch_size))
        base_answer = "its own head"

    ours, theirs = (
        task.scorer(answers, references, labels=manifest.labels, problem_type=manifest.problem_type)
        for answers in (predictions, base_predictions)
    )
    count = len(features)
    return Comparison(
        split=split,
        rows=count,
        base_answer=base_answer,
        adapter=ours(range(count)),
        base=theirs(range(count)),
        intervals=bootstrap_intervals(ours, count, resamples=resamples, advance=advance_draw),
        differences=paired_intervals(ours, theirs, count, resamples=resamples, advance=advance_draw),
        predictions=predictions,
        references=references,
        truncated=sum(encoded["truncated"][:]),
    )
