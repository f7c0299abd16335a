"""Text generation with a causal language model: plain text, prompts with completions, or chats.

One row of each kind, and what `predict` makes of a prompt:
text "To be, or not to be ..." | prompt "2 + 2 =", completion " 4" | messages [{"role": "user", "content": "Hi"}, ...]
prompt "2 + 2 ="  ->  {"generated_text": " 4"}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lora_ft.errors import DataError, InputError
from lora_ft.recipe.schema import Column, FieldTypes
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.generation import GENERATION_FIELDS
from lora_ft.tasks.parts.problem import Features, Generation, Parts, Problem, Rows
from lora_ft.tasks.parts.text_augmentation import TEXT_FIELDS as AUGMENTATION_FIELDS

if TYPE_CHECKING:
    import numpy as np
    import torch

TEXT, COMPLETION, CHAT = "text", "completion", "chat"

SHORTEST = 8
"""The least `max_length` that leaves room for a prompt and its answer."""


_EXAMPLE = (
    "i love my {0} . it works well and it is sturdy , not cheap and not slow . the handle of the {0} is soft and "
    "nice . again and again i was happy with this {0} . one day it broke and i was sad , then i had it back and all "
    "was well . read this , charge the {0} , and love it ."
)


class TextGeneration(Task):
    """Causal language modelling; which columns the rows have decides what is learned."""

    name: ClassVar[str] = "text-generation"
    summary: ClassVar[str] = "continues texts, completes prompts, answers chats (GPT-2, Llama, Qwen)"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    peft_task_type: ClassVar[str | None] = "CAUSAL_LM"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("messages", "messages", False, "a chat; the assistant's turns are learned", target=True),
        Column("prompt", "text", False, "what the model is given; with a chat model, what the user says"),
        Column("completion", "text", False, "what is learned, after its prompt", target=True),
        Column("text", "text", False, "plain text, all of which is learned", target=True),
    )
    column_sets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        CHAT: ("messages",),
        COMPLETION: ("prompt", "completion"),
        TEXT: ("text",),
    }
    free_texts: ClassVar[tuple[str, ...]] = ("prompt", "completion", "text")
    metrics: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(column_sets, ("perplexity", "token_accuracy"))
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"perplexity"})
    processor_fields: ClassVar[Mapping[str, FieldTypes]] = {
        "max_length": (int,),
        "padding": (True, "longest", "max_length"),
        "pad_to_multiple_of": (int,),
        "chat_template": (str,),
        "chat_template_kwargs": (dict,),
        "separator": (str,),
        "packing": (bool,),
    }
    generation_fields: ClassVar[Mapping[str, FieldTypes]] = GENERATION_FIELDS
    augmentation_fields: ClassVar[Mapping[str, FieldTypes]] = AUGMENTATION_FIELDS
    varied_texts: ClassVar[tuple[str, ...]] = ("prompt",)
    argument: ClassVar[str] = "prompt"
    smooths_labels: ClassVar[bool] = True
    token_labels: ClassVar[tuple[str, ...]] = ("labels",)
    least_tokens: ClassVar[int] = SHORTEST
    changes_model: ClassVar[bool] = True
    starting_point: ClassVar[tuple[str, str]] = ("Qwen/Qwen2.5-0.5B-Instruct", "data/train.jsonl")

    def settings(
        self, given: Mapping[str, Any], *, base_config: Mapping[str, Any], processor: Any, problem_type: str
    ) -> dict[str, Any]:
        """See `Task.settings`; a chat template that was given is kept as text."""
        from lora_ft.tasks.parts.chat import chat_settings
        from lora_ft.tasks.parts.generation import known_positions
        from lora_ft.tasks.parts.text import text_settings

        settings = text_settings(given, base_config=base_config, processor=processor)
        settings |= known_positions(base_config)
        if settings["max_length"] < SHORTEST:
            raise InputError(f"processor.max_length = {settings['max_length']}: expected {SHORTEST} tokens or more")
        unused = {"chat_template": CHAT, "chat_template_kwargs": CHAT, "separator": COMPLETION}
        for name, kind in unused.items():
            if name in given and problem_type != kind:
                raise InputError(
                    f"processor.{name}: it has no effect on rows of {', '.join(self.column_sets[problem_type])}, "
                    f"only on {', '.join(self.column_sets[kind])}. Leave it out"
                )
        if given.get("packing") and problem_type == TEXT:
            raise InputError("processor.packing: plain text fills its blocks without it. Leave it out")
        return chat_settings(settings, processor) if problem_type == CHAT else settings

    def fit_processor(self, processor: Any, rows: Iterable[Mapping[str, Any]], *, given: Mapping[str, Any]) -> Any:
        """See `Task.fit_processor`: the tokenizer beside the adapter has the template that was trained with."""
        del rows
        from lora_ft.tasks.parts.chat import with_template

        return with_template(processor, given)

    def fault(self, row: Mapping[str, Any], *, labels: Sequence[str]) -> str | None:
        """See `Task.fault`: an empty answer teaches to say nothing."""
        del labels
        if "completion" in row and not row["completion"].strip():
            return "completion: it is empty: expected a text to learn"
        for number, message in enumerate(row.get("messages", ()), start=1):
            if message["role"] == "assistant" and not message["content"].strip():
                return f"messages: turn {number}, the assistant's, is empty: expected a text to learn"
        return None

    def misfit(self, row: Mapping[str, Any], problem: Problem) -> str | None:
        """See `Task.misfit`: the chat template has the last word on a chat."""
        from lora_ft.tasks.parts.causal import misfit_of_chat

        return misfit_of_chat(row["messages"], problem) if "messages" in row else None

    def model_config(self, problem: Problem) -> dict[str, Any]:
        """See `Task.model_config`: the data decides nothing."""
        del problem
        return {}

    def encode(self, rows: Rows, problem: Problem, *, training: bool = False) -> Features:
        """See `Task.encode`. A feature with labels is measured, one without is answered.

        Raises:
            DataError: The chat template refuses a chat; a chat to be learned has no turn of the assistant; chats alone
                are given to an adapter that continues prompts.
            InputError: Generation settings that would have no effect.
        """
        from lora_ft.tasks.parts.causal import encode_chats, encode_completions, encode_prompts, encode_texts
        from lora_ft.tasks.parts.generation import check_generation
        from lora_ft.tasks.parts.packing import pack

        check_generation(problem)
        if problem.problem_type == CHAT:
            features = encode_chats(rows, problem, training=training)
        elif problem.problem_type == COMPLETION and "completion" in rows:
            features = encode_completions(rows, problem)
        elif problem.problem_type == TEXT and "text" in rows:
            return encode_texts(rows["text"], problem)
        elif "prompt" not in rows:
            raise DataError(
                f"messages: this adapter was trained on {' and '.join(self.column_sets[problem.problem_type])} and "
                "continues prompts. Expected a column prompt; take messages out of the rows"
            )
        else:
            return encode_prompts(rows["prompt"], problem)
        return (
            pack(features, problem.settings["max_length"]) if training and problem.settings.get("packing") else features
        )

    def references(self, rows: Rows, problem: Problem) -> list[Any]:
        """See `Task.references`: what is measured is in the sums of each row already."""
        del problem
        return [None] * len(next(iter(rows.values())))

    def collator(
        self, problem: Problem, *, training: bool = False
    ) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]:
        """See `Task.collator`; pads on the right, with labels that say so."""
        del training
        from lora_ft.tasks.parts.language import IGNORED, length_mask, pad_right
        from lora_ft.tasks.parts.packing import packed_batch

        pad, settings = problem.processor.pad_token_id, problem.settings

        def collate(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
            if "segments" in features[0]:
                return packed_batch(features, pad=pad, settings=settings)
            tokens = [row["input_ids"] for row in features]
            ids = pad_right(tokens, pad, settings=settings)
            batch = {"input_ids": ids, "attention_mask": length_mask(tokens, ids.shape[1])}
            if "labels" in features[0]:
                batch["labels"] = pad_right([row["labels"] for row in features], IGNORED, settings=settings)
            return batch

        return collate

    def forward(self, model: Any, batch: Mapping[str, Any], problem: Problem) -> Any:
        """See `Task.forward`; without a cache, whose presence would let packed sequences see each other."""
        from lora_ft.tasks.parts.labelled import following, outputs_at_labels
        from lora_ft.tasks.parts.packing import prove_isolation

        if "position_ids" in batch and "packed-isolation" not in problem.checks_off:
            prove_isolation(model, vocabulary=len(problem.processor))
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        labels = following(batch["labels"]) if "labels" in batch else None
        return outputs_at_labels(model, {**inputs, "use_cache": False}, labels, problem.label_loss)

    def loss(
        self,
        outputs: Any,
        batch: Mapping[str, Any],
        problem: Problem,
        *,
        items: torch.Tensor | int | float,
        class_weight: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> torch.Tensor:
        """See `Task.loss`: each position foretells the next token."""
        del problem, class_weight
        from lora_ft.tasks.parts.labelled import following, token_loss

        return token_loss(outputs, following(batch["labels"]), items=items, label_smoothing=label_smoothing)

    def answer(
        self, model: Any, batch: Mapping[str, Any], problem: Problem, *, outputs: Any | None
    ) -> dict[str, torch.Tensor]:
        """See `Task.answer`: sums over the labels of each row, generated tokens for rows without any."""
        from lora_ft.tasks.parts.causal import answered_prompts
        from lora_ft.tasks.parts.labelled import following, token_sums
        from lora_ft.tasks.parts.language import IGNORED

        labels = batch.get("labels")
        silent = [True] * len(batch["input_ids"]) if labels is None else labels.eq(IGNORED).all(1).tolist()
        found = {"generated": answered_prompts(model, batch, problem, rows=silent)} if any(silent) else {}
        if labels is None or all(silent):
            return found
        outputs = self.forward(model, batch, problem) if outputs is None else outputs
        return {**found, **token_sums(outputs, following(labels))}

    def decode(
        self, answer: Mapping[str, np.ndarray], features: Sequence[Mapping[str, Any]], problem: Problem
    ) -> list[Any]:
        """See `Task.decode`: sums of a measured row, the text of an answered one."""
        from lora_ft.tasks.parts.causal import answer_end
        from lora_ft.tasks.parts.generation import text_of
        from lora_ft.tasks.parts.language import IGNORED, decoded_sums

        stops = answer_end(problem).cut if "generated" in answer else ()
        return [
            decoded_sums(answer, index)
            if any(label != IGNORED for label in feature.get("labels", ()))
            else {"generated_text": text_of(answer["generated"][index], problem, stops=stops)}
            for index, feature in enumerate(features)
        ]

    def join(self, parts: Parts, row: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
        """See `Task.join`: the sums over the blocks of a text."""
        del row, problem
        from lora_ft.tasks.parts.language import joined_sums

        if parts and "generated_text" in parts[0]:
            return dict(parts[0])
        return joined_sums(parts)

    def scorer(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> Callable[[Any], dict[str, float]]:
        """See `Task.scorer`."""
        del references, problem
        from lora_ft.tasks.parts.language import sums_scorer

        return sums_scorer(predictions)

    def probe_values(self, outputs: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        """See `Task.probe_values`: some columns of the vocabulary after the last token of each row."""
        from lora_ft.tasks.parts.language import last_positions, probe_logits

        return probe_logits(outputs["logits"], last_positions(batch["attention_mask"]))

    def shown(self, feature: Mapping[str, Any], problem: Problem) -> str:
        """See `Task.shown`: the tokens as text, what is learned marked with its end; packed sequences apart."""
        from lora_ft.tasks.parts.shown import tokens_shown

        pieces, start = [], 0
        for size in feature.get("segments", (len(feature["input_ids"]),)):
            part = slice(start, start + size)
            pieces.append(tokens_shown(feature["input_ids"][part], feature["labels"][part], problem))
            start += size
        return " | ".join(pieces)

    def end_tokens(self, problem: Problem) -> tuple[int, ...]:
        """See `Task.end_tokens`: the end of an answer; plain text is one stream that ends nowhere."""
        from lora_ft.tasks.parts.causal import learned_ends

        return () if problem.problem_type == TEXT else learned_ends(problem)

    def uniform_loss(self, problem: Problem) -> float | None:
        """See `Task.uniform_loss`: ln of the vocabulary."""
        return math.log(len(problem.processor))

    def example_rows(self, problem_type: str) -> dict[str, list[Any]]:
        """See `Task.example_rows`."""
        prompts = ["is the pan good ?", "is the cable slow ?", "was the book nice ?", "was my phone cheap ?"]
        answers = [
            "the pan is good and sturdy .",
            "the cable is slow .",
            "this book was nice .",
            "my phone was not cheap .",
        ]
        if problem_type == TEXT:
            things = ("pan", "cable", "book", "phone")
            return {"prompt": [f"i love my {thing}" for thing in things], "text": [_EXAMPLE.format(t) for t in things]}
        if problem_type == COMPLETION:
            return {"prompt": prompts, "completion": [f" {answer}" for answer in answers]}
        chats = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return {"prompt": prompts, "messages": chats}

    def inputs(self) -> tuple[Column, ...]:
        """See `Task.inputs`: a chat that ends with the user is answered, one that ends with the assistant measured."""
        return tuple(column for column in self.columns if column.name in ("messages", "prompt"))

    def generation(self, model: Any, problem: Problem) -> Generation | None:
        """See `Task.generation`."""
        from lora_ft.tasks.parts.causal import causal_generation

        return causal_generation(model, problem)

    def stream(self, model: Any, row: Mapping[str, Any], problem: Problem) -> Iterator[str]:
        """See `Task.stream`."""
        from lora_ft.tasks.parts.causal import streamed_answer

        yield from streamed_answer(model, row, problem)
