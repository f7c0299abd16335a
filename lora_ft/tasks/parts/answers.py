"""Answers in a context: where they are, whether the data says so rightly, and the best spans of two rows of logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

SEARCH = -1
"""An `answer_start` that says: look for the text."""

Span = tuple[float, int, int]
"""Score, first character, the character after the last one."""


def answer_spans(answers: Mapping[str, Sequence[Any]], context: str) -> list[tuple[int, int]]:
    """Start and end of each right answer in characters; none for an unanswerable question.

    Args:
        answers: `text` and `answer_start`, as long as each other; checked by `fault_of_answers`.
        context: The text that they are in.
    """
    found = []
    for text, given in zip(answers["text"], answers["answer_start"], strict=True):
        start = context.index(text) if given == SEARCH else int(given)
        found.append((start, start + len(text)))
    return found


def fault_of_answers(answers: Mapping[str, Sequence[Any]], context: str) -> str | None:
    """Why answers are not where the data says; None if all are. Offsets are never trusted.

    Args:
        answers: `text` and `answer_start`.
        context: The text that they should be in.
    """
    texts, starts = answers["text"], answers["answer_start"]
    if len(texts) != len(starts):
        return f"answers: {len(texts)} texts and {len(starts)} starts; expected one start for each text"
    for text, start in zip(texts, starts, strict=True):
        if not text.strip():
            return "answers: an answer is empty. A question without an answer has none at all, not an empty one"
        first = context.find(text)
        if start == SEARCH and first < 0:
            return f"answers: {text!r} is not in the context"
        if start != SEARCH and context[max(start, 0) : max(start, 0) + len(text)] != text:
            there = context[max(start, 0) : max(start, 0) + len(text)]
            hint = "it is nowhere in the context" if first < 0 else f"it is at {first}; answer_start -1 has it searched"
            return f"answers: {text!r} is not at character {start} of the context, {there!r} is; {hint}"
    return None


def best_spans(
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    *,
    starts: Sequence[int],
    ends: Sequence[int],
    max_tokens: int,
    count: int,
) -> list[Span]:
    """The best answers of one window: every span of at most `max_tokens` tokens of the context is compared.

    Args:
        start_logits: `(tokens,)`, padding allowed at the end.
        end_logits: Likewise.
        starts: Where each token begins in the context; -1 for tokens that are not of it.
        ends: Where each token ends; a token of blanks ends where it begins and neither begins nor ends an answer.
        max_tokens: Tokens of the longest answer.
        count: How many spans are wanted.

    Returns:
        At most `count` spans, best first; the score is the sum of both logits.
    """
    import numpy as np

    left, right = np.asarray(starts), np.asarray(ends)
    possible = right > left
    first = np.where(possible, np.asarray(start_logits, dtype=np.float64)[: len(left)], -np.inf)  # (tokens,)
    last = np.where(possible, np.asarray(end_logits, dtype=np.float64)[: len(left)], -np.inf)
    padded = np.concatenate([last, np.full(max_tokens - 1, -np.inf)])
    scores = first[:, None] + np.lib.stride_tricks.sliding_window_view(padded, max_tokens)  # (tokens, max_tokens)
    flat = scores.ravel()
    wanted = min(count, flat.size)
    chosen = np.argpartition(-flat, wanted - 1)[:wanted]
    chosen = chosen[np.lexsort((chosen, -flat[chosen]))]
    tokens = [(float(flat[at]), *divmod(int(at), max_tokens)) for at in chosen if np.isfinite(flat[at])]
    return [(score, int(left[token]), int(right[token + more])) for score, token, more in tokens]


def merged(windows: Sequence[Sequence[Span]], *, count: int) -> list[Span]:
    """The best spans of all windows of a context; one that several windows see counts once, with its best score."""
    best: dict[tuple[int, int], float] = {}
    for spans in windows:
        for score, start, end in spans:
            best[start, end] = max(score, best.get((start, end), float("-inf")))
    ranked = sorted(((score, start, end) for (start, end), score in best.items()), key=lambda one: (-one[0], one[1:]))
    return ranked[:count]
