"""Masked language models: texts -> chunks -> batches with hidden words, and gaps -> fillings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_ft.tasks.parts.language import IGNORED, Frame, frame_of, length_mask, pad_right
from lora_ft.tasks.parts.masking import NO_WORD, Vocabulary, fixed_draws, hide, vocabulary_of
from lora_ft.tasks.parts.problem import Features, Problem

if TYPE_CHECKING:
    import torch

NO_GAP = -1


def encode_chunks(texts: Sequence[str], problem: Problem) -> Features:
    """Texts as chunks of `max_length` tokens with the number of each token's word; nothing is hidden yet.

    The texts follow each other in one stream with a separator between them, or are cut one by one (`line_by_line`). A
    chunk belongs to the row in which it begins.
    """
    features: Features = {name: [] for name in ("input_ids", "words", "length", "truncated", "row")}
    for start, ids, words, owners in _chunks_of(texts, problem):
        _add(features, input_ids=ids, words=words, length=len(ids), truncated=False, row=owners[start])
    return features


def encode_to_answer_or_measure(texts: Sequence[str], problem: Problem) -> Features:
    """Texts with gaps as one feature a gap, all others as chunks with words hidden that follow from their tokens."""
    settings, vocabulary = problem.settings, vocabulary_of(problem.processor)
    features: Features = {name: [] for name in ("input_ids", "labels", "gap", "length", "truncated", "row")}
    plain = list(texts)
    for row, text in enumerate(texts):
        ids, _ = _tokens(text, problem)
        gaps = [index for index, token in enumerate(ids) if token == vocabulary.mask]
        if gaps:
            plain[row] = ""
        for gap in gaps:
            seen, place, cut = _around(ids, gap, problem)
            labels = [IGNORED] * len(seen)
            _add(features, input_ids=seen, labels=labels, gap=place, length=len(seen), truncated=cut, row=row)
    for start, ids, words, owners in _chunks_of(plain, problem):
        probability, draws = settings["mlm_probability"], fixed_draws(ids)
        seen, labels = hide(ids, words, vocabulary, probability=probability, draws=draws)
        _add(features, input_ids=seen, labels=labels, gap=NO_GAP, length=len(seen), truncated=False, row=owners[start])
    return features


def masked_batch(
    features: Sequence[Mapping[str, Any]], problem: Problem, *, vocabulary: Vocabulary, training: bool
) -> dict[str, torch.Tensor]:
    """Pads features to a batch; in those of `encode_chunks` words are hidden now.

    Args:
        features: As they were encoded.
        problem: Its tokenizer and settings.
        vocabulary: Of the tokenizer.
        training: Whether chance comes from torch's global generator, or from the tokens.

    Returns:
        The model's inputs and `labels`, `(rows, tokens)`, and `gap` `(rows,)` where texts are answered.
    """
    import numpy as np
    import torch

    processor, settings = problem.processor, problem.settings
    tokens = [row["input_ids"] for row in features]
    labels = [row.get("labels", ()) for row in features]
    if "words" in features[0]:
        draws = np.random.default_rng(int(torch.randint(2**62, ()).item())) if training else None
        probability = settings["mlm_probability"]
        hidden = [
            hide(row["input_ids"], row["words"], vocabulary, probability=probability, draws=draws or fixed_draws(ids))
            for row, ids in zip(features, tokens, strict=True)
        ]
        tokens, labels = [seen for seen, _ in hidden], [wanted for _, wanted in hidden]
    ids = pad_right(tokens, processor.pad_token_id, settings=settings)
    batch = {"input_ids": ids, "attention_mask": length_mask(tokens, ids.shape[1])}
    if "token_type_ids" in processor.model_input_names:
        batch["token_type_ids"] = torch.zeros_like(ids)
    batch["labels"] = pad_right(labels, IGNORED, settings=settings)
    if "gap" in features[0]:
        batch["gap"] = torch.tensor([row["gap"] for row in features])
    return batch


def filled_text(parts: Sequence[Mapping[str, Any]], problem: Problem) -> dict[str, Any]:
    """The fillings of the gaps of one text.

    Args:
        parts: One a gap: its likeliest tokens, and the tokens around it.
        problem: Its tokenizer.

    Returns:
        `predictions`, a list of fillings for each gap, and `filled`, the text with the likeliest one in each.
    """
    processor = problem.processor
    best = iter(part["fillings"][0]["token"] for part in parts)
    mask = processor.mask_token_id
    complete = [next(best) if token == mask else token for token in parts[0]["input_ids"]]
    return {
        "filled": processor.decode(complete, skip_special_tokens=True),
        "predictions": [
            [
                {
                    "token": processor.decode([filling["token"]]).strip(),
                    "score": filling["score"],
                    "text": _with(part, filling["token"], processor),
                }
                for filling in part["fillings"]
            ]
            for part in parts
        ],
    }


def _with(part: Mapping[str, Any], token: int, processor: Any) -> str:
    """A text with one gap filled; other gaps stay to be seen."""
    ids = [*part["input_ids"][: part["gap"]], token, *part["input_ids"][part["gap"] + 1 :]]
    special = set(processor.all_special_ids) - {processor.mask_token_id, processor.unk_token_id}
    return str(processor.decode([token for token in ids if token not in special]))


def _tokens(text: str, problem: Problem) -> tuple[list[int], list[int]]:
    """The tokens of a text and the number of each one's word; special tokens within the text belong to none."""
    processor = problem.processor
    encoded = processor(text, add_special_tokens=False, verbose=False)
    ids = list(encoded["input_ids"])
    special = set(processor.all_special_ids)
    if not problem.settings["whole_word_mask"]:
        return ids, [NO_WORD if token in special else index for index, token in enumerate(ids)]
    words = [NO_WORD if word is None else word for word in encoded.word_ids()]
    return ids, [NO_WORD if token in special else word for token, word in zip(ids, words, strict=True)]


def _chunks_of(texts: Sequence[str], problem: Problem) -> Iterator[tuple[int, list[int], list[int], list[int]]]:
    """The framed chunks of texts: where each begins in its stream, its tokens, its words, and the stream's rows."""
    frame = frame_of(problem.processor)
    encoded = [_tokens(text, problem) for text in texts]
    streams = [(ids, words, [row] * len(ids)) for row, (ids, words) in enumerate(encoded)]
    if not problem.settings["line_by_line"]:
        streams = [_joined(encoded, frame)]
    size = problem.settings["max_length"] - len(frame.before) - len(frame.after)
    outside = [NO_WORD] * len(frame.before), [NO_WORD] * len(frame.after)
    for ids, words, owners in streams:
        for start in range(0, len(ids), size):
            numbers = list(words[start : start + size])
            if any(number != NO_WORD for number in numbers):
                chunk = [*frame.before, *ids[start : start + size], *frame.after]
                yield start, chunk, [*outside[0], *numbers, *outside[1]], owners


def _joined(encoded: Sequence[tuple[list[int], list[int]]], frame: Frame) -> tuple[list[int], list[int], list[int]]:
    """All texts as one stream, words numbered through, a separator between texts: tokens, words, rows."""
    ids: list[int] = []
    words: list[int] = []
    owners: list[int] = []
    first = 0
    for row, (tokens, numbers) in enumerate(encoded):
        if tokens:
            between = frame.after if ids else ()
            ids += [*between, *tokens]
            words += [NO_WORD] * len(between)
            words += [NO_WORD if number == NO_WORD else number + first for number in numbers]
            owners += [row] * (len(ids) - len(owners))
            first += max(0, 1 + max(numbers))
    return ids, words, owners


def _around(ids: Sequence[int], gap: int, problem: Problem) -> tuple[list[int], int, bool]:
    """A text with as many tokens around a gap as fit, the place of the gap in it, and whether tokens went."""
    frame = frame_of(problem.processor)
    size = problem.settings["max_length"] - len(frame.before) - len(frame.after)
    start = max(0, min(gap - size // 2, len(ids) - size))
    seen = [*frame.before, *ids[start : start + size], *frame.after]
    return seen, len(frame.before) + gap - start, len(ids) > size


def _add(features: Features, **values: Any) -> None:
    for name, value in values.items():
        features[name].append(value)
