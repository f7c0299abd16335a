"""How large a base is: parameters as if unquantised, and bytes as they are in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class BaseSize:
    """Size of a base.

    Attributes:
        parameters: Number of parameters; a packed 4-bit weight counts as the matrix it stands for.
        bytes: Bytes that they take in memory, with the constants of quantised weights.
    """

    parameters: int
    bytes: int


def base_size(model: nn.Module) -> BaseSize:
    """Counts the parameters of a base, shared ones once.

    Args:
        model: A base as loaded, before adapters are attached (they would count), quantised or not.

    Returns:
        Parameters and bytes.
    """
    count = size = 0
    for parameter in model.parameters():
        state, constants = (None, []) if type(parameter) is nn.Parameter else _quantised(parameter)
        count += parameter.numel() if state is None else state.shape.numel()
        size += sum(tensor.nbytes for tensor in (parameter, *constants))
    return BaseSize(parameters=count, bytes=size)


def _quantised(parameter: nn.Parameter) -> tuple[Any, list[torch.Tensor]]:
    """The state of a 4-bit weight, and the scales and code books of a quantised one.

    bitsandbytes is imported here, so that plain LoRA does without it. An int8 weight has its scales until
    its first forward pass.
    """
    from bitsandbytes.nn import Int8Params, Params4bit

    if isinstance(parameter, Params4bit):
        state = parameter.quant_state
        nested = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
        return state, [state.absmax, state.code, *nested]
    if isinstance(parameter, Int8Params) and parameter.SCB is not None:
        return None, [parameter.SCB]
    return None, []
