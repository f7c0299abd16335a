"""The recipe's `training_args` as TrainingArguments, with what follows from device, data and task."""

from __future__ import annotations

import logging
import math
from typing import Any

import transformers

from lora_ft.assemble.fresh import precision_of
from lora_ft.assemble.prepare import Prepared
from lora_ft.errors import RecipeError

logger = logging.getLogger(__name__)


def training_arguments(prepared: Prepared) -> transformers.TrainingArguments:
    """Builds the TrainingArguments of a run.

    Args:
        prepared: Rows and features; decides the metric and whether there is anything to evaluate on.

    Returns:
        The arguments, with precision, metric and logging folder filled in.

    Raises:
        RecipeError: transformers refuses a combination that the recipe's own rules let pass.
    """
    recipe, task = prepared.recipe, prepared.task
    filled: dict[str, Any] = dict(recipe.training_args)
    precision = precision_of(recipe)
    filled["bf16"] = precision.name == "bfloat16"
    filled["fp16"] = precision.name == "float16"
    filled.update(remove_unused_columns=False, label_names=["labels"])
    filled.setdefault("dataloader_pin_memory", precision.device.startswith("cuda"))
    if filled.get("load_best_model_at_end"):
        metric = filled.setdefault("metric_for_best_model", task.metrics[prepared.problem_type][0])
        name = str(metric).removeprefix("eval_")
        filled.setdefault("greater_is_better", name not in (*task.lower_is_better, "loss"))
    try:
        return transformers.TrainingArguments(**filled)
    except ValueError as error:
        raise RecipeError([f"{recipe.file}: training_args: {error}"]) from error


def planned_steps(arguments: transformers.TrainingArguments, rows: int) -> int:
    """Optimizer steps of the whole run."""
    if arguments.max_steps > 0:
        return int(arguments.max_steps)
    global_batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return math.ceil(math.ceil(rows / int(global_batch)) * float(arguments.num_train_epochs))
