"""LoRA layers of a model that read the same tensor are computed together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from lora_ft.ops.byte_dropout import MOST_DROPPED
from lora_ft.ops.lora_linear import FrozenLinear, lora_linears


class LeanLayer(Protocol):
    """A LoRA layer of peft that says what is frozen of it."""

    lora_A: nn.ModuleDict  # noqa: N815
    lora_B: nn.ModuleDict  # noqa: N815
    lora_dropout: nn.ModuleDict
    active_adapters: list[str]

    def frozen(self) -> FrozenLinear:
        """What does not train of it."""

    def compute_type(self, x: torch.Tensor) -> torch.dtype:
        """What it computes in without autocast."""


@dataclass(frozen=True)
class Held:
    """An output that was computed together with another layer's.

    Attributes:
        x: What was read.
        version: How often it had been changed in place.
        output: Of this layer.
    """

    x: torch.Tensor
    version: int
    output: torch.Tensor


class Readers:
    """Which layers of a model read the same tensor: found out in a pass that is watched, and used from then on.

    Args:
        byte_dropout: Whether dropout is ours too; without it layers with dropout are peft's.
        room_bytes: Bytes of 4-bit weights that may be kept dequantised.

    Attributes:
        kept_bytes: Bytes of those that are.
        draws_bytes: Whether a layer has dropped values by bytes.
        layers: How many layers there are.
        groups: First layer of a group -> its layers.
    """

    def __init__(self, *, byte_dropout: bool, room_bytes: int) -> None:
        self.byte_dropout = byte_dropout
        self.room_bytes = room_bytes
        self.kept_bytes = 0
        self.draws_bytes = False
        self.layers = 0
        self.groups: dict[LeanLayer, tuple[LeanLayer, ...]] = {}
        self._watched: dict[LeanLayer, torch.Tensor] | None = None
        self._ready: dict[LeanLayer, Held] = {}

    def output(self, layer: LeanLayer, x: torch.Tensor) -> torch.Tensor:
        """What a layer says of x, `(..., out)`; other layers that read x are computed with it."""
        held = self._ready.pop(layer, None)
        if held is not None and held.x is x and held.version == x._version:
            return held.output
        members, kind, p = self.groups.get(layer, (layer,)), x.device.type, dropped(layer)
        self.draws_bytes |= p > 0
        autocast = torch.is_autocast_enabled(kind)
        outputs = lora_linears(
            x,
            [one.frozen() for one in members],
            [matrices(one) for one in members],
            p=p,
            dtype=torch.get_autocast_dtype(kind) if autocast else layer.compute_type(x),
        )
        others = zip(members[1:], outputs[1:], strict=True)
        self._ready = {one: Held(x, x._version, output) for one, output in others}
        return outputs[0]

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Finds out in a forward pass, of any mode, who reads the same tensor one after the other within one module.

        Recomputed passes (activation checkpointing) must save what the first one saved, so groups never change later,
        and lie within what is computed again together: all cross-attentions read the same tensor too.

        Args:
            model: The model that is run.
        """
        owner: dict[Any, nn.Module] = {child: one for one in model.modules() for child in one.children()}
        self._watched = {}
        try:
            yield
        finally:
            calls, self._watched = list(self._watched.items()), None
        group: list[LeanLayer] = []
        for number, (layer, x) in enumerate(calls):
            same = number and x is calls[number - 1][1] and owner.get(layer) is owner.get(calls[number - 1][0])
            if not same or not alike(layer, group[0], x):
                group = []
            group.append(layer)
            if len(group) > 1:
                self.groups[group[0]] = tuple(group)

    def keep(self, weight: torch.Tensor) -> bool:
        """Whether a dequantised weight may be kept; it counts as kept then."""
        size = weight.numel() * weight.element_size()
        if self.kept_bytes + size > self.room_bytes:
            return False
        self.kept_bytes += size
        return True

    def notice(self, layer: LeanLayer, x: torch.Tensor) -> None:
        """Remembers what a layer read, where somebody watches."""
        if self._watched is not None:
            self._watched.setdefault(layer, x)


def active(layer: LeanLayer) -> str:
    """The name of the one adapter that a layer computes with."""
    (name,) = (one for one in layer.active_adapters if one in layer.lora_A)
    return name


def matrices(layer: LeanLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """A `(r, in)` and B `(out, r)` of a layer."""
    a, b = layer.lora_A[active(layer)], layer.lora_B[active(layer)]
    assert isinstance(a, nn.Linear) and isinstance(b, nn.Linear)
    return a.weight, b.weight


def dropped(layer: LeanLayer) -> float:
    """With which probability a layer drops what its A reads."""
    dropout = layer.lora_dropout[active(layer)]
    return float(dropout.p) if isinstance(dropout, nn.Dropout) else 0.0


def alike(one: LeanLayer, other: LeanLayer, x: torch.Tensor) -> bool:
    """Whether two layers that read x can be computed together."""
    return dropped(one) == dropped(other) and one.compute_type(x) == other.compute_type(x)


def is_known(layer: Any, *, byte_dropout: bool) -> bool:
    """Whether a layer of peft's is as `lora_linears` knows it: one plain adapter on a frozen layer, in training.

    Args:
        layer: One of this file's classes.
        byte_dropout: Whether dropout may be ours.
    """
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or not layer.training or not torch.is_grad_enabled():
        return False
    plain = names[0] not in layer.lora_variant and not layer.lora_bias[names[0]]
    frozen = not any(parameter.requires_grad for parameter in layer.get_base_layer().parameters(recurse=False))
    dropout = layer.lora_dropout[names[0]]
    known = not isinstance(dropout, nn.Dropout) or (byte_dropout and dropout.p <= MOST_DROPPED)
    return plain and frozen and known and not layer.disable_adapters and not layer.merged
