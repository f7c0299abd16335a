"""Embeddings of a frozen base: the mean of its last hidden states, or several layers', over all that is no padding."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import transformers


def embed(model: transformers.PreTrainedModel, batch: Mapping[str, Any], *, layers: int = 1) -> torch.Tensor | None:
    """One vector for each row of a batch, from the base proper, without its head; of a seq2seq base from its encoder.

    Args:
        model: A base with a head; adapters on it have to be off.
        batch: Padded model inputs, rows first; names that the base proper does not know are left out.
        layers: The outputs of so many last layers are put side by side, as far as the base hands them out.

    Returns:
        `(rows, layers * width)` in float32, or None where the batch has no main input of the base.
    """
    images = model.main_input_name == "pixel_values"  # DETR is an encoder and decoder of features, not of images
    trunk = model.get_encoder() if model.config.is_encoder_decoder and not images else model.base_model
    if isinstance(model, transformers.TimmWrapperForImageClassification):
        states = model.timm_model.forward_features(batch["pixel_values"])
        return _mean(states, None)
    known = inspect.signature(trunk.forward).parameters
    inputs = {name: value for name, value in batch.items() if name in known and name != "labels"}
    if model.main_input_name not in inputs:
        return None
    outputs = trunk(**inputs, output_hidden_states=True) if layers > 1 else trunk(**inputs)
    lower = (outputs.get("hidden_states") or ())[1:][-layers:-1] if layers > 1 else ()  # the first is no layer's output
    mask = inputs.get("attention_mask")
    return torch.cat([_mean(states, mask) for states in (*lower, outputs["last_hidden_state"])], dim=1)


def _mean(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The mean over all dimensions but rows and width; those of `mask` (rows, tokens) where it fits.

    Args:
        states: `(rows, tokens, width)`, `(rows, width, height, width)` of images, or `(rows, width)`.
        mask: 1 where a token is no padding, or None.
    """
    states = states.float()
    if states.ndim == 4:
        return states.mean(dim=(2, 3))
    if states.ndim == 2:
        return states
    if mask is None or mask.shape != states.shape[:2]:
        return states.mean(dim=1)
    weights = mask.to(states.dtype)[..., None]
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
