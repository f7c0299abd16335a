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


class FirstToken:
    """Lets the last layer of a model go on with the first token alone, wherever gradients are made.

    Args:
        model: The model, with or without adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        self.on = False
        lists = [one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one)]
        last = [one[-1] for one in lists if type(one[-1]).__name__ in BEHIND_ATTENTION]
        self.known = len(last) == 1
        if self.known:
            module = last[0].get_submodule(BEHIND_ATTENTION[type(last[0]).__name__])
            module.register_forward_pre_hook(self._first)

    def _first(self, module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """Of tensors `(rows, tokens, width)`, `(rows, 1, width)`."""
        del module
        return tuple(one[:, :1] for one in arguments) if self.on and torch.is_grad_enabled() else None

    def prove(self, forward: Callable[[], Any]) -> None:
        """Stays on if a batch has the same logits with it; a head may read other tokens too.

        Args:
            forward: Computes the outputs of a batch of rows of several tokens, the same each time.
        """
        if not self.known:
            return
        plain = _logits(forward())
        if plain is None or plain.dim() != 2:  # what is said of each token
            return
        self.on = True
        alone = _logits(forward())
        assert alone is not None
        self.on = plain.shape == alone.shape and bool(torch.allclose(plain, alone, rtol=CLOSE, atol=CLOSE))


def _logits(outputs: Any) -> torch.Tensor | None:
    """The logits of a model's outputs, or None where it has others."""
    known = isinstance(outputs, Mapping) and "logits" in outputs
    return outputs["logits"].detach().float() if known else None
