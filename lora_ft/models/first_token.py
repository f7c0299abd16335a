"""The last layer of an encoder whose head reads the first token alone: no other looks around or goes on in it.

In the last layer every token is still looked at (keys and values), but only the first one looks, and only what it makes
of that goes on through its linear layers: of 12 units of a BERT layer's work, 3 are left, and of attention one row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

BERT = ("attention.self", "attention.output")
LAYERS = {
    "BertLayer": BERT,
    "RobertaLayer": BERT,
    "XLMRobertaLayer": BERT,
    "CamembertLayer": BERT,
    "ElectraLayer": BERT,
    "TransformerBlock": ("attention", "sa_layer_norm"),  # DistilBERT's
}
"""Class of a layer in transformers 5.23 -> its attention, and its first module behind; there positions are apart."""

FIRST_LOOKS = "lora_ft_first_looks"
"""Name of the attention with one query among those of transformers."""
CLOSE = {4: 1e-4, 2: 3e-2}
"""Largest difference in the proof, in units of the largest logit, for types of 4 and of 2 bytes."""


def go_on_with_first_token(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """Lets the last layer of a model go on with the first token alone, wherever gradients are made.

    Only if a batch has the same logits with it: a head may read other tokens too.

    Args:
        model: The model, with or without adapters.
        forward: Computes the outputs of a batch of rows of several tokens, the same each time, with gradients.

    Returns:
        Why it does not; None where it does.
    """
    lists = [one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one)]
    ends = [one for one in lists if type(one[-1]).__name__ in LAYERS]
    if len(ends) != 1:
        return "the base is not known as an encoder whose head may read the first token alone"
    if not any(parameter.requires_grad for parameter in ends[0].parameters()):
        return "nothing is trained up to the last layer"  # nothing is computed twice either
    last, plain = ends[0][-1], _logits(forward())
    looks, behind = (last.get_submodule(name) for name in LAYERS[type(last).__name__])
    config: Any = looks.config
    if plain is None or plain.dim() != 2:
        return "something is said of each token"
    if looks.is_causal:
        return "the first token sees itself alone"
    hook = behind.register_forward_pre_hook(_first)
    found = False
    try:
        if config._attn_implementation == "sdpa":
            transformers.AttentionInterface.register(FIRST_LOOKS, _first_looks)
            own = copy.copy(config)  # those of the other layers stay
            own._attn_implementation = FIRST_LOOKS
            looks.config = own
        alone = _logits(forward())
        found = alone is not None and plain.shape == alone.shape and _close(plain, alone)
    finally:
        if not found:
            hook.remove()
            looks.config = config
    return None if found else "the head reads other tokens too"


def _close(plain: torch.Tensor, alone: torch.Tensor) -> bool:
    """Whether logits are the same but for rounding."""
    allowed = CLOSE[2 if plain.dtype.itemsize == 2 else 4] * plain.float().abs().max()
    return bool((plain.float() - alone.float()).abs().le(allowed).all())


def _first_looks(
    module: nn.Module, query: torch.Tensor, *others: torch.Tensor | None, **arguments: Any
) -> tuple[torch.Tensor, None]:
    """What the first token sees, at each position; of every token, where no gradients are made.

    Args:
        module: Whose attention it is.
        query: `(rows, heads, tokens, width)`.
        *others: Key and value, of the same shape, and the mask, `(rows, 1, tokens, tokens)` or None.
        **arguments: Those of transformers' `sdpa` attention.

    Returns:
        `(rows, tokens, heads, width)`.
    """
    key, value, mask = others
    if not torch.is_grad_enabled():
        seen: torch.Tensor = sdpa_attention_forward(module, query, key, value, mask, **arguments)[0]
        return seen, None
    mask = None if mask is None else mask[:, :, :1]
    seen = sdpa_attention_forward(module, query[:, :, :1], key, value, mask, **arguments)[0]
    return seen.expand(-1, query.shape[2], -1, -1), None


def _first(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    """Of tensors `(rows, tokens, width)`, `(rows, 1, width)`."""
    del module
    return tuple(one[:, :1] for one in arguments) if torch.is_grad_enabled() else None


def _logits(outputs: Any) -> torch.Tensor | None:
    """The logits of a model's outputs, or None where it has others."""
    known = isinstance(outputs, Mapping) and "logits" in outputs
    return outputs["logits"].detach() if known else None
