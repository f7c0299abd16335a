"""Recipe -> adapter folder: the whole of a training run on one screen."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from lora_ft.adapters.attach import trainable_report
from lora_ft.adapters.manifest import Manifest
from lora_ft.adapters.target import check_target
from lora_ft.assemble.examined_short import examined_in_short
from lora_ft.assemble.fresh import FreshAdapter, build
from lora_ft.assemble.prepare import Prepared, prepare
from lora_ft.data.shared import forget
from lora_ft.recipe.schema import Recipe
from lora_ft.train.arguments import planned_steps, training_arguments
from lora_ft.train.batches import budgeted_batches
from lora_ft.train.checkpoint_folder import begin_run_folder, make_run_folder
from lora_ft.train.checkpoints import where_to_start
from lora_ft.train.failures import Failures
from lora_ft.train.gap import look_at_gap
from lora_ft.train.gates import check_moved, check_world_size, zero_tensors
from lora_ft.train.interrupt import Interruption, Stopped
from lora_ft.train.measure import GivenUp
from lora_ft.train.outcome import Compared, measure_adapter
from lora_ft.train.resumable import ResumableTrainer
from lora_ft.train.run_lock import RunLock
from lora_ft.train.same_run import agreed_start
from lora_ft.train.save import Outcome, TriedOut, save_adapter
from lora_ft.train.setup import before_the_first_step, make_trainer
from lora_ft.train.sharded import adapter_state, trained
from lora_ft.train.sharding import check_is_cut, check_sharding, lay_out, loaded_on, loaded_whole, sharding_of
from lora_ft.train.supervision import check_supervision
from lora_ft.train.trainer import AdapterTrainer
from lora_ft.train.weights import draw_line, made_up_for, rows_of_an_epoch
from lora_ft.train.world import check_batches, check_devices, settle

logger = logging.getLogger(__name__)

BEFORE_THE_FIRST_STEP = "ended before a step was made; nothing was changed. To go on: the same command again"


@dataclass(frozen=True)
class RunOptions:
    """What the command line says beside the recipe.

    Attributes:
        overwrite: Whether an adapter that is already there may be replaced.
        resume: Go on from the newest whole checkpoint in `output_dir`; there must be one.
        auto_resume: Go on from it if there is one.
        asked_world_size: Number of processes the launcher was asked for, or None if nobody said.
        cache_dir: Where fingerprints of bases are remembered, features of large splits, and what leaves frozen layers.
        keep_features: Whether features, and what leaves frozen layers of them, may be kept there.
        shared_dir: What the processes of this run on this machine have in common while rows are prepared; None: it is
            alone here. It is removed as soon as all have read it.
        command: The command line, for the model card.
        list_modules: Whether to log every kind of module that trains.
        callbacks: Who else listens to the run, after everybody else: `transformers.TrainerCallback`s.
    """

    overwrite: bool = False
    resume: bool = False
    auto_resume: bool = False
    asked_world_size: int | None = None
    cache_dir: Path | None = None
    keep_features: bool = True
    shared_dir: Path | None = None
    command: str = ""
    list_modules: bool = False
    callbacks: tuple[transformers.TrainerCallback, ...] = ()


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
    with Interruption() as interruption, Failures(recipe, interruption) as failures, RunLock() as lock:
        try:
            return _train(recipe, options, failures, lock)
        except Stopped:
            raise interruption.ended(BEFORE_THE_FIRST_STEP) from None
        finally:
            forget(options.shared_dir)


def _train(recipe: Recipe, options: RunOptions, failures: Failures, lock: RunLock) -> TrainResult:
    interruption = failures.interruption
    folder = Path(recipe.training_args["output_dir"]) / "adapter"
    check_target(folder, overwrite=options.overwrite)
    start = where_to_start(recipe, resume=options.resume, auto_resume=options.auto_resume, overwrite=options.overwrite)
    kept_in = options.cache_dir if options.keep_features else None
    prepared = prepare(
        recipe, features_dir=kept_in / "features" if kept_in is not None else None, shared_dir=options.shared_dir
    )
    taught = check_supervision(prepared)
    arguments, precision = training_arguments(prepared)
    failures.watch(arguments)
    if "world-size" not in recipe.checks_off:
        check_world_size(options.asked_world_size, arguments.world_size)
        check_devices(arguments)
    check_batches(arguments)
    sharding = sharding_of(arguments)
    check_sharding(recipe, arguments, kind=sharding, precision=precision)
    batches = budgeted_batches(prepared, arguments)
    now = agreed_start(start, prepared, arguments, batches=batches, cache_dir=options.cache_dir)
    make_run_folder(recipe)
    lock.take(arguments)
    looked_at = examined_in_short(prepared) if arguments.process_index == 0 else []
    say((*prepared.lines(), *truncation_lines(prepared), *taught, *looked_at))
    steps = planned_steps(arguments, rows_of_an_epoch(prepared), an_epoch=None if batches is None else batches.an_epoch)
    with loaded_whole(arguments, sharding):
        fresh = build(
            prepared,
            precision=precision,
            total_steps=steps,
            device=loaded_on(recipe, sharding),
            sharded=sharding is not None,
        )
    report = trainable_report(fresh.model)
    say((report.line(), *(f"  {line}" for line in report.table_lines() if options.list_modules)))
    trainer = make_trainer(
        prepared, fresh, arguments, batches=batches, start=start, made_of=now, interruption=interruption
    )
    failures.follow(trainer)
    check_is_cut(trainer, sharding)
    lay_out(trainer)
    settle(trainer, shared_dir=options.shared_dir)
    say(batch_lines(trainer))
    compared = before_the_first_step(trainer, kept_in=kept_in)
    for callback in options.callbacks:
        trainer.add_callback(callback)
    takes_ranks_away = recipe.peft_config["peft_type"] == "ADALORA"  # down to zero, on purpose
    silent = frozenset() if takes_ranks_away else zero_tensors(fresh.model.named_parameters())
    if arguments.should_save:
        begin_run_folder(start, Path(arguments.output_dir))
    with interruption.deferred():
        seconds = fit(trainer)
        if "moved" not in recipe.checks_off:
            check_moved(trained(trainer), initially_zero=silent)
        try:
            return finish(trainer, fresh, compared, options=options, folder=folder, seconds=seconds)
        except GivenUp:
            raise interruption.ended(
                f"ended after the last step, before the adapter was written. {trainer.to_go_on()}"
            ) from None


def finish(
    trainer: ResumableTrainer,
    fresh: FreshAdapter,
    compared: Compared,
    *,
    options: RunOptions,
    folder: Path,
    seconds: float,
) -> TrainResult:
    """Measures a trained adapter and writes its folder.

    Raises:
        GivenUp: A signal came while it was measured; the checkpoint of the last step is there.
    """
    prepared, metrics = measure_adapter(trainer)
    baseline = compared.baseline()
    learned = baseline.is_beaten(metrics, prepared)
    gap = look_at_gap(trainer, prepared, metrics, baseline=baseline.metrics)
    arguments = trainer.args
    main_metric = str(arguments.metric_for_best_model or prepared.task.metrics[prepared.problem.problem_type][0])
    tensors, manifest = adapter_state(trainer), None
    tried = TriedOut.of(prepared, fresh) if arguments.should_save or trainer.in_step else None
    if tensors is not None and tried is not None:
        outcome = Outcome(
            metrics=metrics,
            baseline=baseline.metrics,
            learned=learned,
            majority=baseline.constant,
            run={**facts_of(trainer, fresh, seconds=seconds), "command": options.command, "gap": gap},
        )
        manifest = save_adapter(
            folder,
            prepared=prepared,
            fresh=fresh,
            tensors=tensors,
            tried=tried,
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
    """How rows are drawn, and what is computed for padding; the manifest keeps what batches cost."""
    lines = []
    cost = trainer.ran["batches"] = trainer.batch_figures()
    if trainer.draw is not None:
        lines.append(draw_line(trainer.draw, labels=trainer.prepared.problem.labels))
    if not trainer.prepared.task.lazy:
        lines.append(
            f"padding: {cost['padding']:.2f} tokens computed for each real one; a step learns of "
            f"{cost['rows_a_step']:,.1f} rows with {cost['tokens_a_step']:,.0f} tokens in the mean"
        )
    return lines


def facts_of(trainer: AdapterTrainer, fresh: FreshAdapter, *, seconds: float) -> dict[str, Any]:
    """What the manifest keeps of how a run went."""
    return {
        "seconds": round(seconds, 1),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "world_size": trainer.args.world_size,
        "threads": torch.get_num_threads(),
        "lean": {**trainer.ran, **fresh.ran_in_training()},
        "classes": made_up_for(trainer.training_problem, class_weight=trainer.class_weight, draw=trainer.draw),
    }


def fit(trainer: ResumableTrainer) -> float:
    """Runs the training loop.

    Returns:
        Its wall time in seconds.

    Raises:
        Interrupted: A signal; a checkpoint was saved.
    """
    started = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=str(trainer.checkpoint) if trainer.checkpoint else None)
    except GivenUp:  # of what is to be beaten
        raise trainer.interruption.ended(BEFORE_THE_FIRST_STEP) from None
    trainer.look_at_losses()
    return time.perf_counter() - started


def truncation_lines(prepared: Prepared) -> list[str]:
    """How many features were cut at `max_length`, for each split; nothing where nothing is counted."""
    if not prepared.truncated or "max_length" not in prepared.problem.settings:
        return []
    shares = [
        f"{split} {count} of {len(prepared.features[split])} ({count / max(len(prepared.features[split]), 1):.1%})"
        for split, count in prepared.truncated.items()
    ]
    return [f"cut at {prepared.problem.settings['max_length']} tokens: " + ", ".join(shares)]
