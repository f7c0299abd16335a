"""Rows -> embeddings of the bare base, and the centroid of a domain, by which rows find their adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import torch

from lora_ft.adapters.manifest import Centroid
from lora_ft.assemble.answer import on_device
from lora_ft.assemble.encode import encode_rows
from lora_ft.models.embed import embed
from lora_ft.models.precision import Precision, autocast_context
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.problem import Problem

ROWS = 256
"""Training rows that a centroid is made of, evenly spaced; more of them move it by less than a row's own distance."""
DIGITS = 6


def row_embeddings(
    model: Any,
    rows: datasets.Dataset,
    *,
    task: Task,
    problem: Problem,
    precision: Precision,
    batch_size: int = 32,
    layers: int = 1,
    advance: Callable[[int], None] | None = None,
) -> np.ndarray | None:
    """One vector for each row: the mean over its features (the windows of a long text).

    Args:
        model: The base with its head, no adapter in effect.
        rows: Rows under our column names, with or without targets.
        task: The task.
        problem: What it is about.
        precision: What the base computes in.
        batch_size: Features a batch.
        layers: See `lora_ft.models.embed.embed`.
        advance: Called with the number of features done.

    Returns:
        `(rows, layers * width)` in float32; None where a feature is not one row of the base's input (pairs of
        preferences).
    """
    if task.argument == "audio":
        batch_size = 1  # what pads a sound moves its embedding
    features = encode_rows(rows, task=task, problem=problem)
    collate = task.collator(problem)
    order = np.argsort(-np.asarray(features["length"][:], dtype=np.int64), kind="stable").tolist()
    owners = features["row"][:]
    sums: np.ndarray | None = None
    counts = np.zeros(len(rows))
    model.eval()
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = on_device(collate([features[index] for index in indices]), model.device)
        with torch.no_grad(), autocast_context(precision):
            vectors = embed(model, batch, layers=layers)
        if vectors is None or len(vectors) != len(indices):
            return None
        found = vectors.float().cpu().numpy()
        if sums is None:
            sums = np.zeros((len(rows), found.shape[1]), dtype=np.float64)
        for index, vector in zip(indices, found, strict=True):
            sums[owners[index]] += vector
            counts[owners[index]] += 1
        if advance is not None:
            advance(len(indices))
    assert sums is not None, "encode_rows refuses rows without features"
    return np.asarray(sums / np.maximum(counts, 1)[:, None], dtype=np.float32)


def centroid_of(
    model: Any, rows: datasets.Dataset, *, task: Task, problem: Problem, precision: Precision
) -> Centroid | None:
    """Where the rows of a domain lie among the embeddings of the bare base.

    Args:
        model: The base with its head, no adapter in effect.
        rows: The training rows.
        task: The task.
        problem: What it is about.
        precision: What the base computes in.

    Returns:
        The centroid of up to 256 evenly spaced rows, or None where there is no embedding.
    """
    chosen = sorted({index * len(rows) // ROWS for index in range(ROWS)} if len(rows) > ROWS else range(len(rows)))
    vectors = row_embeddings(model, rows.select(chosen), task=task, problem=problem, precision=precision)
    if vectors is None or not np.isfinite(vectors).all():
        return None
    return Centroid(mean=[float(f"{value:.{DIGITS}g}") for value in vectors.mean(0)], rows=len(chosen))
