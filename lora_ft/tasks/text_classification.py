"""Text classification: one label, several labels or a number for a text or a pair of texts.

One row: text "Broke after a week.", label "negative"  ->  {"label": "negative", "score": 0.97, "scores": {...}}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lora_ft.recipe.schema import Column, FieldTypes
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts import classification as parts
from lora_ft.tasks.parts import shown, text
from lora_ft.tasks.parts.classification import decided
from lora_ft.tasks.parts.problem import Features, Parts, Problem, Rows
from lora_ft.tasks.parts.text_augmentation import TEXT_FIELDS as AUGMENTATION_FIELDS

if TYPE_CHECKING:
    import numpy as np
    import torch


class TextClassification(Task):
    """Sequence classification in all its forms; the problem type comes from the labels."""

    name: ClassVar[str] = "text-classification"
    summary: ClassVar[str] = "one label, several labels or a number for a text or a pair of texts"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    peft_task_type: ClassVar[str | None] = "SEQ_CLS"
    head: ClassVar[tuple[str, ...]] = ("classifier", "score", "pre_classifier")
    columns: ClassVar[tuple[Column, ...]] = (
        Column("text", "text", True, "the text to classify"),
        Column("text_pair", "text", False, "a second text, for pairs"),
        Column("label", "label", True, "a class, a list of classes, or a number", target=True),
    )
    free_texts: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    metrics: ClassVar[Mapping[str, tuple[str, ...]]] = parts.METRICS
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"mse", "mae"})
    processor_fields: ClassVar[Mapping[str, FieldTypes]] = text.TEXT_FIELDS
    augmentation_fields: ClassVar[Mapping[str, FieldTypes]] = AUGMENTATION_FIELDS
    varied_texts: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    weighs_classes: ClassVar[bool] = True
    smooths_labels: ClassVar[bool] = True

    def settings(
        self, given: Mapping[str, Any], *, base_config: Mapping[str, Any], processor: Any, problem_type: str
    ) -> dict[str, Any]:
        """See `Task.settings`; fills in `max_length`."""
        del problem_type
        return text.text_settings(given, base_config=base_config, processor=processor)

    def model_config(self, problem: Problem) -> dict[str, Any]:
        """See `Task.model_config`; a regression has one output."""
        return parts.classification_config(problem)

    def encode(self, rows: Rows, problem: Problem, *, training: bool = False) -> Features:
        """See `Task.encode`. Labels come as canonical strings (a list of them for multi-label) or as floats.

        A row longer than `max_length` tokens is cut; `truncated` says so.
        """
        del training
        processor, settings = problem.processor, problem.settings
        text.set_truncation_side(problem)
        texts, pairs = list(rows["text"]), rows.get("text_pair")
        encoded = processor(
            texts,
            list(pairs) if pairs is not None else None,
            truncation=settings.get("truncation", True),
            max_length=settings["max_length"],
            padding=False,
        )
        features: Features = {name: list(values) for name, values in encoded.items()}
        text.give_empty_rows_a_token(features, processor)
        features["length"] = [len(ids) for ids in features["input_ids"]]
        if encoded.encodings is not None:
            features["truncated"] = [bool(encoding.overflowing) for encoding in encoded.encodings]
        else:  # a tokenizer without a fast version does not say what it cut
            whole = processor(texts, list(pairs) if pairs is not None else None, truncation=False, padding=False)
            lengths = zip(whole["input_ids"], features["length"], strict=True)
            features["truncated"] = [len(ids) > length for ids, length in lengths]
        if "label" in rows:
            features["labels"] = self.references(rows, problem)
        return features

    def references(self, rows: Rows, problem: Problem) -> list[Any]:
        """See `Task.references`: class numbers, 0/1 vectors or floats."""
        return parts.encode_labels(rows["label"], problem)

    def collator(
        self, problem: Problem, *, training: bool = False
    ) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]:
        """See `Task.collator`; pads to the longest row of the batch unless `padding` says `max_length`."""
        del training

        def collate(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
            batch = text.pad_features(features, problem)
            if "labels" in features[0]:
                batch["labels"] = parts.label_tensor(features, problem)
            return batch

        return collate

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
        """See `Task.loss`: cross-entropy, binary cross-entropy a label, or squared error."""
        return parts.classification_loss(
            outputs["logits"],
            batch["labels"],
            problem,
            items=items,
            class_weight=class_weight,
            label_smoothing=label_smoothing,
        )

    def items(self, batch: Mapping[str, Any]) -> int:
        """See `Task.items`: every label counts, also a regression target of -100."""
        return int(batch["labels"].numel())

    def decode(
        self, answer: Mapping[str, np.ndarray], features: Sequence[Mapping[str, Any]], problem: Problem
    ) -> list[Any]:
        """See `Task.decode`; scores are softmax or sigmoid probabilities."""
        del features
        return parts.decode_classes(answer["logits"], problem)

    def join(self, parts: Parts, row: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
        """See `Task.join`: what the thresholds say of the scores, where there are any."""
        del row
        (only,) = parts
        return decided(only, problem)

    def scorer(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> Callable[[Any], dict[str, float]]:
        """See `Task.scorer`."""
        return parts.classification_scorer(predictions, references, problem)

    def constant_answer(self, references: Sequence[Any], problem: Problem) -> dict[str, Any] | None:
        """See `Task.constant_answer`: the majority class, the frequent labels, or the mean."""
        return parts.majority_answer(references, problem)

    def learned(
        self, ours: Mapping[str, float], baseline: Mapping[str, float], *, rows: int, problem_type: str
    ) -> bool:
        """See `Task.learned`: by more than chance."""
        return parts.beats_majority(ours, baseline, rows=rows, problem_type=problem_type)

    def tune(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> dict[str, Any]:
        """See `Task.tune`: the thresholds of labels, where the recipe wants them tuned."""
        return parts.tune_thresholds(predictions, references, problem)

    def shown(self, feature: Mapping[str, Any], problem: Problem) -> str:
        """See `Task.shown`: the text and its label."""
        return shown.text_shown(feature, problem)

    def uniform_loss(self, problem: Problem) -> float | None:
        """See `Task.uniform_loss`: ln of the number of classes, ln 2 for each of several labels."""
        return parts.uniform_loss(problem)

    def example_rows(self, problem_type: str) -> dict[str, list[Any]]:
        """See `Task.example_rows`."""
        texts = [
            "It works and I love it.",
            "Broke after one week, money back.",
            "Not bad at all.",
            "I was happy with it, then the handle broke and they never answered.",
        ]
        targets: dict[str, list[Any]] = {
            parts.SINGLE: ["positive", "negative", "positive", "negative"],
            parts.MULTI: [["praise"], ["quality", "refund"], ["praise"], ["quality", "service"]],
            parts.REGRESSION: [5.0, 1.0, 3.5, 1.5],
        }
        return {"text": texts, "label": targets[problem_type]}
