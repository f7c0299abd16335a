"""The recipe's `training_args` as TrainingArguments, with what follows from device, data and task."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import transformers

from lora_ft.assemble.prepare import Prepared
from lora_ft.errors import InputError, RecipeError
from lora_ft.models.precision import Precision, plan_precision

logger = logging.getLogger(__name__)


def training_arguments(prepared: Prepared) -> tuple[transformers.TrainingArguments, Precision]:
    """Builds the TrainingArguments of a run, and the precision that its device computes in.

    Args:
        prepared: Rows and features; decides the metric and whether there is anything to evaluate on.

    Returns:
        The arguments, with precision, metric and logging folder filled in; the precision.

    Raises:
        RecipeError: transformers refuses a combination that the recipe's own rules let pass, or the recipe wants
            something of a validation split that the data does not have.
        InputError: One process sees several GPUs.
    """
    recipe, task = prepared.recipe, prepared.task
    filled: dict[str, Any] = dict(recipe.training_args)
    filled.update(remove_unused_columns=False, label_names=["labels"])
    if "validation" not in prepared.rows:
        _without_validation(prepared, filled)
    if filled.get("load_best_model_at_end"):
        metric = filled.setdefault("metric_for_best_model", task.metrics[prepared.problem.problem_type][0])
        name = str(metric).removeprefix("eval_")
        filled.setdefault("greater_is_better", name not in (*task.lower_is_better, "loss"))
    try:
        # the launcher may have chosen the device, so it is asked for before the precision is planned
        plain = transformers.TrainingArguments(**{**filled, "bf16": False, "fp16": False})
        if plain.n_gpu > 1:
            raise InputError(
                f"{plain.n_gpu} GPUs are visible to one process. Start one process a GPU: accelerate launch "
                "--multi_gpu -m lora_ft train RECIPE; or show it one: CUDA_VISIBLE_DEVICES=0"
            )
        precision = plan_precision(
            device=str(plain.device), dtype=recipe.model.dtype, bf16=filled.get("bf16"), fp16=filled.get("fp16")
        )
        if precision.device == "cpu":
            filled["use_cpu"] = True  # else transformers 5.23 refuses bf16 on a CPU that has it
        filled["bf16"], filled["fp16"] = precision.name == "bfloat16", precision.name == "float16"
        filled.setdefault("ddp_find_unused_parameters", False)  # the gradient gate finds them once, not at every step
        filled.setdefault("dataloader_pin_memory", precision.device.startswith("cuda"))
        filled.setdefault("logging_nan_inf_filter", False)  # it waits for every loss; `LossWatch` looks at ten at once
        if precision.device.startswith("cuda") and filled["dataloader_pin_memory"]:
            given = filled.get("accelerator_config") or {}
            if isinstance(given, Mapping):  # else a file, which says it all
                filled["accelerator_config"] = {"non_blocking": True, **given}
        return transformers.TrainingArguments(**filled), precision
    except ValueError as error:
        raise RecipeError([f"{recipe.file}: training_args: {error}"]) from error


def planned_steps(arguments: transformers.TrainingArguments, rows: int, *, an_epoch: int | None = None) -> int:
    """Optimizer steps of the whole run.

    Args:
        arguments: The arguments of the run.
        rows: Rows of an epoch.
        an_epoch: Steps of an epoch, where they do not follow from the rows.
    """
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    global_batch = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    steps = math.ceil(rows / int(global_batch)) if an_epoch is None else an_epoch
    return math.ceil(steps * float(arguments.num_train_epochs))


def _without_validation(prepared: Prepared, filled: dict[str, Any]) -> None:
    """Leaves out what needs a validation split; only a hub or saved data set shows so late that it has none."""
    recipe = prepared.recipe
    if recipe.early_stopping.early_stopping_patience is not None:
        raise RecipeError(
            [
                f"{recipe.file}: early_stopping: the data has no validation split, only {', '.join(prepared.rows)}. "
                "Add dataset.validation: 0.1, or leave early_stopping out"
            ]
        )
    logger.warning("no validation split: nothing is measured while training; dataset.validation: 0.1 would make one")
    filled.update(eval_strategy="no", load_best_model_at_end=False)
    for name in ("metric_for_best_model", "greater_is_better"):
        filled.pop(name, None)
