"""Quantises a base but for its head, and keeps 4-bit layers trainable on every CPU."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import BitsAndBytesConfig

from lora_ft.errors import ModelError
from lora_ft.models.precision import Precision

KEY = "quantization_config"


def quantization_kind(settings: Mapping[str, Any] | None) -> str | None:
    """The label of a quantisation: `nf4`, `fp4`, `int8`, or None.

    Args:
        settings: The recipe's `quantization_config`.

    Returns:
        The label. bitsandbytes takes `fp4` where `bnb_4bit_quant_type` is left out.
    """
    if not settings:
        return None
    if settings.get("load_in_8bit"):
        return "int8"
    return str(settings.get("bnb_4bit_quant_type", "fp4")) if settings.get("load_in_4bit") else None


def quantization_settings(
    settings: Mapping[str, Any], *, skip: Sequence[str], precision: Precision
) -> BitsAndBytesConfig:
    """The BitsAndBytesConfig of a recipe, with the modules that must stay as they are.

    A quantised head cannot be trained and dies in the first forward pass; transformers quantises it all the
    same.

    Args:
        settings: The recipe's `quantization_config`.
        skip: Full names of the modules that must not be quantised.
        precision: Gives the compute type where the recipe does not name one.

    Returns:
        The config for `from_pretrained`.

    Raises:
        ModelError: bitsandbytes is not usable, or the settings contradict each other.
    """
    _require_bitsandbytes()
    own = settings.get("llm_int8_skip_modules") or []
    given = {
        "bnb_4bit_compute_dtype": precision.compute_dtype,
        **settings,
        "llm_int8_skip_modules": [*own, *(re.escape(name) for name in skip if name not in own)],
    }
    if quantization_kind(settings) not in ("nf4", "fp4", "int8"):
        raise ModelError(
            f"{KEY} = {dict(settings)}: no quantisation. Expected load_in_8bit: true, or load_in_4bit: true"
            " with bnb_4bit_quant_type nf4 or fp4. Leave the section out for plain LoRA."
        )
    try:
        return BitsAndBytesConfig(**given)
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{KEY}: {error}. Mend the section.") from error


def _require_bitsandbytes() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"{KEY}: bitsandbytes cannot be used here ({error}). Expected a working `import bitsandbytes`."
            " Install it again, or leave the section out."
        ) from error


def guard_cpu_4bit(model: nn.Module) -> int:
    """Keeps 4-bit layers in the one format that has gradients.

    On CPUs with AVX512-BF16, `Linear4bit.forward` in eval mode repacks the weight for a kernel without
    autograd; the next training step then fails, or silently gives the layer's input no gradient (bitsandbytes
    0.50).

    Args:
        model: A quantised base, with or without adapters.

    Returns:
        How many layers are guarded.
    """
    from bitsandbytes.nn import Linear4bit

    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


def quantized_modules(model: nn.Module) -> set[str]:
    """The names of all quantised layers of a model."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    return {name for name, module in model.named_modules() if isinstance(module, (Linear4bit, Linear8bitLt))}


def refuse_unquantized(model: nn.Module, *, base: str) -> None:
    """Makes sure that quantising had an effect: only linear layers can be quantised, and the head never is.

    Args:
        model: A base that was loaded quantised.
        base: The user's name of it, for the error.

    Raises:
        ModelError: No layer is quantised.
    """
    if not quantized_modules(model):
        raise ModelError(
            f"{KEY}: {base} ({type(model).__name__}) has no linear layers outside its head, and bitsandbytes quantises"
            " nothing else. Expected a base with linear layers. Leave the section out."
        )
