"""An adapter as vLLM and LoRAX read it: one rank, one scaling, no patterns; the answers stay the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_ft.adapters.export import LORAX
from lora_ft.adapters.export_rules import A, B, rank_for
from lora_ft.adapters.state import adapter_tensors

DROPPED = ("rank_pattern", "alpha_pattern", "use_rslora", "layers_to_transform", "layers_pattern", "exclude_modules")
"""What only plain peft reads of a config; folded into tensors and names here."""


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter in the layout of a server.

    Attributes:
        tensors: `lora_A` `(rank, in)` and `lora_B` `(out, rank)` of every layer, by peft's names.
        config: Content of `adapter_config.json`.
        rank: The one rank.
        changes: What was changed, in words; empty if nothing was.
        difference: Largest change of an element of `scaling * B @ A`, relative to the largest element; rounding alone.
    """

    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]
    rank: int
    changes: tuple[str, ...]
    difference: float


def served_adapter(model: PeftModel, *, server: str, base_name: str) -> ServedAdapter:
    """Brings a LoRA adapter into the layout of a server.

    Args:
        model: The adapted model, for which `check_servable` found no reason against.
        server: `vllm` or `lorax`.
        base_name: What goes into `base_model_name_or_path`.

    Returns:
        Tensors and config; plain peft loads them with equal answers.
    """
    state, config = adapter_tensors(model, base_name=base_name)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    layers = {name: layer for name, layer in layers.items() if name + A in state}
    ranks = {name: state[name + A].shape[0] for name in layers}
    scalings = {name: float(layer.scaling["default"]) for name, layer in layers.items()}
    rank = rank_for(server, max(ranks.values()))
    changes = _changes_of_rank(ranks, rank)
    tensors = {key: value.clone() for key, value in state.items()}
    alpha: float = rank
    factors = dict(scalings)
    if len(set(scalings.values())) == 1 and (alpha_of_all := next(iter(scalings.values())) * rank).is_integer():
        alpha, factors = int(alpha_of_all), dict.fromkeys(scalings, 1.0)
    elif set(scalings.values()) != {1.0}:
        changes.append("the scaling of each layer was multiplied into its lora_B, lora_alpha is r")
    if config.get("use_rslora"):
        changes.append("use_rslora was folded in: the scaling is lora_alpha / r")
    for name in layers:
        tensors[name + A] = _padded(state[name + A], (rank, state[name + A].shape[1]))
        tensors[name + B] = _padded(state[name + B] * factors[name], (state[name + B].shape[0], rank))
    difference = max(
        _difference(
            state[name + B] @ state[name + A] * scalings[name], tensors[name + B] @ tensors[name + A] * (alpha / rank)
        )
        for name in layers
    )
    if server == LORAX:
        added = _zeros_for_other_layers(model, layers, rank=rank)
        tensors.update(added)
        if added:
            changes.append(f"{len(added) // 2} layers without adapter got one of zeros: LoRAX wants all of a kind")
    config = {key: value for key, value in config.items() if key not in DROPPED and value is not None}
    config |= {"r": rank, "lora_alpha": alpha, "target_modules": _targets(model, tensors)}
    return ServedAdapter(tensors=tensors, config=config, rank=rank, changes=tuple(changes), difference=difference)


def _changes_of_rank(ranks: Mapping[str, int], rank: int) -> list[str]:
    padded = sorted({one for one in ranks.values() if one != rank})
    if not padded:
        return []
    count = sum(one != rank for one in ranks.values())
    return [f"{count} layers of rank {', '.join(map(str, padded))} were padded with zeros to rank {rank}"]


def _padded(tensor: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """A matrix in the upper left corner of a larger one of zeros."""
    if tuple(tensor.shape) == shape:
        return tensor.contiguous()
    larger = torch.zeros(shape, dtype=tensor.dtype)
    larger[: tensor.shape[0], : tensor.shape[1]] = tensor
    return larger


def _difference(before: torch.Tensor, after: torch.Tensor) -> float:
    """Largest change of an element, relative to the largest element."""
    largest = float(before.abs().max())
    return float((before - after).abs().max()) / largest if largest else 0.0


def _zeros_for_other_layers(model: PeftModel, layers: Mapping[str, LoraLayer], *, rank: int) -> dict[str, torch.Tensor]:
    """Adapters of zeros for the layers that are of an adapted kind, but have none."""
    kinds = {_kind(name): layer for name, layer in layers.items()}
    found: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and _kind(name) in kinds and name not in layers:
            layer = kinds[_kind(name)]
            found[name + A] = torch.zeros(rank, layer.in_features)
            found[name + B] = torch.zeros(layer.out_features, rank)
    return found


def _kind(name: str) -> str:
    """`model.layers.3.self_attn.q_proj` -> `model.layers.*.self_attn.q_proj`."""
    return re.sub(r"\.\d+\.", ".*.", name)


def _targets(model: PeftModel, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The adapted modules by the ends of their names where these mean no others, else in full."""
    adapted = {key.removesuffix(A) for key in tensors if key.endswith(A)}
    ends = {name.rpartition(".")[2] for name in adapted}
    inner = (".base_layer", ".lora_")
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D, LoraLayer)) and not any(part in name for part in inner)
    }
    if {name for name in linear if name.rpartition(".")[2] in ends} == adapted:
        return sorted(ends)
    return sorted(name.removeprefix("base_model.model.") for name in adapted)
