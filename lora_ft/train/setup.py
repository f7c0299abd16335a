"""Puts the trainer of a run together, and arranges what happens before its first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from lora_ft.assemble.answer import on_device
from lora_ft.assemble.encode import references_of
from lora_ft.assemble.fresh import FreshAdapter
from lora_ft.assemble.prepare import Prepared
from lora_ft.data.token_budget import BudgetedBatches
from lora_ft.models.decoder_blocks import RMS_NORM, SWIGLU, use_decoder_blocks
from lora_ft.models.first_token import go_on_with_first_token
from lora_ft.models.precision import autocast_context
from lora_ft.train.activations import ActivationCheckpointing
from lora_ft.train.checkpoints import Start
from lora_ft.train.first_batch import GATE as WORST_BATCH_FIRST
from lora_ft.train.first_batch import WorstBatchFirst, same_chance, try_evaluation
from lora_ft.train.gates import GradientGate
from lora_ft.train.interrupt import Interruption
from lora_ft.train.measure import splits_to_measure
from lora_ft.train.outcome import Compared
from lora_ft.train.prefix import know_prefix
from lora_ft.train.progress import OneScreenProgress, one_curve
from lora_ft.train.resumable import Restored, ResumableTrainer
from lora_ft.train.trainer import RankAllocation
from lora_ft.train.weights import class_weights

if TYPE_CHECKING:
    from lora_ft.adapters.lean_readers import Readers

TELLING_TOKENS = 4
"""Of fewer tokens a row cannot tell whether the head reads the first one alone."""


def make_trainer(
    prepared: Prepared,
    fresh: FreshAdapter,
    arguments: transformers.TrainingArguments,
    *,
    start: Start,
    made_of: Mapping[str, Any],
    interruption: Interruption,
    batches: BudgetedBatches | None = None,
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
    look_at_model(trainer, fresh.readers)
    one_curve(trainer, begun_at=start.checkpoint.step if start.checkpoint is not None else 0)
    trainer.remove_callback(transformers.trainer_callback.ProgressCallback)
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    if not arguments.disable_tqdm:
        trainer.add_callback(OneScreenProgress())
    return trainer


def look_at_model(trainer: ResumableTrainer, readers: Readers | None) -> None:
    """Lets two rows of middling length pass the model, to see what can be computed together, and what not at all.

    Args:
        trainer: The trainer of the run.
        readers: Makes LoRA layers train by our own function, or None.
    """
    lean = trainer.prepared.recipe.lean
    if trainer.in_step:
        trainer.ran |= dict.fromkeys((RMS_NORM, SWIGLU, "first_token"), "off: the weights are cut into shards")
        return
    task, problem = trainer.prepared.task, trainer.prepared.problem
    features = trainer.prepared.features["train"]
    lengths = np.asarray(features["length"][:], dtype=np.int64)
    middle = np.argsort(lengths, kind="stable")[len(lengths) // 2 :][:2].tolist()
    with same_chance(trainer.args.device), autocast_context(trainer.precision):
        batch = on_device(task.collator(problem)([features[row] for row in middle]), trainer.args.device)

        def forward() -> Any:
            return task.forward(trainer.model, batch, problem)

        trainer.model.eval()
        if readers is not None:
            with torch.no_grad(), readers.watching(trainer.model):
                forward()
            trainer.ran["lora_groups"] = [len(one) for one in readers.groups.values()]
        trainer.ran |= _blocks(trainer, forward)
        if not lean.first_token:
            why: str | None = "lean.first_token is false"
        elif lengths[middle[-1]] < TELLING_TOKENS:
            why = "rows are too short to tell"
        else:
            why = go_on_with_first_token(trainer.model, forward)
        trainer.ran["first_token"] = f"off: {why}" if why else True


def _blocks(trainer: ResumableTrainer, forward: Callable[[], Any]) -> dict[str, int | str]:
    """Lets our functions compute RMSNorms and SwiGLU blocks; how many they compute, or why none."""
    lean = trainer.prepared.recipe.lean
    wanted = {RMS_NORM: lean.rms_norm, SWIGLU: lean.swiglu}
    off = {kind: f"off: lean.{kind} is false" for kind, on in wanted.items() if not on}
    if trainer.args.torch_compile:
        off = dict.fromkeys(wanted, "off: training_args.torch_compile")
    kinds = [kind for kind in wanted if kind not in off]
    return off | use_decoder_blocks(trainer.model, forward, kinds=kinds)


def before_the_first_step(trainer: ResumableTrainer, *, kept_in: Path | None) -> Compared:
    """Arranges what happens before the first step: what is computed again, the worst batches, what is to be beaten.

    A run that goes on is put back to where it was after all of that.

    Args:
        trainer: The trainer.
        kept_in: Where what is made of rows is kept for other runs; None: nowhere.
    """
    compared = Compared(trainer)
    trainer.add_callback(ActivationCheckpointing(trainer))  # then the worst batch is run as the steps will be
    if WORST_BATCH_FIRST not in trainer.prepared.recipe.checks_off:
        if not trainer.in_step:
            try_evaluation(trainer)
        trainer.add_callback(WorstBatchFirst(trainer))
    know_prefix(trainer, kept_in=kept_in)
    if trainer.checkpoint is not None:  # what is to be beaten has the weights before training
        if trainer.in_step:
            trainer.before_restoring = compared.baseline
        else:
            compared.baseline()
    trainer.add_callback(compared)
    trainer.add_callback(Restored(trainer))
    return compared
