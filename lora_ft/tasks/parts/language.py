"""Language models: the loss at labelled positions, its sums for each row, and texts cut into blocks of tokens.

A measured row: {"loss_sum": 41.7, "tokens": 18, "correct": 7}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

IGNORED = -100

CHUNK_POSITIONS = 1_024
"""Positions whose logits are float32 at one time: 600 MB at a vocabulary of 150,000."""

PROBE_COLUMNS = 64

SUMS = ("loss_sum", "tokens", "correct")


@dataclass(frozen=True)
class Frame:
    """The special tokens that a tokenizer puts around one text.

    Attributes:
        before: `[CLS]`, `<s>`; may be empty.
        after: `[SEP]`, `</s>`; may be empty.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]


def frame_of(processor: Any) -> Frame:
    """The special tokens that a tokenizer puts around a text, found by looking at what it does."""
    bare = plain_ids("a", processor)
    whole = list(processor("a")["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return Frame(tuple(whole[:start]), tuple(whole[start + len(bare) :]))
    return Frame((), ())


def plain_ids(text: str, processor: Any) -> list[int]:
    """The tokens of a text, without special tokens around it."""
    return list(processor(text, add_special_tokens=False, verbose=False)["input_ids"])


def end_of_text(processor: Any) -> tuple[int, ...]:
    """The token that ends a document, if the tokenizer has one."""
    return () if processor.eos_token_id is None else (int(processor.eos_token_id),)


def blocks(ids: Sequence[int], size: int) -> Iterator[tuple[int, list[int]]]:
    """Cuts a stream of tokens into blocks; each begins with the last token of the one before.

    A model learns nothing of the first token of a block. With this overlap, every token but the very first of the
    stream is predicted exactly once.

    Args:
        ids: The stream.
        size: Tokens a block, at least 2.

    Yields:
        Where the block begins in the stream, and its tokens; none for a stream of fewer than two tokens.
    """
    for start in range(0, len(ids) - 1, size - 1):
        yield start, list(ids[start : start + size])


def causal_labels(ids: Sequence[int], supervised: Sequence[bool] | None = None) -> list[int]:
    """Labels of a causal model, which are shifted inside the loss; nothing can predict the first token.

    Args:
        ids: Tokens.
        supervised: For each token whether it is to be learned; None: all.
    """
    wanted = [True] * len(ids) if supervised is None else list(supervised)
    return [token if index and wanted[index] else IGNORED for index, token in enumerate(ids)]


def fit(
    ids: Sequence[int], supervised: Sequence[bool], *, max_length: int, bos: Sequence[int]
) -> tuple[list[int], list[bool], bool]:
    """Cuts a sequence to `max_length` tokens so that its last answer stays, or begins, in it.

    Tokens go from the left, the start token excepted. Only an answer that would leave less than a quarter of the room
    to what it answers is cut at its end.

    Args:
        ids: Tokens.
        supervised: For each token whether it belongs to an answer.
        max_length: Tokens that may stay.
        bos: The tokens that every sequence starts with; kept where the sequence starts with them.

    Returns:
        Tokens and marks that stay, and whether any token went.
    """
    if len(ids) <= max_length:
        return list(ids), list(supervised), False
    last = max((index for index, mark in enumerate(supervised) if mark), default=len(ids) - 1)
    first = last
    while first and supervised[first] and supervised[first - 1]:
        first -= 1
    room = max(1, max_length // 4)
    start = max(0, min(last + 1 - max_length, first - min(room, first)))
    head = len(bos) if start and list(ids[: len(bos)]) == list(bos) and len(bos) < room else 0
    window = slice(start + head, start + max_length)
    return [*ids[:head], *ids[window]], [*supervised[:head], *supervised[window]], True


def language_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, items: torch.Tensor | int | float, label_smoothing: float
) -> torch.Tensor:
    """Cross-entropy at the labelled positions alone: only their logits become float32.

    Args:
        logits: `(rows, positions, vocabulary)`.
        labels: `(rows, positions)`, -100 where nothing is to be learned.
        items: What the sum is divided by.
        label_smoothing: As in `torch.nn.functional.cross_entropy`.

    Returns:
        A scalar.
    """
    import torch.nn.functional as F  # noqa: N812

    wanted = labels.ne(IGNORED)
    chosen = logits[wanted].float()  # (labelled, vocabulary)
    return F.cross_entropy(chosen, labels[wanted], label_smoothing=label_smoothing, reduction="sum") / items


def label_sums(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is kept of the logits of a measured batch: three numbers a row.

    Args:
        logits: `(rows, positions, vocabulary)`.
        labels: `(rows, positions)`, -100 where nothing is measured.

    Returns:
        `loss_sum` in nats, `tokens` and `correct`, `(rows,)` each.
    """
    import torch
    import torch.nn.functional as F  # noqa: N812

    rows, positions = labels.ne(IGNORED).nonzero(as_tuple=True)
    loss_sum = torch.zeros(len(labels), dtype=torch.float32, device=logits.device)
    correct = torch.zeros(len(labels), dtype=torch.long, device=logits.device)
    for start in range(0, len(rows), CHUNK_POSITIONS):
        row, position = rows[start : start + CHUNK_POSITIONS], positions[start : start + CHUNK_POSITIONS]
        chosen, wanted = logits[row, position].float(), labels[row, position]
        loss_sum.index_add_(0, row, F.cross_entropy(chosen, wanted, reduction="none"))
        correct.index_add_(0, row, chosen.argmax(-1).eq(wanted).long())
    tokens = labels.ne(IGNORED).sum(1)
    return {"loss_sum": loss_sum, "tokens": tokens, "correct": correct}


def decoded_sums(answer: Mapping[str, np.ndarray], index: int) -> dict[str, Any]:
    """The sums of one feature, as numbers."""
    return {
        "loss_sum": float(answer["loss_sum"][index]),
        "tokens": int(answer["tokens"][index]),
        "correct": int(answer["correct"][index]),
    }


def joined_sums(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums of a row, of those of its blocks; zero for a row without tokens."""
    return {
        "loss_sum": math.fsum(part["loss_sum"] for part in parts),
        "tokens": sum(part["tokens"] for part in parts),
        "correct": sum(part["correct"] for part in parts),
    }


def sums_scorer(predictions: Sequence[Mapping[str, Any]]) -> Callable[[Any], dict[str, float]]:
    """Loss, perplexity and token accuracy of any of the rows; see `Task.scorer`."""
    from lora_ft.metrics.language_model import language_model_counts, language_model_scores

    # a row that is answered and not measured (a chat that ends with a question) has no sums and counts for nothing
    counts = language_model_counts(*([row.get(name, 0) for row in predictions] for name in SUMS))
    return lambda rows: language_model_scores(counts, rows)


def pad_right(rows: Sequence[Sequence[int]], value: int, *, settings: Mapping[str, Any]) -> torch.Tensor:
    """Lists of tokens as one tensor `(rows, tokens)`; padding is always on the right, where nothing attends to it.

    Args:
        rows: Tokens or labels of each row.
        value: What fills the gaps: the pad token, or -100 for labels.
        settings: Of the processor: `padding: max_length` and `pad_to_multiple_of` say how wide.
    """
    import torch

    width = max(len(row) for row in rows)
    if settings.get("padding") == "max_length":
        width = max(width, int(settings["max_length"]))
    multiple = int(settings.get("pad_to_multiple_of") or 1)
    width = -(-width // multiple) * multiple
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], dtype=torch.long)


def length_mask(rows: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    """The attention mask `(rows, tokens)`, from lengths: a pad token may also be a token of the text."""
    import torch

    lengths = torch.tensor([len(row) for row in rows])
    return (torch.arange(width)[None, :] < lengths[:, None]).long()


def probe_logits(logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """A few logits of one position of each row: evenly spaced columns of the vocabulary.

    Args:
        logits: `(rows, positions, vocabulary)`.
        positions: One a row, `(rows,)`.

    Returns:
        `(rows, 64)`, or fewer columns of a smaller vocabulary.
    """
    import torch

    vocabulary = logits.shape[-1]
    columns = torch.linspace(0, vocabulary - 1, min(PROBE_COLUMNS, vocabulary), device=logits.device).long()
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows, positions][:, columns]


def last_positions(mask: torch.Tensor) -> torch.Tensor:
    """The last real position of each row `(rows,)` of a mask `(rows, positions)` that is padded on the right."""
    return mask.sum(1) - 1
