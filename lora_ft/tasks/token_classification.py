"""Token classification: entities or parts of speech of the words of a text.

One row: tokens ["Ask", "Anna", "Berg"], tags ["O", "B-person", "I-person"], or text "Ask Anna Berg" and spans
[{"start": 4, "end": 13, "label": "person"}]
->  {"tags": ["O", "B-person", "I-person"], "entities": [{"text": "Anna Berg", "label": "person", "score": 0.98, ...}]}
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lora_ft.recipe.schema import Column, FieldTypes
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts import shown, tagged
from lora_ft.tasks.parts import tags as bio
from lora_ft.tasks.parts.label_names import label_fields
from lora_ft.tasks.parts.problem import Features, Parts, Problem, Rows, Variation
from lora_ft.tasks.parts.tag_augmentation import tag_variations
from lora_ft.tasks.parts.text_augmentation import TAG_FIELDS
from lora_ft.tasks.parts.windows import WINDOW_FIELDS, Window, cut_windows, pad_windows, place_words, window_settings

if TYPE_CHECKING:
    import numpy as np
    import torch

logger = logging.getLogger(__name__)

TOKENS, SPANS = tagged.TOKENS, tagged.SPANS
IGNORED = -100
PROBE_TOKENS = 8
SHORTEST = 8
"""The least `max_length` in which windows of a text move on, whatever the special tokens."""


class TokenClassification(Task):
    """One tag for each word, and entities where the tags mark them; rows come as words or as texts with spans."""

    name: ClassVar[str] = "token-classification"
    summary: ClassVar[str] = "entities (names, products, dates) or parts of speech in a text"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    peft_task_type: ClassVar[str | None] = "TOKEN_CLS"
    head: ClassVar[tuple[str, ...]] = ("classifier", "score")
    columns: ClassVar[tuple[Column, ...]] = (
        Column("tokens", "texts", False, "the words of a text"),
        Column("tags", "labels", False, "one tag for each word: BIO, IOB1, BIOES, or parts of speech", target=True),
        Column("text", "text", False, "a text, where entities are marked as spans"),
        Column("spans", "spans", False, "start, end and label of each entity, in characters", target=True),
    )
    column_sets: ClassVar[Mapping[str, tuple[str, ...]]] = {TOKENS: ("tokens", "tags"), SPANS: ("text", "spans")}
    metrics: ClassVar[Mapping[str, tuple[str, ...]]] = {
        TOKENS: ("f1", "precision", "recall", "f1_macro", "accuracy"),
        SPANS: ("f1", "precision", "recall", "f1_macro", "accuracy"),
    }
    processor_fields: ClassVar[Mapping[str, FieldTypes]] = {**WINDOW_FIELDS, "label_all_tokens": (bool,)}
    augmentation_fields: ClassVar[Mapping[str, FieldTypes]] = TAG_FIELDS
    smooths_labels: ClassVar[bool] = True
    token_labels: ClassVar[tuple[str, ...]] = ("labels",)
    least_tokens: ClassVar[int] = SHORTEST
    starting_point: ClassVar[tuple[str, str]] = ("google-bert/bert-base-cased", "data/train.jsonl")

    def vocabulary(self, rows: Iterable[Mapping[str, Any]], *, given: Sequence[str] | None) -> tuple[str, ...]:
        """See `Task.vocabulary`: O, B-x, I-x by entity type, or the tags themselves where they mark no entities.

        Args:
            rows: The training rows.
            given: Entity types, BIO tags or other tags, in the order that they shall have.
        """
        found: set[str] = set()
        types: set[str] = set()
        count = converted = 0
        for row in rows:
            count += 1
            if row.get("tags") is not None:
                found.update(row["tags"])
                converted += bio.is_other_scheme(row["tags"])
            else:
                types.update(span["label"] for span in row["spans"])
        labels = bio.tag_vocabulary(found, types=types, given=given)
        if converted and bio.is_bio_vocabulary(labels):
            logger.info("tags: %d of %d training rows are IOB1, BIOES or broken BIO; read as BIO", converted, count)
        return labels

    def settings(
        self, given: Mapping[str, Any], *, base_config: Mapping[str, Any], processor: Any, problem_type: str
    ) -> dict[str, Any]:
        """See `Task.settings`; fills in `max_length` and `stride`."""
        del problem_type
        return window_settings(given, base_config=base_config, processor=processor, pair=False)

    def fault(self, row: Mapping[str, Any], *, labels: Sequence[str]) -> str | None:
        """See `Task.fault`: nothing to read, tags that do not belong to the words, spans that do not fit the text."""
        return tagged.fault_of(row, labels=labels)

    def model_config(self, problem: Problem) -> dict[str, Any]:
        """See `Task.model_config`."""
        return label_fields(problem.labels)

    def encode(self, rows: Rows, problem: Problem, *, training: bool = False) -> Features:
        """See `Task.encode`. A row longer than `max_length` tokens makes several features, and nothing is cut off.

        Each word is learned and answered at its first token (`label_all_tokens`: learned at all of them), in the window
        where that has most context; `word` and `position` say which word is read at which token.
        """
        del training
        read = [tagged.read_row(row, problem) for row in _one_by_one(rows)]
        windows: list[list[Window]] = [[] for _ in read]
        for window in cut_windows([one.text for one in read], problem):
            windows[window.row].append(window)
        features: Features = {name: [] for name in ("length", "truncated", "row", "word", "position")}
        with_labels = bool(read) and read[0].tags is not None
        for row, (one, own) in enumerate(zip(read, windows, strict=True)):
            placed = place_words(own, one.words)
            for window, pairs in zip(own, placed, strict=True):
                if not pairs and not window.first:
                    continue  # it only repeats what others answer
                for name, values in window.inputs.items():
                    features.setdefault(name, []).append(values)
                features["length"].append(len(window.start))
                features["truncated"].append(False)
                features["row"].append(row)
                features["word"].append([word for word, _ in pairs])
                features["position"].append([position for _, position in pairs])
                if with_labels:
                    features.setdefault("labels", []).append(_labels(window, pairs, one, problem))
        return features

    def variations(self, rows: Iterable[Mapping[str, Any]], problem: Problem) -> Mapping[str, Variation]:
        """See `Task.variations`: words outside of entities, and entities as a whole."""
        return tag_variations(rows, problem)

    def references(self, rows: Rows, problem: Problem) -> list[Any]:
        """See `Task.references`: the tags of the words; for spans the words of the text and the spans."""
        return [tagged.reference_of(row, problem) for row in _one_by_one(rows)]

    def collator(
        self, problem: Problem, *, training: bool = False
    ) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]:
        """See `Task.collator`; pads on the right."""
        del training
        import torch

        def collate(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
            batch = pad_windows(features, problem)
            if "labels" in features[0]:
                width = batch["input_ids"].shape[1]
                padded = [[*row["labels"], *[IGNORED] * (width - len(row["labels"]))] for row in features]
                batch["labels"] = torch.tensor(padded)  # (windows, tokens)
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
        """See `Task.loss`: cross-entropy of each labelled token."""
        del problem, class_weight
        import torch.nn.functional as F  # noqa: N812

        chosen = batch["labels"].ne(IGNORED)  # (windows, tokens)
        logits, labels = outputs["logits"][chosen].float(), batch["labels"][chosen]
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum") / items

    def decode(
        self, answer: Mapping[str, np.ndarray], features: Sequence[Mapping[str, Any]], problem: Problem
    ) -> list[Any]:
        """See `Task.decode`: for each word of a window its number, token position, label and probability."""
        del problem
        import numpy as np
        from scipy.special import softmax

        parts = []
        for logits, feature in zip(answer["logits"], features, strict=True):
            read = softmax(np.asarray(logits[feature["position"]], dtype=np.float64), axis=-1)  # (words, labels)
            chosen = read.argmax(axis=-1) if len(read) else np.zeros(0, dtype=np.int64)
            scores = read.max(axis=-1) if len(read) else np.zeros(0)
            words = zip(feature["word"], feature["position"], chosen.tolist(), scores.tolist(), strict=True)
            parts.append(list(words))
        return parts

    def join(self, parts: Parts, row: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
        """See `Task.join`: tags and entities of all words, also of those that the tokenizer made no token of."""
        return tagged.prediction_of(parts, tagged.read_row(row, problem), problem)

    def scorer(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> Callable[[Any], dict[str, float]]:
        """See `Task.scorer`: of entities, exactly (seqeval); where tags mark none, unweighted means over the tags."""
        return tagged.scorer_of(predictions, references, problem)

    def constant_answer(self, references: Sequence[Any], problem: Problem) -> dict[str, Any] | None:
        """See `Task.constant_answer`: no entity, or the most frequent tag."""
        if bio.is_bio_vocabulary(problem.labels):
            return {"entities": []}
        counts = Counter(tag for tags in references for tag in tags)
        return {"tag": max(problem.labels, key=counts.__getitem__)}

    def probe_values(self, outputs: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        """See `Task.probe_values`: the logits of the first tokens of each row."""
        del batch
        logits: torch.Tensor = outputs["logits"]
        return logits[:, :PROBE_TOKENS].flatten(1)

    def shown(self, feature: Mapping[str, Any], problem: Problem) -> str:
        """See `Task.shown`: words with their tags."""
        return shown.words_shown(feature, problem)

    def uniform_loss(self, problem: Problem) -> float | None:
        """See `Task.uniform_loss`: ln of the number of tags."""
        return math.log(len(problem.labels))

    def example_rows(self, problem_type: str) -> dict[str, list[Any]]:
        """See `Task.example_rows`."""
        return tagged.example_rows(problem_type)


def _one_by_one(rows: Rows) -> list[dict[str, Any]]:
    """Columns as rows."""
    return [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]


def _labels(window: Window, pairs: Sequence[tuple[int, int]], row: tagged.TaggedRow, problem: Problem) -> list[int]:
    """Label numbers of a window's tokens; -100 where nothing is learned."""
    index = {label: number for number, label in enumerate(problem.labels)}
    labels = [IGNORED] * len(window.start)
    taken = {position for _, position in pairs}
    for word, position in pairs:
        tag = (row.tags or ())[word]
        if labels[position] == IGNORED:  # two words in one token: it has the label of the first
            labels[position] = index[tag]
        if problem.settings.get("label_all_tokens", False):
            inner = bio.inside(tag)
            at = position + 1
            while at < len(labels) and at not in taken and -1 < window.start[at] < row.words[word][1]:
                labels[at] = index[inner]
                at += 1
    return labels
