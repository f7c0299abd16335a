"""Text to text with an encoder and a decoder: summaries, translations, answers (T5, BART).

One row: text "The storm took the roof of ...", target "A storm took a roof."
->  {"generated_text": "A storm took a roof."}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lora_ft.errors import InputError
from lora_ft.recipe.schema import Column, FieldTypes
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.generation import GENERATION_FIELDS
from lora_ft.tasks.parts.problem import Features, Generation, Problem, Rows
from lora_ft.tasks.parts.text_augmentation import TEXT_FIELDS as AUGMENTATION_FIELDS

if TYPE_CHECKING:
    import numpy as np
    import torch

KIND = "text2text_generation"
DEFAULT_TARGET_LENGTH = 128
METRICS = ("rouge_l", "rouge1", "rouge2", "bleu", "exact_match")


class Text2TextGeneration(Task):
    """Sequence to sequence; measured on what it generates."""

    name: ClassVar[str] = "text2text-generation"
    summary: ClassVar[str] = "turns a text into another one: summaries, translations (T5, BART)"
    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    peft_task_type: ClassVar[str | None] = "SEQ_2_SEQ_LM"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("text", "text", True, "what the model reads"),
        Column("target", "text", True, "what it is to write", target=True),
    )
    free_texts: ClassVar[tuple[str, ...]] = ("text", "target")
    metrics: ClassVar[Mapping[str, tuple[str, ...]]] = {KIND: METRICS}
    processor_fields: ClassVar[Mapping[str, FieldTypes]] = {
        "max_length": (int,),
        "max_target_length": (int,),
        "prefix": (str,),
        "decoder_start_token_id": (int,),
        "padding": (True, "longest", "max_length"),
        "pad_to_multiple_of": (int,),
    }
    generation_fields: ClassVar[Mapping[str, FieldTypes]] = GENERATION_FIELDS
    augmentation_fields: ClassVar[Mapping[str, FieldTypes]] = AUGMENTATION_FIELDS
    varied_texts: ClassVar[tuple[str, ...]] = ("text",)
    smooths_labels: ClassVar[bool] = True
    token_labels: ClassVar[tuple[str, ...]] = ("labels",)
    changes_model: ClassVar[bool] = True
    starting_point: ClassVar[tuple[str, str]] = ("google-t5/t5-small", "data/train.csv")

    def settings(
        self, given: Mapping[str, Any], *, base_config: Mapping[str, Any], processor: Any, problem_type: str
    ) -> dict[str, Any]:
        """See `Task.settings`; the token that the decoder starts with is the base's."""
        del problem_type
        from lora_ft.tasks.parts.generation import known_positions
        from lora_ft.tasks.parts.text import positions_of, text_settings

        settings = text_settings(given, base_config=base_config, processor=processor)
        positions = positions_of(base_config)
        asked = given.get("max_target_length", min(DEFAULT_TARGET_LENGTH, positions))
        if not 2 <= asked <= positions:
            raise InputError(f"processor.max_target_length = {asked}: expected 2 to {positions} tokens")
        start = given.get("decoder_start_token_id", base_config.get("decoder_start_token_id"))
        if start is None:
            raise InputError(
                "processor.decoder_start_token_id: the base's config.json does not say with which token its decoder "
                "starts. Give its number, for a multilingual base that of the target language"
            )
        positions_known = known_positions(base_config)
        return {**settings, "max_target_length": asked, "decoder_start_token_id": start, **positions_known}

    def fault(self, row: Mapping[str, Any], *, labels: Sequence[str]) -> str | None:
        """See `Task.fault`: nothing is learned from an empty target."""
        del labels
        if "target" in row and not row["target"].strip():
            return "target: it is empty: expected a text to learn"
        return None

    def model_config(self, problem: Problem) -> dict[str, Any]:
        """See `Task.model_config`: the data decides nothing."""
        del problem
        return {}

    def encode(self, rows: Rows, problem: Problem, *, training: bool = False) -> Features:
        """See `Task.encode`. What is cut keeps its end token; `truncated` speaks of text and target.

        Raises:
            InputError: Generation settings that would have no effect.
        """
        del training
        from lora_ft.tasks.parts.generation import check_generation

        check_generation(problem)
        settings = problem.settings
        texts = [settings.get("prefix", "") + text for text in rows["text"]]
        features = _encoded(texts, problem, max_length=settings["max_length"], target=False)
        features["length"] = [len(ids) for ids in features["input_ids"]]
        if "target" in rows:
            targets = _encoded(rows["target"], problem, max_length=settings["max_target_length"], target=True)
            features["labels"] = targets["input_ids"]
            features["truncated"] = [a or b for a, b in zip(features["truncated"], targets["truncated"], strict=True)]
            lengths = zip(features["length"], features["labels"], strict=True)
            features["length"] = [length + len(labels) for length, labels in lengths]
        return features

    def references(self, rows: Rows, problem: Problem) -> list[Any]:
        """See `Task.references`: the targets."""
        del problem
        return list(rows["target"])

    def collator(
        self, problem: Problem, *, training: bool = False
    ) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]:
        """See `Task.collator`; what the decoder reads are the labels, one place to the right."""
        del training
        from lora_ft.tasks.parts.language import IGNORED, length_mask, pad_right

        pad, settings = problem.processor.pad_token_id, problem.settings
        start = settings["decoder_start_token_id"]

        def collate(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
            tokens = [row["input_ids"] for row in features]
            ids = pad_right(tokens, pad, settings=settings)
            batch = {"input_ids": ids, "attention_mask": length_mask(tokens, ids.shape[1])}
            if "labels" in features[0]:
                width = {**settings, "max_length": settings["max_target_length"]}
                labels = pad_right([row["labels"] for row in features], IGNORED, settings=width)
                batch["labels"] = labels
                shifted = labels.roll(1, 1).masked_fill(labels.roll(1, 1).eq(IGNORED), pad)
                shifted[:, 0] = start
                batch["decoder_input_ids"] = shifted
            return batch

        return collate

    def forward(self, model: Any, batch: Mapping[str, Any], problem: Problem) -> Any:
        """See `Task.forward`."""
        from lora_ft.tasks.parts.labelled import outputs_at_labels

        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return outputs_at_labels(model, {**inputs, "use_cache": False}, batch.get("labels"), problem.label_loss)

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
        """See `Task.loss`."""
        del problem, class_weight
        from lora_ft.tasks.parts.labelled import token_loss

        return token_loss(outputs, batch["labels"], items=items, label_smoothing=label_smoothing)

    def answer(
        self, model: Any, batch: Mapping[str, Any], problem: Problem, *, outputs: Any | None
    ) -> dict[str, torch.Tensor]:
        """See `Task.answer`: generated tokens, also where the targets are known."""
        del outputs
        from lora_ft.tasks.parts.generation import fixed_width, generate, new_tokens, stop_strings

        found = generate(model, _read(batch), problem, stops=stop_strings(problem))
        return {"generated": fixed_width([row[1:] for row in found.tolist()], new_tokens(problem, model))}

    def decode(
        self, answer: Mapping[str, np.ndarray], features: Sequence[Mapping[str, Any]], problem: Problem
    ) -> list[Any]:
        """See `Task.decode`."""
        del features
        from lora_ft.tasks.parts.generation import stop_strings, text_of

        stops = stop_strings(problem)
        return [{"generated_text": text_of(row, problem, stops=stops)} for row in answer["generated"]]

    def scorer(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> Callable[[Any], dict[str, float]]:
        """See `Task.scorer`."""
        del problem
        from lora_ft.metrics.generated_text import generated_text_counts, generated_text_scores

        counts = generated_text_counts([row["generated_text"] for row in predictions], list(references))

        def scores(rows: Any) -> dict[str, float]:
            found = generated_text_scores(counts, rows)
            return {name: found[name] for name in METRICS}

        return scores

    def probe_values(self, outputs: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        """See `Task.probe_values`: some columns of the vocabulary at the decoder's second position."""
        from lora_ft.tasks.parts.language import probe_logits

        return probe_logits(outputs["logits"], batch["decoder_input_ids"].new_ones(len(batch["decoder_input_ids"])))

    def shown(self, feature: Mapping[str, Any], problem: Problem) -> str:
        """See `Task.shown`: what is read, and what is to be written with its end."""
        from lora_ft.tasks.parts.shown import decoded, marked

        read = decoded(feature["input_ids"], problem)
        return f"{read} -> {marked(decoded(feature['labels'], problem))}" if "labels" in feature else read

    def end_tokens(self, problem: Problem) -> tuple[int, ...]:
        """See `Task.end_tokens`: the tokenizer's."""
        from lora_ft.tasks.parts.language import end_of_text

        return end_of_text(problem.processor)

    def uniform_loss(self, problem: Problem) -> float | None:
        """See `Task.uniform_loss`: ln of the vocabulary."""
        return math.log(len(problem.processor))

    def example_rows(self, problem_type: str) -> dict[str, list[Any]]:
        """See `Task.example_rows`."""
        del problem_type
        return {
            "text": [
                "the pan is good and sturdy and i love it .",
                "this cable broke again , it was cheap and poor .",
                "i read the book in one day and it was nice .",
                "my phone is slow and the battery is bad .",
            ],
            "target": ["good sturdy pan", "cheap cable broke", "nice book", "slow phone , bad battery"],
        }

    def generation(self, model: Any, problem: Problem) -> Generation | None:
        """See `Task.generation`."""
        from lora_ft.tasks.parts.generation import generation_of, stop_strings

        return generation_of(model, problem, stops=stop_strings(problem))

    def stream(self, model: Any, row: Mapping[str, Any], problem: Problem) -> Iterator[str]:
        """See `Task.stream`."""
        from lora_ft.tasks.parts.generation import stop_strings
        from lora_ft.tasks.parts.streaming import pieces

        features = self.encode({"text": [row["text"]]}, problem)
        batch = self.collator(problem)([{"input_ids": features["input_ids"][0]}])
        device = next(model.parameters()).device
        inputs = {name: value.to(device) for name, value in _read(batch).items()}
        stops = stop_strings(problem)
        yield from pieces(model, inputs, problem, stops=stops, cut=stops)


def _encoded(texts: Sequence[str], problem: Problem, *, max_length: int, target: bool) -> Features:
    """Tokens of texts, cut, and whether any went."""
    processor = problem.processor
    role = {"text_target": list(texts)} if target else {"text": list(texts)}
    whole = processor(**role, truncation=False, verbose=False)["input_ids"]
    kept = processor(**role, truncation=True, max_length=max_length)["input_ids"]
    pairs = zip(whole, kept, strict=True)
    return {"input_ids": [list(ids) for ids in kept], "truncated": [len(a) > len(b) for a, b in pairs]}


def _read(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the encoder reads of a batch."""
    return {name: batch[name] for name in ("input_ids", "attention_mask")}
