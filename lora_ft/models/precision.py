"""In which type a base computes on which device, and the one cast of frozen linears for autocast."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_ft.errors import ModelError

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")  # the last one is ARM's


@dataclass(frozen=True)
class Precision:
    """Where and in which type a base computes.

    Attributes:
        device: `cpu`, `cuda`, `cuda:1`, `mps`.
        compute_dtype: The type of the matrix products.
        autocast: Whether forward passes run under autocast to `compute_dtype`: always for a 16-bit type.
    """

    device: str
    compute_dtype: torch.dtype
    autocast: bool

    @property
    def name(self) -> str:
        """The compute type as recipes and manifests write it: `float32`, `bfloat16`, `float16`."""
        return str(self.compute_dtype).removeprefix("torch.")


def plan_precision(
    *, device: str | None = None, dtype: str | None = None, bf16: bool | None = None, fp16: bool | None = None
) -> Precision:
    """Chooses device and compute type.

    bfloat16 where the device computes it natively, float16 on CUDA devices without bfloat16, float32
    elsewhere. What the user asks for wins: `bf16` and `fp16` first, then `dtype`.

    Args:
        device: The device, or None: CUDA, then MPS, then the CPU.
        dtype: `model.dtype` of the recipe: `float32`, `bfloat16`, `float16` or None.
        bf16: `training_args.bf16`; False turns 16-bit computing off.
        fp16: `training_args.fp16`; False turns 16-bit computing off.

    Returns:
        The plan.

    Raises:
        ModelError: The wishes contradict each other, or the device cannot do it.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ModelError(f"model.dtype = {dtype!r}: not a type of weights. Expected one of {', '.join(DTYPES)}.")
    if bf16 and fp16:
        raise ModelError("training_args.bf16 = true: fp16 = true as well. Expected one of them. Remove one.")
    place = _device(device)
    wanted = _wanted(dtype, bf16=bf16, fp16=fp16)
    compute = _native(place) if wanted is None else wanted
    if compute is torch.float16 and place.type == "cpu":
        key = "training_args.fp16 = true" if fp16 else f"model.dtype = {dtype!r}"
        raise ModelError(f"{key}: float16 needs a GPU. Expected bfloat16 or float32 on a CPU. Remove the line.")
    if compute is torch.bfloat16 and not _has_bf16(place):
        logger.warning("bfloat16 as asked for, but %s emulates it: expect it slower than float32", place)
    return Precision(device=str(place), compute_dtype=compute, autocast=compute is not torch.float32)


def _wanted(dtype: str | None, *, bf16: bool | None, fp16: bool | None) -> torch.dtype | None:
    """The compute type that the user asked for, or None."""
    if fp16:
        return torch.float16
    if bf16:
        return torch.bfloat16
    for key, given, name in (("bf16", bf16, "bfloat16"), ("fp16", fp16, "float16")):
        if given is False and dtype == name:
            raise ModelError(
                f"model.dtype = {dtype!r}: training_args.{key} = false says otherwise. Expected both alike."
                " Remove one of the lines."
            )
    if dtype is not None:
        return DTYPES[dtype]
    return torch.float32 if bf16 is False or fp16 is False else None


def _device(device: str | None) -> torch.device:
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device = {device!r}: not a device. Expected cpu, cuda, cuda:0 or mps.") from error
    missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if missing.get(place.type, False) or (place.index or 0) >= max(torch.cuda.device_count(), 1):
        raise ModelError(
            f"device = {device!r}: this machine has none ({torch.cuda.device_count()} CUDA devices). Expected"
            " a device that torch sees. Leave it out to let lora_ft choose."
        )
    return place


def _has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 natively."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return any(torch.cpu.get_capabilities().get(key, False) for key in CPU_BF16)
    return False


def _native(device: torch.device) -> torch.dtype:
    if _has_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def autocast_context(precision: Precision) -> AbstractContextManager[Any]:
    """The context for every forward pass of a base loaded with this precision."""
    if not precision.autocast:
        return nullcontext()
    return torch.autocast(torch.device(precision.device).type, dtype=precision.compute_dtype)


def cast_frozen_linears(model: nn.Module, precision: Precision) -> int:
    """Casts the frozen linear layers of the base once, so that autocast need not at every forward pass.

    Loss and gradients stay bit for bit what autocast alone gives. Left as they are: everything that trains,
    adapters (also idle ones), heads in `modules_to_save`, quantised layers, embeddings, norms, weights tied
    to an embedding, and layers whose adapter computes with the base's weight (DoRA and others but plain
    LoRA). From here on every forward pass must run under `autocast_context`, and adapters must not be merged
    into this copy of the base.

    Args:
        model: The base with its adapters attached.
        precision: The plan it was loaded with; without autocast nothing happens.

    Returns:
        How many layers were cast.
    """
    if not precision.autocast:
        return 0
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    layers = [layer for layer in _base_linears(model) if id(layer.weight) not in embedded]
    layers = [
        layer
        for layer in {id(layer): layer for layer in layers}.values()
        if layer.weight.dtype is torch.float32 and not any(weight.requires_grad for weight in layer.parameters())
    ]
    for layer in layers:
        for parameter in layer.parameters(recurse=False):
            parameter.data = parameter.data.to(precision.compute_dtype)
    return len(layers)


def _base_linears(module: nn.Module) -> Iterator[nn.Module]:
    """The linear layers of the base, also those in plain LoRA layers; exact types: no quantised ones."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        return
    if isinstance(module, BaseTunerLayer):
        if isinstance(module, LoraLayer) and not module.lora_variant:
            yield from _base_linears(module.get_base_layer())
    elif type(module) in (nn.Linear, Conv1D):
        yield module
    else:
        for child in module.children():
            yield from _base_linears(child)
