"""What `lean_lora.py` is on layers of bitsandbytes: NF4 and FP4 are dequantised once, 8 bit stays with its kernel."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig
from peft.tuners.lora import bnb
from torch import nn

from lora_ft.adapters.lean_readers import Readers, active, is_known
from lora_ft.ops.lora_linear import FrozenLinear


class LeanLinear4bit(bnb.Linear4bit):  # type: ignore[misc]
    """LoRA on a layer in NF4 or FP4.

    bitsandbytes dequantises the weight in each forward pass and again in each backward pass. It never changes, so here
    it is kept once it was dequantised, as long as `Readers.room_bytes` has room.

    Args:
        readers: Of the model that the layer is in.
        target: The layer.
        adapter_name: peft's name of the adapter.
        **arguments: As peft gives them to its own class.
    """

    def __init__(self, readers: Readers, target: nn.Module, adapter_name: str, **arguments: Any) -> None:
        super().__init__(target, adapter_name, **arguments)
        self.readers = readers
        self.kept: torch.Tensor | None = None
        readers.layers += 1

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As peft's, `(..., out)`."""
        self.readers.notice(self, x)
        if args or kwargs or not is_known(self, byte_dropout=self.readers.byte_dropout):
            output: torch.Tensor = super().forward(x, *args, **kwargs)
            return output
        output = self.readers.output(self, x)
        return output if torch.is_autocast_enabled(x.device.type) else output.to(x.dtype)

    def frozen(self) -> FrozenLinear:
        """See `LeanLayer.frozen`."""
        return FrozenLinear(self._weight, self.get_base_layer().bias, float(self.scaling[active(self)]))

    def compute_type(self, x: torch.Tensor) -> torch.dtype:
        """See `LeanLayer.compute_type`."""
        return self.get_base_layer().compute_dtype or x.dtype

    def _weight(self) -> torch.Tensor:
        if self.kept is not None:
            return self.kept
        base = self.get_base_layer()
        weight: torch.Tensor = dequantize_4bit(base.weight.data, base.weight.quant_state)
        weight = weight if base.compute_dtype is None else weight.to(base.compute_dtype)
        if self.readers.keep(weight):
            self.kept = weight
        return weight


class LeanLinear8bit(bnb.Linear8bitLt):  # type: ignore[misc]
    """LoRA on a layer in 8 bit: the layer is bitsandbytes' (outliers apart), what LoRA adds is ours.

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
        added = self.readers.output(self, x)
        output = self.base_layer(x)
        return output + added.to(output.dtype)

    def frozen(self) -> FrozenLinear:
        """See `LeanLayer.frozen`: all but what LoRA adds."""
        return FrozenLinear(None, None, float(self.scaling[active(self)]))

    def compute_type(self, x: torch.Tensor) -> torch.dtype:
        """See `LeanLayer.compute_type`."""
        return x.dtype


def quantized_layer(
    readers: Readers, target: nn.Module, adapter_name: str, *, config: LoraConfig, **arguments: Any
) -> nn.Module | None:
    """LoRA on a quantised layer, or None where it is of a kind that we do not know.

    Args:
        readers: Of the model.
        target: The layer.
        adapter_name: peft's name of the adapter.
        config: Of the adapter.
        **arguments: As peft gives them to its own classes.
    """
    if type(target) is Linear4bit:
        return LeanLinear4bit(readers, target, adapter_name, config=config, **arguments)
    if type(target) is Linear8bitLt:
        return LeanLinear8bit(readers, target, adapter_name, config=config, **arguments)
    return None
