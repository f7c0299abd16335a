"""What a run has to beat, and what it came to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lora_ft.assemble.encode import references_of
from lora_ft.assemble.prepare import Prepared
from lora_ft.train.measure import Measured, Split, measure, score
from lora_ft.train.trainer import AdapterTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Baseline:
    """What a run has to beat.

    Attributes:
        constant: The best constant answer for the training rows; None where only the untrained model can tell.
        metrics: Its metrics, or those of the untrained model, on each split.
    """

    constant: dict[str, Any] | None
    metrics: dict[str, dict[str, float]]

    @classmethod
    def of(cls, trainer: AdapterTrainer) -> Baseline:
        """Measures it; to be called before training."""
        prepared, task, problem = trainer.prepared, trainer.prepared.task, trainer.prepared.problem
        constant = task.constant_answer(references_of(prepared.rows["train"], task=task, problem=problem), problem)
        if constant is None:
            return cls(None, {name: measure_split(trainer, split).metrics for name, split in trainer.splits.items()})
        metrics = {
            name: task.score([constant] * len(split.references), split.references, problem)
            for name, split in trainer.splits.items()
        }
        return cls(constant, metrics)

    def is_beaten(self, metrics: Mapping[str, Mapping[str, float]], prepared: Prepared) -> bool | None:
        """Whether the adapter learned something; None without a validation split."""
        if "validation" not in metrics:
            return None
        return prepared.task.learned(
            metrics["validation"],
            self.metrics["validation"],
            rows=len(prepared.rows["validation"]),
            problem_type=prepared.problem.problem_type,
        )


def measure_split(trainer: AdapterTrainer, split: Split) -> Measured:
    """Metrics of the model as it is on one split; nothing is added to the training curves."""
    return measure(
        trainer.accelerator.unwrap_model(trainer.model), split, task=trainer.prepared.task,
        problem=trainer.prepared.problem, precision=trainer.precision, arguments=trainer.args,
    )  # fmt: skip


def measure_adapter(trainer: AdapterTrainer) -> tuple[Prepared, dict[str, dict[str, float]]]:
    """Metrics of the trained adapter on each split, after what is best chosen on validation has been chosen there.

    Returns:
        What was prepared with the tuned settings; metrics by split.
    """
    prepared, task, splits = trainer.prepared, trainer.prepared.task, trainer.splits
    measured = {name: measure_split(trainer, split) for name, split in splits.items()}
    if "validation" in splits:
        tuned = task.tune(measured["validation"].predictions, splits["validation"].references, prepared.problem)
        if tuned:
            logger.info("chosen on validation: %s", ", ".join(f"{key} = {value}" for key, value in tuned.items()))
            problem = replace(prepared.problem, settings={**prepared.problem.settings, **tuned})
            prepared = replace(prepared, problem=problem)
            measured = {
                name: score(one.answers, splits[name], task=task, problem=problem) for name, one in measured.items()
            }
    return prepared, {name: one.metrics for name, one in measured.items()}
