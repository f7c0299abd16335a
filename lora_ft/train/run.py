"""Recipe -> adapter folder: the whole of a training run on one screen."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from lora_ft.adapters.attach import trainable_report
from lora_ft.adapters.manifest import Manifest
from lora_ft.adapters.target import check_target
from lora_ft.assemble.encode import references_of
from lora_ft.assemble.examined_short import examined_in_short
from lora_ft.assemble.fresh import FreshAdapter, build
from lora_ft.assemble.prepare import Prepared, prepare
from lora_ft.errors import Interrupted, RunError
from lora_ft.recipe.schema import Recipe
from lora_ft.train.arguments import planned_steps, training_arguments
from lora_ft.train.checkpoints import begin_run_folder, checkpoint_to_resume, make_run_folder
from lora_ft.train.first_batch import GATE as WORST_BATCH_FIRST
from lora_ft.train.first_batch import WorstBatchFirst, try_evaluation
from lora_ft.train.gap import look_at_gap
from lora_ft.train.gates import GradientGate, check_moved, check_world_size, zero_tensors
from lora_ft.train.interrupt import InterruptCallback
from lora_ft.train.measure import Split, splits_to_measure
from lora_ft.train.outcome import Compared, measure_adapter
from lora_ft.train.progress import OneScreenProgress
from lora_ft.train.save import Outcome, save_adapter
from lora_ft.train.supervision import check_supervision
from lora_ft.train.trainer import AdapterTrainer, RankAllocation
from lora_ft.train.weights import class_weights, draw_line, made_up_for, rows_of_an_epoch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOptions:
    """What the command line says beside the recipe.

    Attributes:
        overwrite: Whether an adapter that is already there may be replaced.
        resume: Go on from the last checkpoint in `output_dir`.
        asked_world_size: Number of processes the launcher was asked for, or None if nobody said.
        cache_dir: Where fingerprints of bases are remembered, and features of large splits.
        keep_features: Whether features may be kept there.
        command: The command line, for the model card.
        list_modules: Whether to log every kind of module that trains.
    """

    overwrite: bool = False
    resume: bool = False
    asked_world_size: int | None = None
    cache_dir: Path | None = None
    keep_features: bool = True
    command: str = ""
    list_modules: bool = False


@dataclass(frozen=True)
class TrainResult:
    """What a run made.

    Attributes:
        folder: The adapter folder.
        manifest: What it says of itself; None on the processes that do not write.
        metrics: `{split: {metric: value}}` of the adapter.
        baseline: The same for the best constant answer, or, where there is none, for the untrained model.
        learned: Whether the adapter beats the baseline on validation; None without such a split.
        main_metric: The metric that picked the best model.
        seconds: Wall time of the training loop, evaluations included.
        example: A word to try `lora-ft predict` with.
    """

    folder: Path
    manifest: Manifest | None
    metrics: Mapping[str, Mapping[str, float]]
    baseline: Mapping[str, Mapping[str, float]]
    learned: bool | None
    main_metric: str
    seconds: float
    example: str


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
    cache = options.cache_dir / "features" if options.cache_dir is not None and options.keep_features else None
    prepared = prepare(recipe, features_dir=cache)
    taught = check_supervision(prepared)
    arguments, precision = training_arguments(prepared)
    if "world-size" not in recipe.checks_off:
        check_world_size(options.asked_world_size, arguments.world_size)
    make_run_folder(recipe)
    looked_at = examined_in_short(prepared) if arguments.process_index == 0 else []
    say((*prepared.lines(), *truncation_lines(prepared), *taught, *looked_at))
    fresh = build(prepared, precision=precision, total_steps=planned_steps(arguments, rows_of_an_epoch(prepared)))
    report = trainable_report(fresh.model)
    say((report.line(), *(f"  {line}" for line in report.table_lines() if options.list_modules)))
    interrupt = InterruptCallback()
    splits = splits_to_measure(prepared)
    trainer = make_trainer(prepared, fresh, arguments, splits=splits)
    refuse_sharding(trainer)
    say(batch_lines(trainer))
    compared = before_the_first_step(trainer, interrupt, resumed=checkpoint is not None)
    takes_ranks_away = recipe.peft_config["peft_type"] == "ADALORA"  # down to zero, on purpose
    silent = frozenset() if takes_ranks_away else zero_tensors(fresh.model.named_parameters())
    if arguments.should_save:
        begin_run_folder(recipe, resumed=checkpoint is not None)
    seconds = fit(trainer, interrupt, checkpoint=checkpoint)
    if "moved" not in recipe.checks_off:
        check_moved(((name, p) for name, p in fresh.model.named_parameters() if p.requires_grad), initially_zero=silent)
    prepared, metrics = measure_adapter(trainer)
    baseline = compared.baseline()
    learned = baseline.is_beaten(metrics, prepared)
    gap = look_at_gap(trainer, prepared, metrics, baseline=baseline.metrics)
    main_metric = str(arguments.metric_for_best_model or prepared.task.metrics[prepared.problem.problem_type][0])
    manifest = None
    if arguments.should_save:
        outcome = Outcome(
            metrics=metrics,
            baseline=baseline.metrics,
            learned=learned,
            majority=baseline.constant,
            run={**facts_of(trainer, seconds=seconds), "command": options.command, "gap": gap},
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
    main, example = main_metric.removeprefix("eval_"), prepared.task.example_word(prepared.problem)
    return TrainResult(folder, manifest, metrics, baseline.metrics, learned, main, seconds, example)


def say(lines: Iterable[str]) -> None:
    """Logs lines, one event each."""
    for line in lines:
        logger.info("%s", line)


def batch_lines(trainer: AdapterTrainer) -> list[str]:
    """How rows are drawn, and what is computed for padding."""
    lines = []
    if trainer.draw is not None:
        lines.append(draw_line(trainer.draw, labels=trainer.prepared.problem.labels))
    if not trainer.prepared.task.lazy:
        lines.append(f"padding: {trainer.padding():.2f} tokens computed for each real one")
    return lines


def facts_of(trainer: AdapterTrainer, *, seconds: float) -> dict[str, Any]:
    """What the manifest keeps of how a run went."""
    return {
        "seconds": round(seconds, 1),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "world_size": trainer.args.world_size,
        "classes": made_up_for(trainer.training_problem, class_weight=trainer.class_weight, draw=trainer.draw),
    }


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
    trainer.look_at_losses()
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


def truncation_lines(prepared: Prepared) -> list[str]:
    """How many features were cut at `max_length`, for each split; nothing where nothing is counted."""
    if not prepared.truncated or "max_length" not in prepared.problem.settings:
        return []
    shares = [
        f"{split} {count} of {len(prepared.features[split])} ({count / max(len(prepared.features[split]), 1):.1%})"
        for split, count in prepared.truncated.items()
    ]
    return [f"cut at {prepared.problem.settings['max_length']} tokens: " + ", ".join(shares)]


def before_the_first_step(trainer: AdapterTrainer, interrupt: InterruptCallback, *, resumed: bool) -> Compared:
    """Arranges what happens before the first step: the worst batches, then what the run has to beat.

    Args:
        trainer: The trainer.
        interrupt: Takes Ctrl-C over, after all of that.
        resumed: Whether the run goes on from a checkpoint, whose weights are no longer those before training.
    """
    compared = Compared(trainer)
    if WORST_BATCH_FIRST not in trainer.prepared.recipe.checks_off:
        try_evaluation(trainer)
        trainer.add_callback(WorstBatchFirst(trainer))
    if resumed:
        compared.baseline()
    trainer.add_callback(compared)
    trainer.add_callback(interrupt)
    return compared


def make_trainer(
    prepared: Prepared,
    fresh: FreshAdapter,
    arguments: transformers.TrainingArguments,
    *,
    splits: Mapping[str, Split],
) -> AdapterTrainer:
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
    trainer = AdapterTrainer(
        prepared=prepared,
        precision=fresh.precision,
        splits=splits,
        class_weight=weights,
        new_head=fresh.base.new_head,
        model=fresh.model,
        args=arguments,
        callbacks=callbacks,
    )
    trainer.remove_callback(transformers.trainer_callback.ProgressCallback)
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    if not arguments.disable_tqdm:
        trainer.add_callback(OneScreenProgress())
    return trainer
