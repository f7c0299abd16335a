"""Puts the trainer of a run together, and arranges what happens before its first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers

from lora_ft.assemble.encode import references_of
from lora_ft.assemble.fresh import FreshAdapter
from lora_ft.assemble.prepare import Prepared
from lora_ft.data.token_budget import BudgetedBatches
from lora_ft.train.checkpoints import Start
from lora_ft.train.first_batch import GATE as WORST_BATCH_FIRST
from lora_ft.train.first_batch import WorstBatchFirst, try_evaluation
from lora_ft.train.gates import GradientGate
from lora_ft.train.interrupt import Interruption
from lora_ft.train.measure import splits_to_measure
from lora_ft.train.outcome import Compared
from lora_ft.train.progress import OneScreenProgress, one_curve
from lora_ft.train.resumable import Restored, ResumableTrainer
from lora_ft.train.trainer import RankAllocation
from lora_ft.train.weights import class_weights


def make_trainer(
    prepared: Prepared,
    fresh: FreshAdapter,
    arguments: transformers.TrainingArguments,
    *,
    batches: BudgetedBatches | None,
    start: Start,
    made_of: Mapping[str, Any],
    interruption: Interruption,
) -> ResumableTrainer:
    """Puts the Trainer of a run together."""
    recipe, task, problem = prepared.recipe, prepared.task, prepared.problem
    callbacks: list[transformers.TrainerCallback] = [GradientGate()] if "gradients" not in recipe.checks_off else []
    if recipe.early_stopping.early_stopping_patience is not None:
        callbacks.append(
            transformers.EarlyStoppingCallback(
                early_stopping_patience=recipe.early_stopping.early_stopping_patience,
                early_stopping_threshold=recipe.early_stopping.early_stopping_threshold,
            )
        )
    if recipe.peft_config["peft_type"] == "ADALORA":
        callbacks.append(RankAllocation())
    weights = None
    if task.weighs_classes and recipe.loss.class_weight is not None:
        weights = class_weights(
            recipe.loss.class_weight,
            references_of(prepared.rows["train"], task=task, problem=problem),
            labels=problem.labels,
            problem_type=problem.problem_type,
        )
    trainer = ResumableTrainer(
        made_of=made_of,
        interruption=interruption,
        checkpoint=start.checkpoint.folder if start.checkpoint is not None else None,
        prepared=prepared,
        precision=fresh.precision,
        splits=splits_to_measure(prepared),
        class_weight=weights,
        new_head=fresh.base.new_head,
        ran=fresh.ran,
        batches=batches,
        model=fresh.model,
        args=arguments,
        callbacks=callbacks,
    )
    one_curve(trainer, begun_at=start.checkpoint.step if start.checkpoint is not None else 0)
    trainer.remove_callback(transformers.trainer_callback.ProgressCallback)
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    if not arguments.disable_tqdm:
        trainer.add_callback(OneScreenProgress())
    return trainer


def before_the_first_step(trainer: ResumableTrainer) -> Compared:
    """Arranges what happens before the first step: the worst batches, then what the run has to beat.

    A run that goes on is put back to where it was after all of that.
    """
    compared = Compared(trainer)
    if WORST_BATCH_FIRST not in trainer.prepared.recipe.checks_off:
        if not trainer.in_step:
            try_evaluation(trainer)
        trainer.add_callback(WorstBatchFirst(trainer))
    if trainer.checkpoint is not None:  # what is to be beaten has the weights before training
        if trainer.in_step:
            trainer.before_restoring = compared.baseline
        else:
            compared.baseline()
    trainer.add_callback(compared)
    trainer.add_callback(Restored(trainer))
    return compared
