"""Recipe -> adapter folder: the whole of a training run on one screen."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from lora_ft.adapters.attach import trainable_report
from lora_ft.adapters.folder import check_target
from lora_ft.adapters.manifest import Manifest
from lora_ft.assemble.baseline import majority_answer
from lora_ft.assemble.fresh import FreshAdapter, build
from lora_ft.assemble.prepare import Prepared, prepare
from lora_ft.errors import Interrupted, RunError
from lora_ft.recipe.schema import Recipe
from lora_ft.train.arguments import planned_steps, training_arguments
from lora_ft.train.checkpoints import begin_run_folder, checkpoint_to_resume, make_run_folder
from lora_ft.train.gates import GradientGate, check_moved, check_supervision, check_world_size, zero_tensors
from lora_ft.train.interrupt import InterruptCallback
from lora_ft.train.progress import OneScreenProgress
from lora_ft.train.save import Outcome, save_adapter
from lora_ft.train.trainer import AdapterTrainer, RankAllocation
from lora_ft.train.verdict import learned_something
from lora_ft.train.weights import class_weights

logger = logging.getLogger(__name__)

TIMING = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


@dataclass(frozen=True)
class RunOptions:
    """What the command line says beside the recipe.

    Attributes:
        overwrite: Whether an adapter that is already there may be replaced.
        resume: Go on from the last checkpoint in `output_dir`.
        asked_world_size: Number of processes the launcher was asked for, or None if nobody said.
        cache_dir: Where fingerprints of bases are remembered.
        command: The command line, for the model card.
        list_modules: Whether to log every kind of module that trains.
    """

    overwrite: bool = False
    resume: bool = False
    asked_world_size: int | None = None
    cache_dir: Path | None = None
    command: str = ""
    list_modules: bool = False


@dataclass(frozen=True)
class TrainResult:
    """What a run made.

    Attributes:
        folder: The adapter folder.
        manifest: What it says of itself; None on the processes that do not write.
        metrics: `{split: {metric: value}}` of the adapter.
        baseline: The same for the majority answer.
        learned: Whether the adapter beats the majority answer on validation; None without such a split.
        main_metric: The metric that picked the best model.
        seconds: Wall time of the training loop, evaluations included.
    """

    folder: Path
    manifest: Manifest | None
    metrics: Mapping[str, Mapping[str, float]]
    baseline: Mapping[str, Mapping[str, float]]
    learned: bool | None
    main_metric: str
    seconds: float


def train(recipe: Recipe, options: RunOptions) -> TrainResult:
    """Trains the adapter of a recipe and writes its folder.

    Args:
        recipe: A checked recipe.
        options: What the command line says.

    Returns:
        Where the adapter is and how good it is.

    Raises:
        InputError: Something the user gave is wrong; nothing was written.
        GateError: The run was stopped because it would have ended silently wrong.
    """
    folder = Path(recipe.training_args["output_dir"]) / "adapter"
    check_target(folder, overwrite=options.overwrite)
    checkpoint = checkpoint_to_resume(recipe, resume=options.resume, overwrite=options.overwrite)
    prepared = prepare(recipe)
    check_supervision(prepared.features["train"]["labels"][:], labels_named=prepared.labels)
    arguments, precision = training_arguments(prepared)
    check_world_size(options.asked_world_size, arguments.world_size)
    make_run_folder(recipe)
    for line in (*prepared.report.lines(), truncation_line(prepared)):
        logger.info("%s", line)
    fresh = build(prepared, precision=precision, total_steps=planned_steps(arguments, len(prepared.rows["train"])))
    report = trainable_report(fresh.model)
    logger.info("%s", report.line())
    for line in report.table_lines() if options.list_modules else ():
        logger.info("  %s", line)
    interrupt = InterruptCallback()
    trainer = make_trainer(prepared, fresh, arguments, interrupt=interrupt)
    refuse_sharding(trainer)
    logger.info("padding: %.2f tokens computed for each real one", trainer.padding())
    takes_ranks_away = recipe.peft_config["peft_type"] == "ADALORA"  # down to zero, on purpose
    silent = frozenset() if takes_ranks_away else zero_tensors(fresh.model.named_parameters())

    if arguments.should_save:
        begin_run_folder(recipe, resumed=checkpoint is not None)
    seconds = fit(trainer, interrupt, checkpoint=checkpoint)
    check_moved(((name, p) for name, p in fresh.model.named_parameters() if p.requires_grad), initially_zero=silent)
    metrics, baseline, learned = measure(trainer, prepared)
    main_metric = str(arguments.metric_for_best_model or prepared.task.metrics[prepared.problem_type][0])
    manifest = None
    if arguments.should_save:
        outcome = Outcome(
            metrics=metrics,
            baseline=baseline,
            learned=learned,
            majority=majority_of(prepared),
            run={
                "seconds": round(seconds, 1),
                "steps": trainer.state.global_step,
                "epochs": trainer.state.epoch,
                "world_size": arguments.world_size,
                "command": options.command,
            },
        )
        manifest = save_adapter(
            folder,
            prepared=prepared,
            fresh=fresh,
            outcome=outcome,
            cache_dir=options.cache_dir,
            overwrite=options.overwrite,
        )
    trainer.accelerator.wait_for_everyone()
    return TrainResult(folder, manifest, metrics, baseline, learned, main_metric.removeprefix("eval_"), seconds)


def fit(trainer: AdapterTrainer, interrupt: InterruptCallback, *, checkpoint: Path | None) -> float:
    """Runs the training loop.

    Returns:
        Its wall time in seconds.

    Raises:
        Interrupted: Ctrl-C; a checkpoint was saved.
    """
    started = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        interrupt.give_back()
    if interrupt.received:
        raise Interrupted(
            f"interrupted at step {trainer.state.global_step} of {trainer.state.max_steps}; a checkpoint was saved in "
            f"{trainer.args.output_dir}. To go on: the same command with --resume"
        )
    return time.perf_counter() - started


def refuse_sharding(trainer: AdapterTrainer) -> None:
    """Refuses launchers that cut parameters into shards: the adapter would be saved in pieces.

    Raises:
        RunError: FSDP, or DeepSpeed ZeRO-3.
    """
    plugin = trainer.accelerator.state.deepspeed_plugin
    if trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
        raise RunError(
            "FSDP and DeepSpeed ZeRO-3 shard the parameters, and this version cannot gather an adapter from shards. "
            "Launch with DDP (accelerate launch --multi_gpu) or ZeRO-2; a quantized base (quantization_config) needs "
            "the least memory"
        )


def truncation_line(prepared: Prepared) -> str:
    """How many rows were cut at `max_length`, for each split."""
    shares = [
        f"{split} {count} of {len(prepared.rows[split])} ({count / len(prepared.rows[split]):.1%})"
        for split, count in prepared.truncated.items()
    ]
    return f"cut at {prepared.settings['max_length']} tokens: " + ", ".join(shares)


def make_trainer(
    prepared: Prepared,
    fresh: FreshAdapter,
    arguments: transformers.TrainingArguments,
    *,
    interrupt: InterruptCallback,
) -> AdapterTrainer:
    """Puts the Trainer of a run together."""
    recipe, task = prepared.recipe, prepared.task
    callbacks: list[transformers.TrainerCallback] = [GradientGate(), interrupt]
    if recipe.early_stopping.early_stopping_patience is not None:
        callbacks.append(
            transformers.EarlyStoppingCallback(
                early_stopping_patience=recipe.early_stopping.early_stopping_patience,
                early_stopping_threshold=recipe.early_stopping.early_stopping_threshold,
            )
        )

    if recipe.peft_config["peft_type"] == "ADALORA":
        callbacks.append(RankAllocation())

    def compute_metrics(predicted: transformers.EvalPrediction) -> dict[str, float]:
        decoded = task.decode(
            np.asarray(predicted.predictions), labels=prepared.labels, problem_type=prepared.problem_type
        )
        references = np.asarray(predicted.label_ids).tolist()
        return task.score(decoded, references, labels=prepared.labels, problem_type=prepared.problem_type)

    trainer = AdapterTrainer(
        recipe=recipe,
        loss=task.loss(
            problem_type=prepared.problem_type,
            class_weight=class_weights(
                recipe.loss.class_weight,
                prepared.features["train"]["labels"][:],
                labels=prepared.labels,
                problem_type=prepared.problem_type,
            ),
            label_smoothing=arguments.label_smoothing_factor,
        ),
        model=fresh.model,
        args=arguments,
        train_dataset=prepared.features["train"],
        eval_dataset=prepared.features.get("validation"),
        data_collator=task.collator(prepared.processor, problem_type=prepared.problem_type, settings=prepared.settings),
        processing_class=prepared.processor,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=first_output,
        callbacks=callbacks,
    )
    trainer.remove_callback(transformers.trainer_callback.ProgressCallback)
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    if not arguments.disable_tqdm:
        trainer.add_callback(OneScreenProgress())
    return trainer


def first_output(logits: Any, _labels: Any) -> torch.Tensor:
    """The logits alone: decoders also hand out their key and value cache."""
    first: torch.Tensor = logits[0] if isinstance(logits, tuple) else logits
    return first


def measure(
    trainer: AdapterTrainer, prepared: Prepared
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]], bool | None]:
    """Metrics of the adapter and of the majority answer on validation and test, and whether anything was learned."""
    splits = [split for split in ("validation", "test") if split in prepared.rows]
    metrics = {split: evaluate_split(trainer, prepared, split) for split in splits}
    baseline = {split: baseline_metrics(prepared, split) for split in splits}
    if "validation" not in splits:
        return metrics, baseline, None
    learned = learned_something(
        metrics["validation"],
        baseline["validation"],
        rows=len(prepared.rows["validation"]),
        problem_type=prepared.problem_type,
    )
    return metrics, baseline, learned


def evaluate_split(trainer: AdapterTrainer, prepared: Prepared, split: str) -> dict[str, float]:
    """Metrics of the adapter on one split, under their plain names; nothing is added to the training curves."""
    result = trainer.predict(prepared.features[split], metric_key_prefix=split).metrics
    plain = {name.removeprefix(f"{split}_"): float(value) for name, value in result.items()}
    return {name: value for name, value in plain.items() if name not in TIMING}


def majority_of(prepared: Prepared) -> dict[str, Any]:
    """The majority answer of the training rows."""
    return majority_answer(
        prepared.features["train"]["labels"][:], labels=prepared.labels, problem_type=prepared.problem_type
    )


def baseline_metrics(prepared: Prepared, split: str) -> dict[str, float]:
    """Metrics of the majority answer on one split."""
    references = prepared.features[split]["labels"][:]
    answers = [majority_of(prepared)] * len(references)
    return prepared.task.score(answers, references, labels=prepared.labels, problem_type=prepared.problem_type)
