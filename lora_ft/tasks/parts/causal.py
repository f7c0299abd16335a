"""Causal language models: texts, prompts and chats -> tokens with labels, and prompts -> answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_ft.errors import DataError
from lora_ft.tasks.parts.chat import ASSISTANT, ChatTemplate, Message, RenderedChat, cut_tokens, template_of, turn_end
from lora_ft.tasks.parts.generation import fixed_width, generate, generation_of, new_tokens, positions, stop_strings
from lora_ft.tasks.parts.language import blocks, causal_labels, end_of_text, fit, frame_of, plain_ids
from lora_ft.tasks.parts.problem import Features, Generation, Problem, Rows
from lora_ft.tasks.parts.streaming import pieces

if TYPE_CHECKING:
    import torch


def encode_texts(texts: Sequence[str], problem: Problem) -> Features:
    """Plain texts as blocks of `max_length` tokens: one stream with the end-of-text token behind each text.

    A block may hold several texts; it belongs to the row in which it begins. Texts without a token are left out.
    """
    processor = problem.processor
    frame, end = frame_of(processor), end_of_text(processor)
    stream: list[int] = []
    owners: list[int] = []
    for row, text in enumerate(texts):
        if ids := plain_ids(text, processor):
            stream += [*frame.before, *ids, *end]
            owners += [row] * (len(stream) - len(owners))
    features: Features = {name: [] for name in ("input_ids", "labels", "length", "truncated", "row")}
    for start, ids in blocks(stream, problem.settings["max_length"]):
        _add(features, ids, causal_labels(ids), truncated=False, row=owners[start])
    return features


def encode_prompts(prompts: Sequence[str], problem: Problem) -> Features:
    """Prompts to be continued, cut on the left; an empty one begins with the start or end token."""
    features: Features = {name: [] for name in ("input_ids", "length", "truncated", "row")}
    for row, prompt in enumerate(prompts):
        ids, truncated = _prompt_ids(prompt + problem.settings.get("separator", ""), problem)
        _add(features, ids, None, truncated=truncated, row=row)
    return features


def encode_completions(rows: Rows, problem: Problem) -> Features:
    """Prompts with completions; the labels are those of the completion and of the end-of-text token."""
    processor, separator = problem.processor, problem.settings.get("separator", "")
    before, end = list(frame_of(processor).before), list(end_of_text(processor))
    features: Features = {name: [] for name in ("input_ids", "labels", "length", "truncated", "row")}
    for row, (prompt, completion) in enumerate(zip(rows["prompt"], rows["completion"], strict=True)):
        given = prompt + separator
        asked, answer = cut_tokens(given + completion, [len(given)], processor)
        ids = [*before, *asked, *answer, *end]
        supervised = [False] * (len(before) + len(asked)) + [True] * (len(answer) + len(end))
        _add_fitted(features, ids, supervised, truncated=False, row=row, problem=problem)
    return features


def encode_chats(rows: Rows, problem: Problem, *, training: bool) -> Features:
    """Chats by the template; the labels are those of the assistant's turns, each with its end.

    A chat that ends with the assistant is learned or measured, turns after the last answer being left out in training;
    one that ends with somebody else is answered. Of a chat that is too long, the oldest exchanges go first.

    Raises:
        DataError: The template refuses a chat, or there is no answer to learn.
    """
    processor, template = problem.processor, template_of(problem.settings, problem.processor)
    features: Features = {name: [] for name in ("input_ids", "labels", "length", "truncated", "row")}
    for row, chat in enumerate(_chats(rows)):
        messages = up_to_last_answer(chat) if training else chat
        answered = messages[-1]["role"] == ASSISTANT
        kept = fitting(messages, template, problem)
        shortened = len(kept) < len(messages)
        for rendered in template.answered(kept) if answered else ():
            ids, supervised = _answered_chat(rendered, processor)
            _add_fitted(features, ids, supervised, truncated=shortened, row=row, problem=problem)
        if not answered:
            ids, cut = _cut_prompt(plain_ids(template.render(kept, prompt=True), processor), problem)
            _add(features, ids, causal_labels(ids, [False] * len(ids)), truncated=shortened or cut, row=row)
    return features


def up_to_last_answer(messages: Sequence[Message]) -> list[Message]:
    """A chat without what follows its last answer.

    Raises:
        DataError: It has none.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == ASSISTANT]
    if not turns:
        roles = ", ".join(message["role"] for message in messages)
        raise DataError(
            f"messages: the chat that begins {messages[0]['content'][:40]!r} has no turn of the assistant to learn "
            f"(roles: {roles}). Leave the row out, or name its roles system, user and assistant"
        )
    return list(messages[: turns[-1] + 1])


def misfit_of_chat(messages: Sequence[Message], problem: Problem) -> str | None:
    """Why nothing can be learned from a chat with this template; None if something can."""
    try:
        learned = up_to_last_answer(messages)
        template_of(problem.settings, problem.processor).answered(learned)
    except DataError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class AnswerEnd:
    """What ends an answer.

    Attributes:
        tokens: Tokens beside the tokenizer's own and the base's.
        searched: Texts that generation must look for.
        cut: Texts that are no part of the answer, nor what follows them.
    """

    tokens: tuple[int, ...]
    searched: tuple[str, ...]
    cut: tuple[str, ...]


def answer_end(problem: Problem) -> AnswerEnd:
    """What ends an answer: the recipe's stop strings and, in a chat, what the template ends a turn with."""
    stops = stop_strings(problem)
    if problem.problem_type != "chat":
        return AnswerEnd((), stops, stops)
    end = turn_end(template_of(problem.settings, problem.processor)).strip()
    if not end:
        return AnswerEnd((), stops, stops)
    ids = plain_ids(end, problem.processor)
    if len(ids) == 1:
        return AnswerEnd((ids[0],), stops, (*stops, end))
    return AnswerEnd((), (*stops, end), (*stops, end))


def answered_prompts(
    model: Any, batch: Mapping[str, torch.Tensor], problem: Problem, *, rows: Sequence[bool]
) -> torch.Tensor:
    """What a model generates for some rows of a batch.

    Args:
        model: The model.
        batch: Padded on the right; generation needs it padded on the left.
        problem: Its generation settings and tokenizer.
        rows: Which rows are prompts.

    Returns:
        New tokens `(rows, max_new_tokens)`, filled with -1; rows that are no prompts have none.
    """
    lengths = batch["attention_mask"].sum(1).tolist()
    prompts = [
        _with_room(ids[:length].tolist(), model, problem)
        for ids, length, asked in zip(batch["input_ids"], lengths, rows, strict=True)
        if asked
    ]
    inputs = _left_padded(prompts, problem, device=batch["input_ids"].device)
    end = answer_end(problem)
    found = generate(model, inputs, problem, ends=end.tokens, stops=end.searched)
    answers = iter(found[:, inputs["input_ids"].shape[1] :].tolist())
    return fixed_width([next(answers) if asked else [] for asked in rows], new_tokens(problem, model))


def streamed_answer(model: Any, row: Mapping[str, Any], problem: Problem) -> Iterator[str]:
    """The answer to one row, piece by piece; see `Task.stream`."""
    rows = {name: [value] for name, value in row.items()}
    if problem.problem_type == "chat":
        features = encode_chats(rows, problem, training=False)
    else:
        features = encode_prompts(rows["prompt"], problem)
    prompt, end = _with_room(features["input_ids"][0], model, problem), answer_end(problem)
    inputs = _left_padded([prompt], problem, device=next(model.parameters()).device)
    yield from pieces(model, inputs, problem, ends=end.tokens, stops=end.searched, cut=end.cut)


def learned_ends(problem: Problem) -> tuple[int, ...]:
    """The token that ends what is learned; none where a template ends turns with words, whose tokens may differ."""
    processor = problem.processor
    if problem.problem_type != "chat":
        return end_of_text(processor)
    template = template_of(problem.settings, processor)
    closing = turn_end(template)
    if closing and closing not in template.special:
        return ()
    return tuple(plain_ids(closing, processor)) or end_of_text(processor)


def causal_generation(model: Any, problem: Problem) -> Generation:
    """What answers are generated by; see `Task.generation`."""
    end = answer_end(problem)
    return generation_of(model, problem, ends=end.tokens, stops=end.searched)


def _add(features: Features, ids: list[int], labels: list[int] | None, *, truncated: bool, row: int) -> None:
    """Puts one sequence to the features."""
    new = {"input_ids": ids, "labels": labels, "length": len(ids), "truncated": truncated, "row": row}
    for name, values in features.items():
        values.append(new[name])


def _add_fitted(
    features: Features, ids: list[int], supervised: list[bool], *, truncated: bool, row: int, problem: Problem
) -> None:
    """Puts one sequence to the features, cut to `max_length`."""
    size, before = problem.settings["max_length"], frame_of(problem.processor).before
    ids, supervised, cut = fit(ids, supervised, max_length=size, bos=before)
    _add(features, ids, causal_labels(ids, supervised), truncated=truncated or cut, row=row)


def _prompt_ids(text: str, problem: Problem) -> tuple[list[int], bool]:
    """The tokens of a prompt, at least one, and whether some were cut."""
    processor = problem.processor
    ids = [*frame_of(processor).before, *plain_ids(text, processor)] or [*end_of_text(processor)]
    return _cut_prompt(ids or [processor.pad_token_id], problem)


def _cut_prompt(ids: list[int], problem: Problem) -> tuple[list[int], bool]:
    """A prompt cut on the left."""
    size, before = problem.settings["max_length"], frame_of(problem.processor).before
    kept, _, cut = fit(ids, [False] * len(ids), max_length=size, bos=before)
    return kept, cut


def _chats(rows: Rows) -> list[list[Message]]:
    """The chats of some rows; a prompt is a chat that the user begins."""
    if "messages" in rows:
        return [list(messages) for messages in rows["messages"]]
    return [[{"role": "user", "content": prompt}] for prompt in rows["prompt"]]


def fitting(messages: list[Message], template: ChatTemplate, problem: Problem) -> list[Message]:
    """A chat without its oldest exchanges, as many as must go for the rest to fit; the system's turn stays.

    Args:
        messages: The turns.
        template: The chat template.
        problem: Its tokenizer and `max_length`.
    """
    size = problem.settings["max_length"]
    while True:
        asking = messages[-1]["role"] != ASSISTANT
        if len(plain_ids(template.render(messages, prompt=asking), problem.processor)) <= size:
            return messages
        head = 1 if messages[0]["role"] == "system" else 0
        answers = [index for index, message in enumerate(messages) if message["role"] == ASSISTANT]
        if not answers or answers[0] + 1 >= len(messages):
            return messages
        messages = [*messages[:head], *messages[answers[0] + 1 :]]


def _answered_chat(chat: RenderedChat, processor: Any) -> tuple[list[int], list[bool]]:
    """The tokens of a chat, and for each whether the assistant says it; the last turn always ends with something."""
    cuts = [place for span in chat.spans for place in span]
    ids: list[int] = []
    supervised: list[bool] = []
    for index, piece in enumerate(cut_tokens(chat.text, cuts, processor)):
        ids += piece
        supervised += [index % 2 == 1] * len(piece)
    if not chat.ended:
        keep = len(supervised) - next((at for at, mark in enumerate(reversed(supervised)) if mark), 0)
        end = list(end_of_text(processor))
        ids, supervised = [*ids[:keep], *end], [*supervised[:keep], *[True] * len(end)]
    return ids, supervised


def _with_room(ids: list[int], model: Any, problem: Problem) -> list[int]:
    """A prompt that leaves room for the answer, cut on the left."""
    return ids[new_tokens(problem, model) - positions(model) :]


def _left_padded(prompts: Sequence[list[int]], problem: Problem, *, device: torch.device) -> dict[str, torch.Tensor]:
    """Prompts as a batch whose answers all begin at the same place."""
    import torch

    width, pad = max(map(len, prompts)), problem.processor.pad_token_id
    ids = [[*[pad] * (width - len(prompt)), *prompt] for prompt in prompts]
    mask = [[*[0] * (width - len(prompt)), *[1] * len(prompt)] for prompt in prompts]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}
