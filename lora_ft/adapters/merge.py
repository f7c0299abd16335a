"""Folds an adapter into the weights of its base; what comes out is a plain model that needs no peft."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import peft
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_ft.errors import AdapterError

HALF = (torch.bfloat16, torch.float16)

DROPPED = {"QUESTION_ANS": "token_type_ids"}
"""peft's task type -> the input that its wrapper (0.21) takes and does not hand on to the base: the adapter never saw
it, and a merged base, which has no wrapper, must not see it either."""


def merge_into(model: PeftModel) -> nn.Module:
    """Folds the active adapter and its trained head into the base; `model` is used up.

    The sum is made in fp32 and rounded once, where the base lies in 16 bits. A weight that is adapted and tied to
    another one (an output layer that shares the embedding) is untied first: else the other one would change too.

    Args:
        model: An adapted base, in fp32 or as it is stored, neither quantised nor cast for autocast.

    Returns:
        The base model, of the class it had before, each weight in the type it had.

    Raises:
        AdapterError: The base is quantised or cast, or peft cannot merge this method; the reason is said.
    """
    config = model.peft_config[model.active_adapter]
    method = str(config.peft_type.value)
    if config.is_prompt_learning:
        raise _cannot(method, "its virtual tokens are inputs, not weights")
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    bases = [layer.get_base_layer() for layer in layers]
    _refuse_quantized(bases)
    _refuse_cast(model, bases)
    untie(model, bases)
    _unwrap_head(model)
    try:
        with _in_float32(bases):
            merged: nn.Module = model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _cannot(method, str(error) or type(error).__name__) from error
    left = [name for name, module in merged.named_modules() if isinstance(module, (BaseTunerLayer, PeftModel))]
    if left:
        raise _cannot(method, f"{len(left)} layers keep their adapter, {left[0]} for one")
    for name, parameter in merged.named_parameters():
        parameter.requires_grad_(False)
        if not torch.isfinite(parameter).all():
            raise _cannot(method, f"{name} holds numbers that are not finite")
    return merged.eval()


def untie(model: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Gives layers a weight of their own where they share it with another module.

    Args:
        model: The model they lie in; changed in place.
        layers: Some of its layers.
    """
    owners = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    for layer in layers:
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if owners[id(parameter)] > 1:
                layer.register_parameter(name, nn.Parameter(parameter.detach().clone(), requires_grad=False))


def _cannot(method: str, reason: str) -> AdapterError:
    return AdapterError(
        f"merge ({method}): peft {peft.__version__} cannot fold this adapter into its base: {reason}. Keep it beside "
        "the base, or train a LORA adapter."
    )


def _refuse_quantized(bases: list[nn.Module]) -> None:
    """A weight of 4 or 8 bits would round the adapter away."""
    packed = [layer for layer in bases for parameter in layer.parameters() if not parameter.is_floating_point()]
    if packed:
        raise AdapterError(
            f"merge: the base is quantised ({type(packed[0]).__name__}); folding an adapter into 4 or 8 bits rounds "
            "it away. Load the base without quantisation (--quantization none)."
        )


def _refuse_cast(model: PeftModel, bases: list[nn.Module]) -> None:
    """A base whose linear layers alone are in 16 bits was cast for autocast (`models.precision`): its bits are gone."""
    wrapped = [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    inside = {id(part) for one in wrapped for part in one.modules()}
    others = [
        parameter.dtype
        for module in model.modules()
        if id(module) not in inside and not isinstance(module, (nn.Linear, Conv1D))
        for parameter in module.parameters(recurse=False)
    ]
    linears = [layer for layer in bases if isinstance(layer, (nn.Linear, Conv1D))]
    if others and not set(others) & set(HALF) and any(layer.weight.dtype in HALF for layer in linears):
        raise AdapterError(
            "merge: the linear layers of this base were cast to 16 bits for autocast, the rest was not. Expected the "
            "base as it is stored. Load it again without the cast."
        )


def _unwrap_head(model: PeftModel) -> None:
    """Puts the trained head in the place of its wrapper; peft 0.21 stumbles over heads of several layers (poolers)."""
    wrappers = [(name, one) for name, one in model.named_modules() if isinstance(one, ModulesToSaveWrapper)]
    for name, wrapper in wrappers:
        if wrapper.active_adapters:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, wrapper.modules_to_save[wrapper.active_adapter])


@contextmanager
def _in_float32(bases: list[nn.Module]) -> Iterator[None]:
    """Adapted layers in fp32 for a while, then each parameter back in its own type."""
    narrow = {
        id(parameter): (parameter, parameter.dtype)
        for layer in bases
        for parameter in layer.parameters()
        if parameter.dtype in HALF
    }
    for parameter, _ in narrow.values():
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in narrow.values():
            parameter.data = parameter.data.to(dtype)
