"""Prepared recipe -> frozen base with a new adapter, ready to be fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers

from lora_ft.adapters.attach import attach
from lora_ft.assemble.prepare import Prepared
from lora_ft.models.load import Base, load_base
from lora_ft.models.precision import Precision, cast_frozen_linears, plan_precision
from lora_ft.models.size import BaseSize, base_size
from lora_ft.recipe.schema import Recipe


@dataclass(frozen=True)
class FreshAdapter:
    """A frozen base with a new adapter.

    Attributes:
        base: The base, its head and its quantisation.
        size: How large the base is, without the adapter.
        model: The adapted model (a `peft.PeftModel`).
        precision: What it computes in, and where.
    """

    base: Base
    size: BaseSize
    model: Any
    precision: Precision


def precision_of(recipe: Recipe) -> Precision:
    """What a run of this recipe computes in, and where: as the device can, unless the recipe says otherwise."""
    arguments = recipe.training_args
    return plan_precision(
        device="cpu" if arguments.get("use_cpu") else None,
        dtype=recipe.model.dtype,
        bf16=arguments.get("bf16"),
        fp16=arguments.get("fp16"),
    )


def build(prepared: Prepared, *, total_steps: int) -> FreshAdapter:
    """Loads the base of a prepared recipe and attaches its adapter; the same seed gives the same weights.

    Args:
        prepared: What `prepare` returned.
        total_steps: Optimizer steps of the whole run (AdaLoRA plans its ranks by them).

    Returns:
        The adapted model on the CPU or wherever quantisation put it.
    """
    recipe, task = prepared.recipe, prepared.task
    transformers.set_seed(int(recipe.training_args["seed"]))
    precision = precision_of(recipe)
    base = load_base(
        prepared.base,
        auto_class=task.auto_class,
        head=task.head,
        config=task.model_config(labels=prepared.labels, problem_type=prepared.problem_type),
        precision=precision,
        quantization_config=recipe.quantization_config,
        dropout=recipe.model.dropout,
        attn_implementation=recipe.model.attn_implementation,
        dtype=recipe.model.dtype,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    size = base_size(base.model)
    model = attach(
        base.model,
        recipe.peft_config,
        task_type=task.peft_task_type,
        head=base.head,
        total_steps=total_steps,
    )
    cast_frozen_linears(model, precision)
    return FreshAdapter(base=base, size=size, model=model, precision=precision)
