"""Makes peft's own optimizers, LoRA+ and LoRA-FA, with the head in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from torch.optim import Optimizer

from lora_ft.errors import InputError
from lora_ft.recipe.schema import OptimizerSection

LORAFA_KEYS = ("lr", "weight_decay")


def make_optimizer(
    model: PeftModel,
    section: OptimizerSection,
    *,
    optimizer_class: type[Optimizer],
    optimizer_kwargs: Mapping[str, Any],
    r: int,
    lora_alpha: float,
) -> Optimizer | None:
    """Makes the optimizer that the recipe's `optimizer` section names.

    Args:
        model: The adapted model. LoRA-FA freezes its A matrices.
        section: The recipe's `optimizer` section.
        optimizer_class: What `training_args.optim` means; LoRA+ runs on it, LoRA-FA brings its own AdamW.
        optimizer_kwargs: Arguments of `optimizer_class`, with `lr`; `weight_decay` is honoured by both.
        r: Rank of the adapter.
        lora_alpha: Its alpha.

    Returns:
        The optimizer, or None where the section names none.

    Raises:
        InputError: The adapter is none that this optimizer knows.
    """
    if section.name is None:
        return None
    config = model.peft_config["default"]
    if config.peft_type.value != "LORA":
        raise InputError(
            f"optimizer.name = {section.name!r}: it tells A from B of a LORA adapter, and "
            f"peft_config.peft_type is {config.peft_type.value!r}. Leave the optimizer section out."
        )
    if section.name == "loraplus":
        return _loraplus(model, section, optimizer_class=optimizer_class, optimizer_kwargs=optimizer_kwargs)
    if config.use_dora:
        raise InputError(
            "optimizer.name = 'lorafa': it pairs A with B and cannot train the magnitudes of DoRA. Leave "
            "out use_dora, or use loraplus."
        )
    optimizer: Optimizer = create_lorafa_optimizer(
        model,
        r=r,
        lora_alpha=lora_alpha,
        **{key: optimizer_kwargs[key] for key in LORAFA_KEYS if key in optimizer_kwargs},
    )
    return optimizer


def _loraplus(
    model: PeftModel,
    section: OptimizerSection,
    *,
    optimizer_class: type[Optimizer],
    optimizer_kwargs: Mapping[str, Any],
) -> Optimizer:
    """LoRA+: B learns faster than A; peft puts head matrices with A, and biases (also the head's) with B."""
    kwargs = dict(optimizer_kwargs)
    optimizer: Optimizer = create_loraplus_optimizer(
        model,
        optimizer_class,
        loraplus_lr_ratio=section.loraplus_lr_ratio,
        loraplus_lr_embedding=section.loraplus_lr_embedding,
        loraplus_weight_decay=kwargs.pop("weight_decay", 0.0),
        **kwargs,
    )
    return optimizer
