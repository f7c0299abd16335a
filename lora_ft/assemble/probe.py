"""What a task puts into the probe of an adapter folder: a batch of its example rows, and what to compare of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import datasets
import torch

from lora_ft.assemble.encode import encode_rows
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.problem import Problem


def probe_forward(task: Task, problem: Problem) -> Callable[[Any, Mapping[str, Any]], torch.Tensor]:
    """A function from model and batch to the values `(rows, values)` that are compared at every load."""

    def forward(model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        return task.probe_values(task.forward(model, batch, problem), batch)

    return forward


def probe_batch(task: Task, problem: Problem) -> dict[str, Any]:
    """The batch whose answers prove at every load that the adapter answers as it did: the task's example rows.

    The labels are left out, but what a collator derives from them (the decoder's inputs) is in it.

    Args:
        task: The task.
        problem: What it is about; example rows whose labels it does not know lose their targets.
    """
    rows = datasets.Dataset.from_dict(task.example_rows(problem.problem_type))
    if problem.labels:
        rows = rows.remove_columns([c.name for c in task.columns if c.target and c.name in rows.column_names])
    features = encode_rows(rows, task=task, problem=problem)
    batch: dict[str, Any] = task.collator(problem)([features[index] for index in range(len(features))])
    return {name: value for name, value in batch.items() if name != "labels"}
