"""Features -> logits, in batches of like length, in the order of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lora_ft.models.precision import Precision, autocast_context


def logits_of(
    model: torch.nn.Module,
    features: Sequence[dict[str, Any]],
    *,
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]],
    precision: Precision,
    batch_size: int,
    advance: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Runs a model over features.

    Args:
        model: An adapted model, or a base with a head.
        features: One mapping a row, without padding, each with `length`.
        collate: Pads a list of features to a batch.
        precision: What the model computes in.
        batch_size: Rows a batch.
        advance: Called with the number of rows done, for a progress bar.

    Returns:
        Logits, float32, `(rows, outputs)`, in the order of `features`.
    """
    order = sorted(range(len(features)), key=lambda index: -int(features[index]["length"]))
    parts: list[np.ndarray] = []
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode(), autocast_context(precision):
        for indices in _cut(order, batch_size):
            batch = collate([features[index] for index in indices])
            batch.pop("labels", None)
            outputs = model(**{name: tensor.to(device) for name, tensor in batch.items()})
            parts.append(outputs["logits"].float().cpu().numpy())
            if advance is not None:
                advance(len(indices))
    stacked = np.concatenate(parts)
    logits = np.empty_like(stacked)
    logits[order] = stacked
    return logits


def _cut(order: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]
