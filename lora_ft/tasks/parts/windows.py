"""Long texts in windows: where each token is in its text, and which window knows most of what is around it.

A text of 600 tokens with max_length 256 and stride 63 -> three windows that overlap by 63 tokens. Offsets come from the
tokenizer, are trimmed of blanks and never reach outside of the text; tests try them on each kind of tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_ft.errors import InputError
from lora_ft.recipe.schema import FieldTypes
from lora_ft.tasks.parts.problem import Problem
from lora_ft.tasks.parts.text import pad_features, text_settings

if TYPE_CHECKING:
    import torch

WINDOW_FIELDS: Mapping[str, FieldTypes] = {
    "max_length": (int,),
    "stride": (int,),
    "padding": (True, "longest", "max_length"),
    "pad_to_multiple_of": (int,),
}
"""The keys of the `processor` section that tasks on windows understand; nothing is ever cut off, so no `truncation`."""

MAX_DEFAULT_STRIDE = 128
METASPACE = "\u2581"
MIN_ROOM = 4
MIN_PAIR_ROOM = 10
"""Tokens besides special ones; with fewer a question, what separates it and the stride leave no step to the right."""


@dataclass(frozen=True)
class Window:
    """One window of a text.

    Attributes:
        row: Which text it is of.
        inputs: Model inputs, one list of numbers each, without padding.
        start: For each token where it begins in the text, in characters; -1 for tokens that are not of the text.
        end: For each token where it ends (exclusive); -1 likewise. A token of blanks begins where it ends.
        special: For each token whether it is one of the tokenizer's own (CLS, SEP, EOS).
        first: Whether it begins where the text begins.
        last: Whether it ends where the text ends.
    """

    row: int
    inputs: dict[str, list[int]]
    start: list[int]
    end: list[int]
    special: list[bool]
    first: bool
    last: bool


def window_settings(
    given: Mapping[str, Any], *, base_config: Mapping[str, Any], processor: Any, pair: bool
) -> dict[str, Any]:
    """The `processor` section with `max_length` and `stride` filled in.

    Args:
        given: The section as the recipe has it.
        base_config: The base's config.json.
        processor: The base's tokenizer.
        pair: Whether another text (a question) stands in each window; half of the room stays for it and its context.

    Returns:
        The section, completed.

    Raises:
        InputError: The tokenizer gives no offsets, or the stride leaves no room.
    """
    if not processor.is_fast:
        raise InputError(
            f"processor: the tokenizer of the base ({type(processor).__name__}) has no fast version and does not say "
            "where in a text its tokens are. Expected one with a tokenizer.json; choose another base"
        )
    filled = text_settings(given, base_config=base_config, processor=processor)
    room = filled["max_length"] - processor.num_special_tokens_to_add(pair=pair) - int(pair)
    if room < (MIN_PAIR_ROOM if pair else MIN_ROOM):
        raise InputError(
            f"processor.max_length = {filled['max_length']}: {room} tokens of text would fit into a window. "
            "Set it to 16 or more"
        )
    stride = filled.get("stride", min(MAX_DEFAULT_STRIDE, room // 4))
    limit = room // 2 if pair else room - 1
    if not 0 <= stride <= limit:
        raise InputError(
            f"processor.stride = {stride}: windows of processor.max_length = {filled['max_length']} tokens can overlap "
            f"by 0 to {limit} tokens. Set it to that, or leave it out ({min(MAX_DEFAULT_STRIDE, room // 4)})"
        )
    return {**filled, "stride": stride}


def cut_windows(texts: Sequence[str], problem: Problem, *, before: Sequence[str] | None = None) -> list[Window]:
    """Cuts texts into windows of at most `max_length` tokens that overlap by `stride` tokens.

    Args:
        texts: The texts.
        problem: Its settings have `max_length` and `stride`; its processor is a fast tokenizer.
        before: For each text another one (a question) that stands before it in each of its windows, never cut.

    Returns:
        The windows, by text and from left to right; at least one for each text.
    """
    processor, settings = problem.processor, problem.settings
    if processor.truncation_side != "right":
        processor.truncation_side = "right"  # else the windows are counted from the end of the text
    encoded = processor(
        *([list(texts)] if before is None else [list(before), list(texts)]),
        truncation=True if before is None else "only_second",
        max_length=settings["max_length"],
        stride=settings["stride"],
        padding=False,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    rows: list[int] = encoded["overflow_to_sample_mapping"]
    own = 0 if before is None else 1
    windows = []
    for index, (row, encoding) in enumerate(zip(rows, encoded.encodings, strict=True)):
        text = texts[row]
        spans = [
            _place(token, text, *offsets) if sequence == own else (-1, -1)
            for token, sequence, offsets in zip(encoding.tokens, encoding.sequence_ids, encoding.offsets, strict=True)
        ]
        windows.append(
            Window(
                row=row,
                inputs={name: list(encoded[name][index]) for name in processor.model_input_names if name in encoded},
                start=[start for start, _ in spans],
                end=[end for _, end in spans],
                special=[sequence is None for sequence in encoding.sequence_ids],
                first=index == 0 or rows[index - 1] != row,
                last=index == len(rows) - 1 or rows[index + 1] != row,
            )
        )
    return [window if window.inputs["input_ids"] else _with_a_token(window, processor) for window in windows]


def _with_a_token(window: Window, processor: Any) -> Window:
    """No model reads a window without a token, and a GPT tokenizer makes none of an empty text: the pad token."""
    inputs = {name: [1] if name == "attention_mask" else [0] for name in window.inputs}
    inputs["input_ids"] = [processor.pad_token_id]
    return replace(window, inputs=inputs, start=[-1], end=[-1], special=[True])


def _place(token: str, text: str, start: int, end: int) -> tuple[int, int]:
    """Where a token is; the blank that a metaspace tokenizer puts before a text claims the first character."""
    if not token.strip(METASPACE) and METASPACE not in text[start:end]:
        return start, start
    return trimmed(text, start, end)


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Start and end without blanks at either side, which byte-level and metaspace tokenizers count as part of a token.

    Args:
        text: The text.
        start: First character.
        end: The character after the last one.
    """
    start, end = max(start, 0), min(end, len(text))
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, max(start, end)


def place_words(windows: Sequence[Window], words: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Gives each word to one window and one token: its first token, in the window where that has most context.

    Args:
        windows: All windows of one text, from left to right.
        words: Start and end of each word in characters, in order.

    Returns:
        For each window its words as pairs of word number and token position. A word that the tokenizer makes no
        token of is in none; words that share a token have the same position.
    """
    best: dict[int, tuple[float, int, int]] = {}
    for index, window in enumerate(windows):
        positions = [at for at, start in enumerate(window.start) if window.end[at] > start >= 0]
        at = 0
        for word, (start, end) in enumerate(words):
            while at < len(positions) and window.end[positions[at]] <= start:
                at += 1
            if at == len(positions):
                break
            if window.start[positions[at]] < end:
                left = float("inf") if window.first else at
                right = float("inf") if window.last else len(positions) - 1 - at
                # a window that begins in the middle of a word has no context to the left of it, and loses to an earlier
                found = (-min(left, right), index, positions[at])
                best[word] = min(best.get(word, found), found)
    placed: list[list[tuple[int, int]]] = [[] for _ in windows]
    for word in sorted(best):
        _, index, position = best[word]
        placed[index].append((word, position))
    return placed


def pad_windows(features: Sequence[Mapping[str, Any]], problem: Problem) -> dict[str, torch.Tensor]:
    """Pads the model inputs of some features on the right, so that positions count from the left for every tokenizer.

    Args:
        features: Features without padding.
        problem: Its settings say how long; a `padding_side` of the tokenizer is not asked.

    Returns:
        Tensors `(features, tokens)`.
    """
    return pad_features(features, replace(problem, settings={**problem.settings, "padding_side": "right"}))
