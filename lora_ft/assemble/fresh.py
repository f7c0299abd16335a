"""Prepared recipe -> frozen base with a new adapter, ready to be fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import transformers

from lora_ft.adapters.attach import attach
from lora_ft.assemble.prepare import Prepared
from lora_ft.models.load import Base, load_base
from lora_ft.models.precision import Precision, cast_frozen_linears
from lora_ft.models.size import BaseSize, base_size

if TYPE_CHECKING:
    from lora_ft.adapters.lean_readers import Readers


@dataclass(frozen=True)
class FreshAdapter:
    """A frozen base with a new adapter.

    Attributes:
        base: The base, its head and its quantisation.
        size: How large the base is, without the adapter.
        model: The adapted model (a `peft.PeftModel`).
        precision: What it computes in, and where.
        readers: Makes LoRA layers train by our own function, or None.
        ran: What of the recipe's `lean` took effect when it was built: how many layers.
    """

    base: Base
    size: BaseSize
    model: Any
    precision: Precision
    readers: Readers | None
    ran: Mapping[str, Any]

    def ran_in_training(self) -> dict[str, Any]:
        """What of the recipe's `lean` its layers did until now."""
        if self.readers is None:
            return {"byte_dropout": False, "dequantized_bytes": 0}
        return {"byte_dropout": self.readers.draws_bytes, "dequantized_bytes": self.readers.kept_bytes}


def build(
    prepared: Prepared, *, precision: Precision, total_steps: int, device: str | None = None, sharded: bool = False
) -> FreshAdapter:
    """Loads the base of a prepared recipe and attaches its adapter; the same seed gives the same weights.

    Args:
        prepared: What `prepare` returned.
        precision: What the run computes in, and where.
        total_steps: Optimizer steps of the whole run (AdaLoRA plans its ranks by them).
        device: Where the base is loaded, if it is not where it computes: what is to be cut into shards may be larger.
        sharded: Whether weights are to be cut over processes, so that only modules find them whole.

    Returns:
        The adapted model on the CPU or wherever quantisation put it.
    """
    recipe, task, problem = prepared.recipe, prepared.task, prepared.problem
    transformers.set_seed(int(recipe.training_args["seed"]))
    base = load_base(
        prepared.base,
        auto_class=task.model_class(problem.problem_type),
        head=task.head,
        config=task.model_config(problem),
        precision=precision if device is None else replace(precision, device=device),
        quantization_config=recipe.quantization_config,
        dropout=recipe.model.dropout,
        attn_implementation=recipe.model.attn_implementation,
        dtype=recipe.model.dtype,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    size = base_size(base.model)
    readers = None
    if recipe.lean.lora_linear and not sharded:
        from lora_ft.adapters.lean_readers import Readers

        room_bytes = int(recipe.lean.dequantized_gb * 1e9)
        readers = Readers(byte_dropout=recipe.lean.byte_dropout, room_bytes=room_bytes)
    model = attach(
        base.model,
        recipe.peft_config,
        task_type=task.peft_task_type,
        head=base.head,
        total_steps=total_steps,
        readers=readers,
    )
    ran = {
        "cast_frozen": cast_frozen_linears(model, precision) if recipe.lean.cast_frozen else 0,
        "lora_linear": readers.layers if readers is not None else 0,
    }
    return FreshAdapter(base=base, size=size, model=model, precision=precision, readers=readers, ran=ran)
