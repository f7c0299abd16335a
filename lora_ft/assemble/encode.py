"""Rows -> features, by the functions of a task: kept in memory, or made anew each time a row is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import datasets
import numpy as np

from lora_ft.assemble.kept_features import KeptFeatures
from lora_ft.data.encode import LazySplit, encode_split
from lora_ft.data.preparation.texts import prepared_rows
from lora_ft.errors import DataError
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.problem import Features, Problem

MEDIA = ("image", "audio")
LENGTHS_AT_ONCE = 256

EncodedRows: TypeAlias = datasets.Dataset | LazySplit
"""Features with the columns `length` and `row` beside what the task makes."""


@dataclass(frozen=True)
class RowEncoder:
    """`Task.encode` with all it needs but the rows; a data loader's workers get a copy.

    Attributes:
        task: The task.
        problem: What it is about.
        training: Whether the rows are trained on.
    """

    task: Task
    problem: Problem
    training: bool

    def __call__(self, rows: Mapping[str, Sequence[Any]], *, index: int = 0, epoch: int = 0) -> Features:
        """Encodes a batch; what is random follows from the run's seed, the epoch and the row's number alone."""
        return self.task.encode(rows, self.problem_at(index, epoch=epoch), training=self.training)

    def problem_at(self, index: int, *, epoch: int) -> Problem:
        """The problem with the seed of a row in an epoch; in training alone anything is random."""
        if not self.training:
            return self.problem
        mixed = np.random.SeedSequence((self.problem.seed, epoch, index)).generate_state(1, np.uint64)
        return replace(self.problem, seed=int(mixed[0]))


def encode_rows(
    rows: datasets.Dataset,
    *,
    task: Task,
    problem: Problem,
    training: bool = False,
    kept: KeptFeatures | None = None,
) -> EncodedRows:
    """Encodes the rows of a split; see `Task.encode` for what comes out.

    Args:
        rows: Rows under our column names, labels canonical.
        task: The task.
        problem: What it is about; its augmentation is used in training alone. Texts are rewritten here by its
            `preparation`, and nowhere else: that of a run has none, because its rows have it behind them.
        training: Whether the rows are trained on.
        kept: Where features of large splits are kept from one run to the next; None: nowhere.

    Returns:
        Features, each with the number of its row; of a lazy task they are made when they are read.

    Raises:
        DataError: The rows make no feature at all.
    """
    rows = prepared_rows(rows, task.free_texts, problem.preparation)
    encode = RowEncoder(task, problem if training else replace(problem, augmentation={}), training)
    if task.lazy:
        return LazySplit(rows, encode, lengths=_lengths(rows, task=task, problem=problem))

    def make() -> datasets.Dataset:
        return encode_split(rows, encode, description=f"encode {len(rows)} rows")

    features = make() if kept is None else kept.get(rows, make, task=task, problem=encode.problem, training=training)
    if not len(features):
        raise DataError(f"none of {len(rows)} rows has a token to learn or to measure: they are too short or empty")
    return features


def _lengths(rows: datasets.Dataset, *, task: Task, problem: Problem) -> list[int]:
    """What each row costs, asked for a few at a time: a row may hold the bytes of an image or a sound."""
    if type(task).lengths is Task.lengths:
        return [1] * len(rows)
    starts = range(0, len(rows), LENGTHS_AT_ONCE)
    return [one for start in starts for one in task.lengths(rows[start : start + LENGTHS_AT_ONCE], problem)]


def references_of(rows: datasets.Dataset, *, task: Task, problem: Problem) -> list[Any]:
    """What predictions for these rows are compared with; images and sounds are not read for it."""
    rows = prepared_rows(without_media(rows, task), task.free_texts, problem.preparation)
    return task.references(rows[:], problem)


def without_media(rows: datasets.Dataset, task: Task) -> datasets.Dataset:
    """Rows without their images and sounds, whose bytes would be read with every row."""
    media = [column.name for column in task.columns if column.kind in MEDIA and column.name in rows.column_names]
    return rows.remove_columns(media)


def has_targets(rows: datasets.Dataset, task: Task) -> bool:
    """Whether rows have what is to be learned, so that something can be measured on them."""
    targets = [column.name for column in task.columns if column.target]
    return not targets or any(name in rows.column_names for name in targets)
