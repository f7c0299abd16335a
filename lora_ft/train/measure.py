"""A split -> metrics, over all rows exactly once, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import torch
import transformers
from accelerate.utils import reduce

from lora_ft.assemble.answer import Answers, answer, join_rows
from lora_ft.assemble.encode import EncodedRows, references_of
from lora_ft.assemble.known_prefix import KnownPrefix
from lora_ft.assemble.prepare import Prepared
from lora_ft.data.token_budget import TokenBudget
from lora_ft.models.precision import Precision
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.problem import Problem
from lora_ft.train.told import told_by_each


class GivenUp(Exception):
    """A measurement was given up in its middle, because the run is to end."""


@dataclass(frozen=True)
class Split:
    """A split to measure on.

    Attributes:
        rows: Rows with canonical labels.
        features: Their features.
        references: What predictions are compared with.
    """

    rows: datasets.Dataset
    features: EncodedRows
    references: list[Any]


@dataclass(frozen=True)
class Measured:
    """What a model said of a split.

    Attributes:
        metrics: `loss`, where it could be measured, and the metrics of the task.
        predictions: One a row.
        answers: What the predictions were joined from.
    """

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    answers: Answers


def splits_to_measure(prepared: Prepared) -> dict[str, Split]:
    """Validation and test, where they are."""
    return {
        name: Split(
            prepared.rows[name],
            prepared.features[name],
            references_of(prepared.rows[name], task=prepared.task, problem=prepared.problem),
        )
        for name in ("validation", "test")
        if name in prepared.rows
    }


def measure(
    model: Any,
    split: Split,
    *,
    task: Task,
    problem: Problem,
    precision: Precision,
    arguments: transformers.TrainingArguments,
    budget: TokenBudget | None = None,
    in_step: bool = False,
    known: KnownPrefix | None = None,
    advance: Callable[[int], None] | None = None,
    given_up: Callable[[], bool] | None = None,
) -> Measured:
    """Measures a model on a split; each process answers its part, and all know the result.

    Args:
        model: The model, not wrapped.
        split: The rows.
        task: The task.
        problem: What it is about.
        precision: What the model computes in.
        arguments: For the batch size, the workers, and which process this is.
        budget: What a batch may hold; None: as many rows as the arguments say.
        in_step: Whether all processes must run the model equally often, because each has but a piece of it.
        known: What of the rows need not be computed.
        advance: Called with the number of features done here.
        given_up: Asked after each batch whether to stop there.

    Raises:
        GivenUp: One of the processes was to stop; all of them do.
    """

    def done(count: int) -> None:
        if advance is not None:
            advance(count)
        if given_up is not None and (_said_by_one(given_up(), arguments) if in_step else given_up()):
            raise GivenUp

    mine = _answers_of(
        model,
        split.features,
        task=task,
        problem=problem,
        precision=precision,
        batch_size=arguments.eval_batch_size if budget is None else budget,
        share=(arguments.process_index, arguments.world_size),
        measure_loss=True,
        workers=arguments.dataloader_num_workers if task.lazy else 0,
        in_step=in_step,
        known=known,
        advance=done,
    )
    shares: list[Answers | None] = told_by_each(mine, world_size=arguments.world_size)
    whole = [share for share in shares if share is not None]
    if len(whole) < len(shares):
        raise GivenUp
    answers = Answers(
        parts={index: part for share in whole for index, part in share.parts.items()},
        loss_sum=sum(share.loss_sum for share in whole),
        items=sum(share.items for share in whole),
    )
    return score(answers, split, task=task, problem=problem)


def _said_by_one(mine: bool, arguments: transformers.TrainingArguments) -> bool:
    """Whether any of the processes says so; all have to ask."""
    sums: torch.Tensor = reduce(torch.tensor(float(mine), device=arguments.device), reduction="sum")
    return bool(sums)


def _answers_of(model: Any, features: EncodedRows, **how: Any) -> Answers | None:
    """What a model answers, or None where it was given up."""
    try:
        return answer(model, features, **how)
    except GivenUp:
        return None


def score(answers: Answers, split: Split, *, task: Task, problem: Problem) -> Measured:
    """Joins answers to predictions and scores them; again and cheaply after a setting was tuned."""
    predictions = join_rows(answers.parts, split.features, split.rows, task=task, problem=problem)
    metrics: Mapping[str, float] = task.score(predictions, split.references, problem)
    loss = {"loss": answers.loss_sum / answers.items} if answers.items else {}
    return Measured({**loss, **metrics}, predictions, answers)
