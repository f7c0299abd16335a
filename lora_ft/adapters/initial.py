"""PiSSA and OLoRA change the base in memory: how their adapters are saved for the original base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict

ATTRIBUTE = "lora_ft_initial_adapter"


def changes_base(config: Any) -> bool:
    """Whether this initialisation moves a part of the base's weights into the adapter.

    Args:
        config: A peft config.
    """
    return takes_from_base(vars(config).get("init_lora_weights"))


def takes_from_base(start: Any) -> bool:
    """The same of the value of `init_lora_weights`."""
    return isinstance(start, str) and (start.startswith("pissa") or start == "olora")


def remember_initial(model: PeftModel) -> None:
    """Keeps a copy of A and B as they are now; called once, right after such an adapter is attached."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    copies = {name: value.detach().cpu().clone() for name, value in state.items() if _is_factor(name)}
    vars(model)[ATTRIBUTE] = copies


def initial_adapter(model: PeftModel) -> Mapping[str, torch.Tensor]:
    """A and B as they were at the start; empty where the base is unchanged."""
    initial: Mapping[str, torch.Tensor] = vars(model).get(ATTRIBUTE, {})
    return initial


def for_original_base(
    state: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Turns a trained PiSSA or OLoRA adapter into a plain LoRA of twice the rank for the original base.

    The base in memory is `W - s B0 A0`, so the trained model `W - s B0 A0 + s B A` is `W` with the adapter
    `[B, -B0] [A; A0]`.

    Args:
        state: Tensors of the trained adapter by name.
        initial: A0 and B0 by the same names.

    Returns:
        All tensors, A of shape `(2 r, in)` and B of shape `(out, 2 r)`.

    Source:
        PiSSA, arXiv:2404.02948, appendix "converting PiSSA to LoRA"; peft's `subtract_mutated_init`.
    """
    converted = dict(state)
    for name, value in initial.items():
        now = state[name].detach()
        start = value.to(now)
        if ".lora_A" in name:
            converted[name] = torch.cat([now, start], dim=0)  # (2 r, in)
        else:
            converted[name] = torch.cat([now, -start], dim=1)  # (out, 2 r)
    return converted


def config_for_original_base(config: Any) -> None:
    """Doubles the rank in a config while keeping the scaling; changes `config` in place.

    Args:
        config: A copy of the LoRA config of the trained model.
    """
    grow = math.sqrt(2) if config.use_rslora else 2  # scaling is alpha / sqrt(r), or alpha / r
    config.init_lora_weights = True
    config.r *= 2
    config.lora_alpha *= grow
    config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    config.alpha_pattern = {name: grow * alpha for name, alpha in config.alpha_pattern.items()}


@contextmanager
def at_the_start(model: PeftModel) -> Iterator[None]:
    """Puts A and B back to their start for a while: the model then computes what the original base does."""
    initial = initial_adapter(model)
    factors = [(name, parameter) for name, parameter in model.named_parameters() if _is_factor(name)]
    parameters = {name.replace(".default.", "."): parameter for name, parameter in factors}
    trained = {name: parameters[name].detach().clone() for name in initial}
    try:
        with torch.no_grad():
            for name, value in initial.items():
                parameters[name].copy_(value)
        yield
    finally:
        with torch.no_grad():
            for name, value in trained.items():
                parameters[name].copy_(value)


def _is_factor(name: str) -> bool:
    """Whether a tensor is A or B of a LoRA pair."""
    return ".lora_A." in name or ".lora_B." in name
