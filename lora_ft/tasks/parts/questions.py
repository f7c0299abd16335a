"""Question and context -> windows: [CLS] question [SEP] piece of the context [SEP], by the rules of each tokenizer.

A tokenizer that writes nothing between two texts (GPT) gets a line end there; one without a CLS token and without a
special token at the end gets its EOS token there, which then stands for "no answer": in a causal model only the last
token has read everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lora_ft.tasks.parts.problem import Problem
from lora_ft.tasks.parts.windows import Window, cut_windows

SEPARATOR = "\n"
"""Most tokens that a line end makes."""


def shortened(questions: Sequence[str], problem: Problem) -> tuple[list[str], list[bool]]:
    """Questions that leave at least as much room to the context as they take, and which of them were cut.

    Args:
        questions: The questions.
        problem: Its settings have `max_length` and `stride`.
    """
    processor, settings = problem.processor, problem.settings
    room = settings["max_length"] - processor.num_special_tokens_to_add(pair=True) - 1 - settings["stride"]
    encoded = processor(
        list(questions), add_special_tokens=False, truncation=False, padding=False, return_offsets_mapping=True
    )
    kept, cut = [], []
    for question, offsets in zip(questions, encoded["offset_mapping"], strict=True):
        too_long = len(offsets) > room // 2
        kept.append(question[: offsets[room // 2 - 1][1]] if too_long else question)
        cut.append(too_long)
    return kept, cut


def question_windows(questions: Sequence[str], contexts: Sequence[str], problem: Problem) -> list[Window]:
    """Windows over contexts, each with its question before it.

    Args:
        questions: As `shortened` leaves them.
        contexts: A context for each question.
        problem: Its settings have `max_length` and `stride`.

    Returns:
        The windows, by row and from left to right; `start` and `end` are places in the context.
    """
    processor, settings = problem.processor, problem.settings
    (between,) = processor("a", "a").encodings
    sequences = between.sequence_ids
    separated = sequences[sequences.index(1) - 1] is None
    ends = sequences[-1] is None or (processor.cls_token_id is not None and processor.cls_token_id in between.ids)
    asked = list(questions) if separated else [question.rstrip() + SEPARATOR for question in questions]
    room = replace(problem, settings={**settings, "max_length": settings["max_length"] - int(not ends)})
    windows = cut_windows(contexts, room, before=asked)
    return windows if ends else [_ended(window, processor) for window in windows]


def _ended(window: Window, processor: Any) -> Window:
    """A window with the EOS token at its end."""
    inputs = {name: [*values, values[-1]] for name, values in window.inputs.items()}
    inputs["input_ids"][-1] = processor.eos_token_id
    return replace(
        window, inputs=inputs, start=[*window.start, -1], end=[*window.end, -1], special=[*window.special, True]
    )


def null_position(window: Window, processor: Any) -> int:
    """The token that stands for "no answer": CLS, or the special token at the end where there is none."""
    ids = window.inputs["input_ids"]
    if processor.cls_token_id is not None and processor.cls_token_id in ids:
        return ids.index(processor.cls_token_id)
    return len(ids) - 1


def answer_tokens(window: Window, spans: Sequence[tuple[int, int]], *, null: int) -> list[int]:
    """First and last token of the answer; both `null` where it is not in the window as a whole, or there is none.

    Args:
        window: A window of the context.
        spans: Start and end of the right answers in characters; the first one is learned.
        null: The token that stands for "no answer".
    """
    own = [at for at, start in enumerate(window.start) if window.end[at] > start >= 0]
    if not spans or not own:
        return [null, null]
    start, end = spans[0]
    inside = [at for at in own if window.start[at] < end and window.end[at] > start]
    reaches = (window.first or window.start[own[0]] <= start) and (window.last or window.end[own[-1]] >= end)
    return [inside[0], inside[-1]] if inside and reaches else [null, null]
