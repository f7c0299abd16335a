"""Text classification: one label, several labels or a number for a text or a pair of texts.

One row: text "Broke after a week.", label "negative"  ->  {"label": "negative", "score": 0.97, "scores": {...}}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lora_ft.recipe.schema import Column
from lora_ft.tasks.base import Features, Rows, Task

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedTokenizerBase

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"

DEFAULT_MAX_LENGTH = 512
MULTI_LABEL_THRESHOLD = 0.5


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
        Column("label", "label", True, "a class, a list of classes, or a number"),
    )
    metrics: ClassVar[Mapping[str, tuple[str, ...]]] = {
        SINGLE: ("f1_macro", "accuracy", "precision_macro", "recall_macro", "matthews_corrcoef"),
        MULTI: (
            "f1_macro", "f1_micro", "precision_macro", "recall_macro", "precision_micro", "recall_micro", "accuracy",
        ),
        REGRESSION: ("pearsonr", "spearmanr", "mse", "mae", "r2"),
    }  # fmt: skip
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"mse", "mae"})
    processor_fields: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "max_length": (int,),
        "truncation": (True, "longest_first", "only_first", "only_second"),
        "padding": (True, "longest", "max_length"),
        "pad_to_multiple_of": (int,),
        "truncation_side": ("right", "left"),
        "padding_side": ("right", "left"),
    }

    def model_config(self, *, labels: Sequence[str], problem_type: str) -> dict[str, Any]:
        """See `Task.model_config`; a regression has one output."""
        if problem_type == REGRESSION:
            return {"num_labels": 1, "problem_type": problem_type}
        id2label = dict(enumerate(labels))
        label2id = {label: index for index, label in id2label.items()}
        return {
            "num_labels": len(labels),
            "id2label": id2label,
            "label2id": label2id,
            "problem_type": problem_type,
        }

    def encode(
        self,
        rows: Rows,
        processor: PreTrainedTokenizerBase,
        *,
        labels: Sequence[str],
        problem_type: str,
        settings: Mapping[str, Any],
    ) -> Features:
        """See `Task.encode`. Labels come as canonical strings (a list of them for multi-label) or as floats.

        A row longer than `max_length` tokens is cut; `truncated` says so.
        """
        side = settings.get("truncation_side", processor.truncation_side)
        if side != processor.truncation_side:
            processor.truncation_side = side
        texts, pairs = list(rows["text"]), rows.get("text_pair")
        encoded = processor(
            texts,
            list(pairs) if pairs is not None else None,
            truncation=settings.get("truncation", True),
            max_length=settings.get("max_length", DEFAULT_MAX_LENGTH),
            padding=False,
        )
        features: Features = {name: list(values) for name, values in encoded.items()}
        _give_empty_rows_a_token(features, processor)
        features["length"] = [len(ids) for ids in features["input_ids"]]
        if encoded.encodings is not None:
            features["truncated"] = [bool(encoding.overflowing) for encoding in encoded.encodings]
        else:  # a tokenizer without a fast version does not say what it cut
            whole = processor(texts, list(pairs) if pairs is not None else None, truncation=False, padding=False)
            lengths = zip(whole["input_ids"], features["length"], strict=True)
            features["truncated"] = [len(ids) > length for ids, length in lengths]
        if "label" in rows:
            features["labels"] = _encode_labels(rows["label"], labels, problem_type)
        return features

    def collator(
        self, processor: PreTrainedTokenizerBase, *, problem_type: str, settings: Mapping[str, Any]
    ) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]:
        """See `Task.collator`; pads to the longest row of the batch unless `padding` says `max_length`."""
        import torch

        padding = settings.get("padding", "longest")
        label_dtype = torch.long if problem_type == SINGLE else torch.float32
        side = settings.get("padding_side", processor.padding_side)

        def collate(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
            inputs = [{key: row[key] for key in row if key in processor.model_input_names} for row in features]
            batch = dict(
                processor.pad(
                    inputs,
                    padding=padding,
                    max_length=settings.get("max_length", DEFAULT_MAX_LENGTH) if padding == "max_length" else None,
                    pad_to_multiple_of=settings.get("pad_to_multiple_of"),
                    padding_side=side,
                    return_tensors="pt",
                )
            )
            if "labels" in features[0]:
                batch["labels"] = torch.tensor([row["labels"] for row in features], dtype=label_dtype)
            return batch

        return collate

    def loss(
        self, *, problem_type: str, class_weight: Sequence[float] | None, label_smoothing: float
    ) -> Callable[..., torch.Tensor]:
        """See `Task.loss`: cross-entropy, binary cross-entropy a label, or squared error."""
        import torch
        import torch.nn.functional as F  # noqa: N812

        def loss_of(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
            logits = outputs["logits"].float()  # (rows, labels)
            weight = torch.tensor(class_weight, device=logits.device) if class_weight is not None else None
            if problem_type == SINGLE:
                rows = F.cross_entropy(logits, labels, weight=weight, label_smoothing=label_smoothing, reduction="none")
            elif problem_type == MULTI:
                rows = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight, reduction="none")
            else:
                rows = F.mse_loss(logits.squeeze(-1), labels, reduction="none")
            return rows.sum() / (rows.numel() if num_items_in_batch is None else num_items_in_batch)

        return loss_of

    def decode(self, logits: np.ndarray, *, labels: Sequence[str], problem_type: str) -> list[dict[str, Any]]:
        """See `Task.decode`; scores are softmax or sigmoid probabilities."""
        import numpy as np
        from scipy.special import expit, softmax

        values = np.asarray(logits, dtype=np.float64)
        if problem_type == REGRESSION:
            return [{"value": float(value)} for value in values[:, 0]]
        if problem_type == MULTI:
            return [
                {
                    "labels": [label for label, p in zip(labels, row, strict=True) if p >= MULTI_LABEL_THRESHOLD],
                    "scores": {label: float(p) for label, p in zip(labels, row, strict=True)},
                }
                for row in expit(values)
            ]
        return [
            {
                "label": labels[int(row.argmax())],
                "score": float(row.max()),
                "scores": {label: float(p) for label, p in zip(labels, row, strict=True)},
            }
            for row in softmax(values, axis=-1)
        ]

    def scorer(
        self,
        predictions: Sequence[dict[str, Any]],
        references: Sequence[Any],
        *,
        labels: Sequence[str],
        problem_type: str,
    ) -> Callable[[Any], dict[str, float]]:
        """See `Task.scorer`."""
        import numpy as np

        from lora_ft.metrics.multi_label import multi_label_scores
        from lora_ft.metrics.regression import regression_scores
        from lora_ft.metrics.single_label import single_label_scores

        if problem_type == REGRESSION:
            values, targets = np.array([prediction["value"] for prediction in predictions]), np.array(references)
            return lambda rows: regression_scores(values[rows], targets[rows])
        if problem_type == MULTI:
            hot = np.array([[int(label in prediction["labels"]) for label in labels] for prediction in predictions])
            truth = np.array(references, dtype=np.int64)
            return lambda rows: multi_label_scores(hot[rows], truth[rows], label_names=labels)
        index = {label: position for position, label in enumerate(labels)}
        ids, truth = np.array([index[prediction["label"]] for prediction in predictions]), np.array(references)
        return lambda rows: single_label_scores(ids[rows], truth[rows], label_names=labels)

    def example_rows(self, problem_type: str) -> dict[str, list[Any]]:
        """See `Task.example_rows`."""
        texts = [
            "It works and I love it.",
            "Broke after one week, money back.",
            "Not bad at all.",
            "I was happy with it, then the handle broke and they never answered.",
        ]
        targets: dict[str, list[Any]] = {
            SINGLE: ["positive", "negative", "positive", "negative"],
            MULTI: [["praise"], ["quality", "refund"], ["praise"], ["quality", "service"]],
            REGRESSION: [5.0, 1.0, 3.5, 1.5],
        }
        return {"text": texts, "label": targets[problem_type]}


def _give_empty_rows_a_token(features: Features, processor: PreTrainedTokenizerBase) -> None:
    """A GPT tokenizer makes no token of an empty text, and no model reads a row without one: it gets the pad token."""
    for row, ids in enumerate(features["input_ids"]):
        if not ids:
            for name in features:
                features[name][row] = [1] if name == "attention_mask" else [0]
            features["input_ids"][row] = [processor.pad_token_id]


def _encode_labels(values: Sequence[Any], labels: Sequence[str], problem_type: str) -> list[Any]:
    """Label values as class numbers, 0/1 vectors or floats."""
    if problem_type == REGRESSION:
        return [float(value) for value in values]
    index = {label: position for position, label in enumerate(labels)}
    if problem_type == SINGLE:
        return [index[value] for value in values]
    return [[float(label in row) for label in labels] for row in values]
