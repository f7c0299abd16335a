"""peft's LoRA layers, computed by `ops/lora_linear.py` while they train; layers that read the same input together.

peft makes them itself: its LoraConfig takes layer classes of one's own. What the function does not know (DoRA and other
variants, merged or several adapters, evaluations) peft's own forward computes, with the same parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_ft.adapters.lean_readers import Readers, active, is_known
from lora_ft.ops.lora_linear import FrozenLinear


class LeanLinear(Linear):  # type: ignore[misc]
    """LoRA on a linear layer in full precision, or on GPT-2's Conv1D.

    Args:
        readers: Of the model that the layer is in.
        target: The layer.
        adapter_name: peft's name of the adapter.
        **arguments: As peft gives them to its own class.
    """

    def __init__(self, readers: Readers, target: nn.Module, adapter_name: str, **arguments: Any) -> None:
        super().__init__(target, adapter_name, **arguments)
        self.readers = readers
        readers.layers += 1

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As peft's, `(..., out)`."""
        self.readers.notice(self, x)
        if args or kwargs or not is_known(self, byte_dropout=self.readers.byte_dropout):
            output: torch.Tensor = super().forward(x, *args, **kwargs)
            return output
        return self.readers.output(self, x)

    def frozen(self) -> FrozenLinear:
        """See `LeanLayer.frozen`."""
        base = self.get_base_layer()
        scaling = float(self.scaling[active(self)])
        if self.fan_in_fan_out:  # Conv1D keeps (in, out)
            return FrozenLinear(base.weight.t, base.bias, scaling)
        return FrozenLinear(lambda: base.weight, base.bias, scaling)

    def compute_type(self, x: torch.Tensor) -> torch.dtype:
        """See `LeanLayer.compute_type`."""
        del x
        dtype: torch.dtype = self.get_base_layer().weight.dtype
        return dtype


@contextmanager
def lean_layers(config: Any, readers: Readers) -> Iterator[None]:
    """Makes peft take our layers for those of the base that we know, within the context.

    Args:
        config: Of the adapter.
        readers: Of the model.
    """
    if type(config) is not LoraConfig:
        yield  # peft takes its own for whatever is not LoRA
        return

    def make(target: nn.Module, adapter_name: str, *, config: LoraConfig, **arguments: Any) -> nn.Module | None:
        if type(target) is nn.Linear and not config.fan_in_fan_out:
            return LeanLinear(readers, target, adapter_name, config=config, **arguments)
        if type(target) is Conv1D and config.fan_in_fan_out:
            return LeanLinear(readers, target, adapter_name, config=config, is_target_conv_1d_layer=True, **arguments)
        if type(target).__module__.startswith("bitsandbytes."):
            from lora_ft.adapters.lean_quantized import quantized_layer  # it imports bitsandbytes

            return quantized_layer(readers, target, adapter_name, config=config, **arguments)
        return None  # peft goes on to its own

    config._register_custom_module({nn.Linear: make, Conv1D: make})
    try:
        yield
    finally:
        config._custom_modules = None  # neither copied nor pickled with the config
