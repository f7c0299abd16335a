"""Masked language modelling: adapts BERT and its kin to the language of a domain, on plain text.

One row: text "It broke after a week."  A text to predict has gaps: "It [MASK] after a week."
->  {"filled": "It broke after a week.", "predictions": [[{"token": "broke", "score": 0.61, "text": "It broke ..."}]]}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lora_ft.errors import InputError
from lora_ft.recipe.schema import Column, FieldTypes
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.problem import Features, Parts, Problem, Rows
from lora_ft.tasks.parts.text_augmentation import TEXT_FIELDS as AUGMENTATION_FIELDS

if TYPE_CHECKING:
    import numpy as np
    import torch

KIND = "masked_language_modeling"
DEFAULT_PROBABILITY = 0.15
TOP_K = 5
SHORTEST = 8


class FillMask(Task):
    """Masked language modelling with whole words hidden; its head is that of the base and stays frozen."""

    name: ClassVar[str] = "fill-mask"
    summary: ClassVar[str] = "fills gaps in texts; adapts an encoder to the language of a domain (BERT, RoBERTa)"
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    columns: ClassVar[tuple[Column, ...]] = (
        Column("text", "text", True, "plain text; to predict, a text with the mask token in it"),
    )
    free_texts: ClassVar[tuple[str, ...]] = ("text",)
    metrics: ClassVar[Mapping[str, tuple[str, ...]]] = {KIND: ("perplexity", "accuracy")}
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"perplexity"})
    processor_fields: ClassVar[Mapping[str, FieldTypes]] = {
        "max_length": (int,),
        "padding": (True, "longest", "max_length"),
        "pad_to_multiple_of": (int,),
        "mlm_probability": (float,),
        "whole_word_mask": (bool,),
        "line_by_line": (bool,),
        "top_k": (int,),
    }
    augmentation_fields: ClassVar[Mapping[str, FieldTypes]] = AUGMENTATION_FIELDS
    varied_texts: ClassVar[tuple[str, ...]] = ("text",)
    smooths_labels: ClassVar[bool] = True
    least_tokens: ClassVar[int] = SHORTEST
    starting_point: ClassVar[tuple[str, str]] = ("google-bert/bert-base-uncased", "data/train.txt")

    def settings(
        self, given: Mapping[str, Any], *, base_config: Mapping[str, Any], processor: Any, problem_type: str
    ) -> dict[str, Any]:
        """See `Task.settings`; everything that masking needs is looked for here."""
        del problem_type
        from lora_ft.tasks.parts.text import text_settings

        own = {"mlm_probability": DEFAULT_PROBABILITY, "whole_word_mask": True, "line_by_line": False, "top_k": TOP_K}
        settings = {**own, **text_settings(given, base_config=base_config, processor=processor)}
        if processor.mask_token is None:
            raise InputError(
                "model.pretrained_model_name_or_path: the tokenizer of this base has no mask token. Expected a masked "
                "language model (BERT, RoBERTa); for GPT and its kin: task: text-generation"
            )
        if settings["whole_word_mask"] and not processor.is_fast:
            raise InputError(
                "processor.whole_word_mask: the tokenizer of this base has no fast version and does not tell words "
                "apart. Set processor.whole_word_mask: false"
            )
        if not 0.0 < settings["mlm_probability"] < 1.0:
            raise InputError(
                f"processor.mlm_probability = {settings['mlm_probability']}: expected a share above 0 and below 1"
            )
        for name, least in (("max_length", SHORTEST), ("top_k", 1)):
            if settings[name] < least:
                raise InputError(f"processor.{name} = {settings[name]}: expected {least} or more")
        return settings

    def model_config(self, problem: Problem) -> dict[str, Any]:
        """See `Task.model_config`: the data decides nothing."""
        del problem
        return {}

    def encode(self, rows: Rows, problem: Problem, *, training: bool = False) -> Features:
        """See `Task.encode`.

        In training the labels are drawn by the collator, new each time. What is hidden of measured texts follows from
        their tokens and is the same in every run; a text with mask tokens in it is answered, one feature a gap.
        """
        from lora_ft.tasks.parts.masked import encode_chunks, encode_to_answer_or_measure

        if training:
            return encode_chunks(rows["text"], problem)
        return encode_to_answer_or_measure(rows["text"], problem)

    def references(self, rows: Rows, problem: Problem) -> list[Any]:
        """See `Task.references`: what is measured is in the sums of each row already."""
        del problem
        return [None] * len(rows["text"])

    def collator(
        self, problem: Problem, *, training: bool = False
    ) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]:
        """See `Task.collator`; it hides words of what was encoded to be trained on."""
        from lora_ft.tasks.parts.masked import masked_batch
        from lora_ft.tasks.parts.masking import vocabulary_of

        vocabulary = vocabulary_of(problem.processor)
        return lambda features: masked_batch(features, problem, vocabulary=vocabulary, training=training)

    def collates_by_chance(self, problem: Problem) -> bool:
        """See `Task.collates_by_chance`: which words are hidden."""
        del problem
        return True

    def forward(self, model: Any, batch: Mapping[str, Any], problem: Problem) -> Any:
        """See `Task.forward`."""
        from lora_ft.tasks.parts.labelled import outputs_at_labels

        inputs = {name: batch[name] for name in batch if name in problem.processor.model_input_names}
        answered = "gap" in batch and bool(batch["gap"].ge(0).any())  # what fills a gap is read off its logits
        return outputs_at_labels(model, inputs, None if answered else batch.get("labels"), problem.label_loss)

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
        """See `Task.loss`: of the hidden tokens."""
        del problem, class_weight
        from lora_ft.tasks.parts.labelled import token_loss

        return token_loss(outputs, batch["labels"], items=items, label_smoothing=label_smoothing)

    def answer(
        self, model: Any, batch: Mapping[str, Any], problem: Problem, *, outputs: Any | None
    ) -> dict[str, torch.Tensor]:
        """See `Task.answer`: sums over the hidden tokens, and the likeliest tokens of a gap."""
        import torch

        from lora_ft.tasks.parts.labelled import token_sums

        outputs = self.forward(model, batch, problem) if outputs is None else outputs
        sums = token_sums(outputs, batch["labels"])
        if not bool(batch["gap"].ge(0).any()):
            return sums
        logits = outputs["logits"]
        rows = torch.arange(len(logits), device=logits.device)
        scores = logits[rows, batch["gap"].clamp(min=0)].float().softmax(-1)
        best = scores.topk(min(problem.settings["top_k"], scores.shape[-1]), dim=-1)
        return {**sums, "scores": best.values, "tokens_of_gap": best.indices}

    def decode(
        self, answer: Mapping[str, np.ndarray], features: Sequence[Mapping[str, Any]], problem: Problem
    ) -> list[Any]:
        """See `Task.decode`: sums of a measured text, the fillings of one gap of an answered one."""
        del problem
        from lora_ft.tasks.parts.language import decoded_sums

        return [
            decoded_sums(answer, index)
            if feature["gap"] < 0
            else {
                "fillings": [
                    {"token": int(token), "score": float(score)}
                    for token, score in zip(answer["tokens_of_gap"][index], answer["scores"][index], strict=True)
                ],
                "input_ids": list(feature["input_ids"]),
                "gap": int(feature["gap"]),
            }
            for index, feature in enumerate(features)
        ]

    def join(self, parts: Parts, row: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
        """See `Task.join`: the sums over the chunks of a text, or the fillings of all its gaps."""
        del row
        from lora_ft.tasks.parts.language import joined_sums
        from lora_ft.tasks.parts.masked import filled_text

        return filled_text(parts, problem) if parts and "gap" in parts[0] else joined_sums(parts)

    def scorer(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> Callable[[Any], dict[str, float]]:
        """See `Task.scorer`; `accuracy` is the share of hidden tokens that were found."""
        del references, problem
        from lora_ft.tasks.parts.language import sums_scorer

        scores_of = sums_scorer(predictions)

        def scores(rows: Any) -> dict[str, float]:
            found = scores_of(rows)
            return {"loss": found["loss"], "perplexity": found["perplexity"], "accuracy": found["token_accuracy"]}

        return scores

    def probe_values(self, outputs: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        """See `Task.probe_values`: some columns of the vocabulary at the last token of each row."""
        from lora_ft.tasks.parts.language import last_positions, probe_logits

        return probe_logits(outputs["logits"], last_positions(batch["attention_mask"]))

    def hint(self, row: Mapping[str, Any], problem: Problem) -> str | None:
        """See `Task.hint`: a text without a gap is measured, and nothing is filled in."""
        mask = str(problem.processor.mask_token)
        if mask in row["text"]:
            return None
        return f"there is no {mask} in the text, so nothing is filled in. Write {mask} where a word is to be found"

    def example_word(self, problem: Problem) -> str:
        """See `Task.example_word`: a text with a gap."""
        return f"a new {problem.processor.mask_token}"

    def shown(self, feature: Mapping[str, Any], problem: Problem) -> str:
        """See `Task.shown`: a text with words hidden as they may be in training, and what they were."""
        from lora_ft.tasks.parts.masking import fixed_draws, hide, vocabulary_of
        from lora_ft.tasks.parts.shown import gaps_shown

        if "words" not in feature:
            return gaps_shown(feature["input_ids"], feature["labels"], problem)
        ids, probability = list(feature["input_ids"]), float(problem.settings["mlm_probability"])
        vocabulary = vocabulary_of(problem.processor)
        seen, labels = hide(ids, feature["words"], vocabulary, probability=probability, draws=fixed_draws(ids))
        return gaps_shown(seen, labels, problem)

    def uniform_loss(self, problem: Problem) -> float | None:
        """See `Task.uniform_loss`: ln of the vocabulary."""
        return math.log(len(problem.processor))

    def example_rows(self, problem_type: str) -> dict[str, list[Any]]:
        """See `Task.example_rows`."""
        del problem_type
        first = "this {0} works and i love it . not a bad {0} , it is sturdy and the handle is soft and nice . "
        second = "my {0} was cheap and it broke again and again , poor quality . i was not happy with the {0} . "
        third = "one day the {0} was slow , then it was fast and i was happy again . read this , charge the {0} well ."
        return {"text": [(first + second + third).format(thing) for thing in ("pan", "cable", "book", "phone")]}
