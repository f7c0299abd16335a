"""Packing: several short sequences in one row of a batch, where none can see another.

No attention mask is handed over: transformers reads from position numbers that begin again where a sequence begins, and
builds the mask that fits the attention of the model. Whether a model obeys is found out, not believed: see
`prove_isolation`.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_ft.errors import ModelError
from lora_ft.tasks.parts.generation import unwrapped
from lora_ft.tasks.parts.language import IGNORED, pad_right
from lora_ft.tasks.parts.problem import Features

if TYPE_CHECKING:
    import torch

PROBE_TOKENS = 5
TOLERANCE = 1e-3
"""Largest difference that another order of additions makes, in units of the largest logit."""

_PROVEN: weakref.WeakSet[Any] = weakref.WeakSet()
"""Models in which packed sequences were found not to see each other, in this process."""


def pack(features: Features, max_length: int) -> Features:
    """Joins sequences to rows of at most `max_length` tokens: longest first, each into the first row with room.

    Args:
        features: `input_ids`, `labels`, `truncated` and `row`; no sequence is longer than `max_length`.
        max_length: Tokens a row.

    Returns:
        The same with `segments`, the lengths of the sequences in each row; `row` is that of the first.
    """
    order = sorted(range(len(features["input_ids"])), key=lambda index: -len(features["input_ids"][index]))
    rows: list[list[int]] = []
    free: list[int] = []
    for index in order:
        size = len(features["input_ids"][index])
        place = next((place for place, room in enumerate(free) if room >= size), None)
        if place is None:
            rows.append([])
            free.append(max_length)
            place = len(rows) - 1
        rows[place].append(index)
        free[place] -= size
    ids, labels = features["input_ids"], features["labels"]
    return {
        "input_ids": [[token for index in row for token in ids[index]] for row in rows],
        "labels": [[label for index in row for label in labels[index]] for row in rows],
        "segments": [[len(ids[index]) for index in row] for row in rows],
        "length": [sum(len(ids[index]) for index in row) for row in rows],
        "truncated": [any(features["truncated"][index] for index in row) for row in rows],
        "row": [features["row"][row[0]] for row in rows],
    }


def packed_batch(features: Sequence[Mapping[str, Any]], *, pad: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of packed rows: padding is a sequence of its own.

    Args:
        features: As `pack` made them.
        pad: The pad token.
        settings: Of the processor, see `pad_right`.

    Returns:
        `input_ids`, `labels` and `position_ids`, `(rows, tokens)`.
    """
    import torch

    ids = pad_right([row["input_ids"] for row in features], pad, settings=settings)
    labels = pad_right([row["labels"] for row in features], IGNORED, settings=settings)
    width = ids.shape[1]
    positions = [
        [position for size in (*row["segments"], width - row["length"]) for position in range(size)] for row in features
    ]
    return {"input_ids": ids, "labels": labels, "position_ids": torch.tensor(positions, dtype=torch.long)}


def prove_isolation(model: Any, *, vocabulary: int) -> None:
    """Makes sure, once for each model, that packed sequences do not see each other.

    Two sequences are packed; the first is changed; no answer in the second may move. And the second must be answered
    as it is alone, or its positions are wrong.

    Args:
        model: The model that is to be trained on packed rows.
        vocabulary: How many tokens there are to choose from.

    Raises:
        ModelError: They do.
    """
    if model in _PROVEN:
        return
    import torch
    from accelerate.utils import extract_model_from_parallel
    from transformers import PreTrainedModel

    inner = unwrapped(extract_model_from_parallel(model))
    kernel = str(inner.config._attn_implementation) if isinstance(inner, PreTrainedModel) else "sdpa"
    if kernel.startswith("flash"):  # transformers 5.23 looks for packed rows in batches of one row alone
        raise ModelError(
            f"processor.packing: with model.attn_implementation: {kernel} packed sequences see each other in batches "
            "of several rows. Use sdpa, or leave packing out"
        )
    device = next(model.parameters()).device
    numbers = torch.arange(3 * PROBE_TOKENS, device=device) * 7 % max(2, vocabulary)
    first, other, second = numbers.view(3, PROBE_TOKENS)
    training = model.training
    model.eval()
    with torch.no_grad():
        before, after = (_packed_logits(model, one, second) for one in (first, other))
        alone = model(input_ids=second[None], use_cache=False)["logits"][0].float()
    model.train(training)
    allowed = TOLERANCE * max(1.0, float(alone.abs().max()))
    if float((before - after).abs().max()) > allowed or not _near(before, alone, allowed):
        raise ModelError(
            "processor.packing: in this base the sequences of a packed row see each other: changing the first one "
            "moved the answers to the second. Leave packing out; rows of like length share a batch anyway "
            "(gate packed-isolation; checks: {packed-isolation: false} turns it off)"
        )
    _PROVEN.add(model)


def _packed_logits(model: Any, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Logits of the second of two packed sequences, `(tokens, vocabulary)`."""
    import torch

    ids = torch.cat([first, second])[None]
    positions = torch.cat([torch.arange(len(part), device=ids.device) for part in (first, second)])[None]
    logits: torch.Tensor = model(input_ids=ids, position_ids=positions, use_cache=False)["logits"]
    return logits[0, len(first) :].float()


def _near(packed: torch.Tensor, alone: torch.Tensor, allowed: float) -> bool:
    """Whether the answers are those of the sequence alone; in 16 bits only roughly."""
    return float((packed - alone).abs().max()) <= max(allowed, 0.05 * float(alone.abs().max()))
