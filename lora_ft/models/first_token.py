"""The last layer of an encoder whose head reads the first token alone: the others stop behind its attention.

In the last layer every token is still looked at (keys and values), but only what the first one makes of it goes on
through its linear layers: of 12 units of a BERT layer's work, 3 are left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

BEHIND_ATTENTION = {
    "BertLayer": "attention.output",
    "RobertaLayer": "attention.output",
    "XLMRobertaLayer": "attention.output",
    "CamembertLayer": "attention.output",
    "ElectraLayer": "attention.output",
    "TransformerBlock": "sa_layer_norm",  # DistilBERT's
}
"""Class of a layer in transformers 5.23 -> its first module behind the attention; from there on positions are apart."""

CLOSE = 1e-4


def go_on_with_first_token(model: nn.Module, forward: Callable[[], Any]) -> bool:
    """Lets the last layer of a model go on with the first token alone, wherever gradients are made.

    Only if a batch has the same logits with it: a head may read other tokens too.

    Args:
        model: The model, with or without adapters.
        forward: Computes the outputs of a batch of rows of several tokens, the same each time, with gradients.

    Returns:
        Whether it does.
    """
    lists = [one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one)]
    last = [one[-1] for one in lists if type(one[-1]).__name__ in BEHIND_ATTENTION]
    plain = _logits(forward()) if len(last) == 1 else None
    if plain is None or plain.dim() != 2:  # something is said of each token
        return False
    hook = last[0].get_submodule(BEHIND_ATTENTION[type(last[0]).__name__]).register_forward_pre_hook(_first)
    alone = _logits(forward())
    if alone is not None and plain.shape == alone.shape and torch.allclose(plain, alone, rtol=CLOSE, atol=CLOSE):
        return True
    hook.remove()
    return False


def _first(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    """Of tensors `(rows, tokens, width)`, `(rows, 1, width)`."""
    del module
    return tuple(one[:, :1] for one in arguments) if torch.is_grad_enabled() else None


def _logits(outputs: Any) -> torch.Tensor | None:
    """The logits of a model's outputs, or None where it has others."""
    known = isinstance(outputs, Mapping) and "logits" in outputs
    return outputs["logits"].detach().float() if known else None
