"""Features -> answers -> predictions, in batches of like length; nothing grows with the rows but the predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch

from lora_ft.assemble.encode import EncodedRows, without_media
from lora_ft.assemble.known_prefix import KnownPrefix, passed_over
from lora_ft.data.batching import padded_lengths
from lora_ft.data.token_budget import TokenBudget
from lora_ft.models.precision import Precision, autocast_context
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.problem import Problem


@dataclass(frozen=True)
class Answers:
    """What a model said of some features.

    Attributes:
        parts: Number of the feature -> what `Task.decode` made of its answer.
        loss_sum: Sum of the losses, where they were asked for.
        items: What that sum is divided by for the mean.
    """

    parts: Mapping[int, Any]
    loss_sum: float
    items: int


def answer(
    model: Any,
    features: EncodedRows,
    *,
    task: Task,
    problem: Problem,
    precision: Precision,
    batch_size: int | TokenBudget,
    share: tuple[int, int] = (0, 1),
    measure_loss: bool = False,
    workers: int = 0,
    in_step: bool = False,
    known: KnownPrefix | None = None,
    advance: Callable[[int], None] | None = None,
) -> Answers:
    """Runs a model over features; each batch's answer is decoded at once and forgotten.

    Args:
        model: An adapted model, or a base with a head.
        features: What `encode_rows` made.
        task: The task.
        problem: What it is about.
        precision: What the model computes in.
        batch_size: Features a batch, or what it may hold where tokens count too.
        share: `(i, n)`: only the i-th of n processes' part of the batches.
        measure_loss: Whether to sum up the loss too; the features must have labels.
        workers: Processes that make features of a lazy task.
        in_step: Whether all processes must run the model equally often, because each has but a piece of it: one with
            fewer batches does one twice, and forgets what came of it.
        known: What of the features need not be computed.
        advance: Called with the number of features done, for a progress bar.

    Returns:
        One part for each feature of the share.
    """
    lengths = np.asarray(features["length"][:], dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    if isinstance(batch_size, TokenBudget):
        ends = batch_size.ends(padded_lengths(lengths[order], problem.settings))
    else:
        ends = list(range(batch_size, len(order), batch_size))
    cut = [part.tolist() for part in np.split(order, ends) if len(part)]
    batches = cut[share[0] :: share[1]]
    own = len(batches)
    if in_step and own < -(-len(cut) // share[1]):
        batches.append(cut[-1])
    loader: Any = torch.utils.data.DataLoader(
        features,
        batch_sampler=batches,
        collate_fn=list,
        num_workers=workers,
    )
    collate = task.collator(problem)
    device = next(model.parameters()).device
    parts: dict[int, Any] = {}
    loss_sum, items = 0.0, 0
    model.eval()
    for number, (indices, rows) in enumerate(zip(batches, loader, strict=True)):
        batch = on_device(collate(rows), device)
        # no inference mode: what a model remembers of it (rotary caches) could not be trained through afterwards
        with torch.no_grad(), autocast_context(precision):
            outputs = None
            if measure_loss:
                with passed_over(known, indices, batch):
                    outputs = task.forward(model, batch, problem)
                if number < own:
                    loss_sum += float(task.loss(outputs, batch, problem, items=1))
                    items += task.items(batch)
            found = task.answer(model, batch, problem, outputs=outputs)
        if number < own:
            decoded = task.decode(numpy_answer(found), rows, problem)
            parts.update(zip(indices, decoded, strict=True))
        if advance is not None:
            advance(len(indices) if number < own else 0)
    return Answers(parts, loss_sum, items)


def join_rows(
    parts: Mapping[int, Any], features: EncodedRows, rows: datasets.Dataset, *, task: Task, problem: Problem
) -> list[dict[str, Any]]:
    """Makes one prediction for each row of the parts of its features.

    Args:
        parts: Number of the feature -> part, for all features.
        features: The features, for the number of each one's row.
        rows: The rows they came from; images and sounds are not read.
        task: The task.
        problem: What it is about.

    Returns:
        Predictions in the order of the rows.
    """
    groups: dict[int, list[Any]] = {}
    for index, row in enumerate(features["row"][:]):
        groups.setdefault(row, []).append(parts[index])
    others = without_media(rows, task)
    read = others if others.column_names else [{}] * len(rows)  # a table without columns has no rows
    return [task.join(groups.get(index, []), row, problem) for index, row in enumerate(read)]


def on_device(value: Any, device: torch.device) -> Any:
    """A batch with all its tensors on a device, also those within lists and mappings."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: on_device(inner, device) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [on_device(inner, device) for inner in value]
    return value


def numpy_answer(found: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What `Task.answer` found, as `Task.decode` reads it: on the CPU, floats in 32 bits."""
    return {
        name: (value.float() if value.is_floating_point() else value).cpu().numpy() for name, value in found.items()
    }
