"""Chats: messages -> text by a chat template, and which characters of it the assistant says.

One row: [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]

A template is a program that nobody can look into. Where it marks what the assistant says (`{% generation %}`), its
marks count. Elsewhere an answer is learned as the template writes it when it is the last one: it begins where the
prompt of `predict` ends, which must be how the answered chat begins; its content is found by rendering the chat once
more with other words in its place; and what the template writes behind it is what ends a turn.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ft.errors import DataError, InputError
from lora_ft.tasks.parts.language import plain_ids

ASSISTANT = "assistant"

STAND_IN = "\ue000stand\ue001in\ue002"
"""Content that no row has: private-use characters, which no template strips and no text begins or ends with."""

ANCHORS = ("\n", ":", "x")
"""What a text may follow without growing together with it; the first that does not is taken."""

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Message = Mapping[str, str]
Span = tuple[int, int]


@dataclass(frozen=True)
class RenderedChat:
    """A chat as text.

    Attributes:
        text: What the template made of it.
        spans: Where the assistant speaks: begin and end of each turn, the end of turn within.
        ended: Whether the template itself ends the last of these turns with something.
    """

    text: str
    spans: tuple[Span, ...]
    ended: bool


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with all that it may speak of beside the messages.

    Attributes:
        source: The template, Jinja.
        values: `bos_token` and the like, as the tokenizer has them, and the recipe's `chat_template_kwargs`.
        special: The texts that are special tokens; the first of them behind an answer ends the turn.
    """

    source: str
    values: Mapping[str, Any]
    special: tuple[str, ...] = ()

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The text of a chat.

        Args:
            messages: The turns.
            prompt: Whether the assistant is to speak next.

        Raises:
            DataError: The template refuses the chat.
        """
        return self._render(messages, prompt=prompt, marks=False)[0]

    def answered(self, messages: Sequence[Message]) -> list[RenderedChat]:
        """The text of a chat with the places where the assistant speaks.

        Some templates write an answer differently once another one follows (without its thoughts). Such an answer is
        learned from a text of its own, that ends with it.

        Args:
            messages: The turns; the last one is the assistant's.

        Returns:
            One text, before it one for each answer that needs its own.

        Raises:
            DataError: The template refuses the chat, leaves an answer out, or writes what comes before an answer
                differently once the answer is there.
        """
        turns = [index for index, message in enumerate(messages) if message["role"] == ASSISTANT]
        if GENERATION.search(self.source):
            return [self._marked(messages)]
        chats = [self._last_turn(messages[: index + 1]) for index in turns]
        last = chats[-1]
        together = [chat for chat in chats if last.text.startswith(chat.text[: chat.spans[0][1]])]
        alone = [chat for chat in chats if chat not in together]
        return [*alone, RenderedChat(last.text, tuple(chat.spans[0] for chat in together), last.ended)]

    def closing(self, messages: Sequence[Message]) -> str:
        """What the template writes behind the last answer of a chat, `<|im_end|>`; empty if nothing."""
        return self._ending(self._other(messages).rpartition(STAND_IN)[2])

    def _ending(self, behind: str) -> str:
        """The end of turn in what is written behind an answer: up to the first special token, else all of it."""
        ends = [behind.find(token) + len(token) for token in self.special if token in behind]
        return behind[: min(ends)] if ends else behind.rstrip()

    def _marked(self, messages: Sequence[Message]) -> RenderedChat:
        """A chat by the template's own marks; the end of turn is learned even where the mark ends before it."""
        closing = self.closing(messages)
        text, marks = self._render(messages, prompt=False, marks=True)
        spans = tuple(_closed(text, span, closing) for span in marks if span[0] < span[1])
        if not spans:
            raise DataError(_fault(messages, "the template marks nothing of it as generated"))
        return RenderedChat(text, spans, bool(closing) and text[: spans[-1][1]].rstrip().endswith(closing))

    def _last_turn(self, messages: Sequence[Message]) -> RenderedChat:
        """A chat with the place of its last turn, from the end of its prompt to the end of turn."""
        text, other = self.render(messages), self._other(messages)
        behind = other.rpartition(STAND_IN)[2]
        end, closing, start = len(text) - len(behind), self._ending(behind), 0
        if len(messages) == 1:
            start = _shared(text, other)
        else:
            before = self.render(messages[:-1], prompt=True)
            start = len(before)
            if not text.startswith(before):
                shared = _shared(text, before)
                reason = (
                    f"before turn {len(messages)} is there, its prompt ends in {before[shared:][-40:]!r}; afterwards "
                    f"that place reads {text[shared:][:40]!r}. The model would learn what `predict` never asks"
                )
                raise DataError(_fault(messages, reason))
        return RenderedChat(text, (_closed(text, (start, end), closing),), bool(closing))

    def _other(self, messages: Sequence[Message]) -> str:
        """The text of a chat with other words in the place of its last turn's content."""
        text = self.render([*messages[:-1], {**messages[-1], "content": STAND_IN}])
        if STAND_IN not in text:
            raise DataError(_fault(messages, f"the template leaves turn {len(messages)} out"))
        return text

    def _render(self, messages: Sequence[Message], *, prompt: bool, marks: bool) -> tuple[str, list[Span]]:
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, places = render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                chat_template=self.source,
                add_generation_prompt=prompt,
                return_assistant_tokens_mask=marks,
                **self.values,
            )
        except jinja2.exceptions.TemplateError as error:
            raise DataError(_fault(messages, f"the chat template refuses it: {error}")) from error
        return texts[0], [(int(start), int(end)) for start, end in places[0]] if marks else []


def template_of(settings: Mapping[str, Any], processor: Any) -> ChatTemplate:
    """The chat template of a task: the recipe's, else the tokenizer's.

    Raises:
        InputError: There is none.
    """
    source = settings.get("chat_template") or processor.chat_template
    if isinstance(source, Mapping):  # several templates by name
        source = source.get("default")
    if not source:
        raise InputError(
            "processor.chat_template: the tokenizer of this base has no chat template, and rows of messages need one. "
            "Give one: its text, or the path of a .jinja file"
        )
    values = {**processor.special_tokens_map, **settings.get("chat_template_kwargs", {})}
    special = tuple(token for token in processor.get_added_vocab() if token.strip())
    return ChatTemplate(str(source), values, special)


def with_template(processor: Any, given: Mapping[str, Any]) -> Any:
    """A tokenizer with the template that the recipe gives, so that it lies beside the adapter; else as it is.

    Args:
        processor: The tokenizer of the base.
        given: The recipe's `processor` section.
    """
    if "chat_template" not in given:
        return processor
    own = copy.copy(processor)
    own.chat_template = read_template(given["chat_template"])
    return own


def chat_settings(settings: Mapping[str, Any], processor: Any) -> dict[str, Any]:
    """The settings of a task on chats, a template that the recipe gives as text.

    Raises:
        InputError: There is no template, or it is no Jinja.
    """
    found = dict(settings)
    if "chat_template" in settings:
        found["chat_template"] = read_template(settings["chat_template"])
    template_of(found, processor)
    return found


def read_template(given: str) -> str:
    """The chat template that a recipe gives: its text, or what is in a .jinja file.

    Raises:
        InputError: There is no such file, or the text is no Jinja.
    """
    import jinja2

    source = given
    if "{" not in given:
        try:
            source = Path(given).expanduser().read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"processor.chat_template = {given!r}: neither a template ({{{{ ... }}}}) nor a file that can be read: "
                f"{error.strerror}. Give the text, or the path of a .jinja file"
            ) from error
    try:
        jinja2.Environment().parse(GENERATION.sub("", source).replace("{% endgeneration %}", ""))
    except jinja2.exceptions.TemplateSyntaxError as error:
        raise InputError(
            f"processor.chat_template: line {error.lineno} is no Jinja: {error.message}. Mend it"
        ) from error
    return source


def turn_end(template: ChatTemplate) -> str:
    """What ends a turn of the assistant, from a chat of one question; empty if the template ends it with nothing."""
    return template.closing([{"role": "user", "content": "a"}, {"role": ASSISTANT, "content": "b"}])


def cut_tokens(text: str, cuts: Sequence[int], processor: Any) -> list[list[int]]:
    """The tokens of a text in pieces, cut at characters.

    The tokens before a cut are those that the text up to there has by itself: a prompt is tokenized alone when a model
    answers it. Where a token would reach over a cut, the pieces are tokenized one by one.

    Args:
        text: The text.
        cuts: Characters, in ascending order.
        processor: The tokenizer.

    Returns:
        One list more than there are cuts; no special tokens are added.
    """
    whole = plain_ids(text, processor)
    ends = []
    for cut in cuts:
        before = plain_ids(text[:cut], processor)
        if whole[: len(before)] != before:
            edges = [0, *cuts, len(text)]
            first, *rest = (text[start:end] for start, end in itertools.pairwise(edges))
            return [plain_ids(first, processor), *(_continued(piece, processor) for piece in rest)]
        ends.append(len(before))
    edges = [0, *ends, len(whole)]
    return [whole[start:end] for start, end in itertools.pairwise(edges)]


def _continued(text: str, processor: Any) -> list[int]:
    """The tokens of a text that goes on: some tokenizers put a space before every text that they are given."""
    for anchor in ANCHORS:
        alone, together = plain_ids(anchor, processor), plain_ids(anchor + text, processor)
        if alone and together[: len(alone)] == alone:
            return together[len(alone) :]
    return plain_ids(text, processor)


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _closed(text: str, span: Span, closing: str) -> Span:
    """A turn with the end of turn, if that follows it."""
    start, end = span
    return (start, end + len(closing)) if closing and text.startswith(closing, end) else span


def _fault(messages: Iterable[Message], reason: str) -> str:
    """An error of one chat, with its first words: whoever encodes it does not know the row's number."""
    opening = next(iter(messages), {}).get("content", "")[:40]
    return (
        f"messages: the chat that begins {opening!r}: {reason}. Mend the row, or give a template that fits with "
        "processor.chat_template, its answers between {% generation %} and {% endgeneration %}"
    )
