"""Question answering: the piece of a context that answers a question, or that there is none.

One row: question "When do you open?", context "We open at nine.", answers {"text": ["at nine"], "answer_start": [8]}
->  {"answer": "at nine", "score": 0.91, "start": 8, "end": 15}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lora_ft.errors import InputError
from lora_ft.recipe.schema import Column, FieldTypes
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts import shown
from lora_ft.tasks.parts.answers import answer_spans, best_spans, fault_of_answers, merged
from lora_ft.tasks.parts.problem import Features, Parts, Problem, Rows
from lora_ft.tasks.parts.questions import answer_tokens, null_position, question_windows, shortened
from lora_ft.tasks.parts.text_augmentation import TEXT_FIELDS as AUGMENTATION_FIELDS
from lora_ft.tasks.parts.windows import WINDOW_FIELDS, pad_windows, window_settings

if TYPE_CHECKING:
    import numpy as np
    import torch

EXTRACTIVE = "extractive"
WITH_UNANSWERABLE = ("answer", "no answer")
"""The labels where some training question has no answer: then an adapter may say so, else never (no labels).

There are as many as the head has outputs (start, end): every adapter that is loaded is checked for that.
"""

MAX_ANSWER_LENGTH = 30
N_BEST = 1
CANDIDATES = 20
LOWEST = 1e-300
SHORTEST = 16
"""The least `max_length` in which a question and a piece of its context have room, whatever the special tokens."""


class QuestionAnswering(Task):
    """Extractive question answering in the form of SQuAD 1 and 2, over contexts of any length."""

    name: ClassVar[str] = "question-answering"
    summary: ClassVar[str] = "the piece of a text that answers a question, or that there is none"
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    peft_task_type: ClassVar[str | None] = (
        None  # peft 0.21's wrapper drops token_type_ids: question and context look alike
    )
    head: ClassVar[tuple[str, ...]] = ("qa_outputs",)
    columns: ClassVar[tuple[Column, ...]] = (
        Column("question", "text", True, "the question"),
        Column("context", "text", True, "the text that holds the answer"),
        Column("answers", "answers", True, "the right answers and where they begin; none: unanswerable", target=True),
        Column("id", "text", False, "a name of the row, handed through"),
    )
    metrics: ClassVar[Mapping[str, tuple[str, ...]]] = {EXTRACTIVE: ("f1", "exact_match")}
    processor_fields: ClassVar[Mapping[str, FieldTypes]] = {
        **WINDOW_FIELDS,
        "n_best": (int,),
        "max_answer_length": (int,),
        "null_threshold": (float, int),
    }
    augmentation_fields: ClassVar[Mapping[str, FieldTypes]] = AUGMENTATION_FIELDS
    varied_texts: ClassVar[tuple[str, ...]] = ("question",)
    argument: ClassVar[str] = "question"
    least_tokens: ClassVar[int] = SHORTEST
    starting_point: ClassVar[tuple[str, str]] = ("distilbert/distilbert-base-uncased", "data/train.json")

    def vocabulary(self, rows: Iterable[Mapping[str, Any]], *, given: Sequence[str] | None) -> tuple[str, ...]:
        """See `Task.vocabulary`: `answer`, `no answer` where some question has none, else nothing."""
        del given
        return WITH_UNANSWERABLE if any(not row["answers"]["text"] for row in rows) else ()

    def settings(
        self, given: Mapping[str, Any], *, base_config: Mapping[str, Any], processor: Any, problem_type: str
    ) -> dict[str, Any]:
        """See `Task.settings`; fills in `max_length`, `stride`, `n_best` and `max_answer_length`.

        Raises:
            InputError: The tokenizer gives no offsets, a window leaves no room, or a number is too small.
        """
        del problem_type
        filled = window_settings(given, base_config=base_config, processor=processor, pair=True)
        if processor.cls_token_id is None and processor.eos_token_id is None:
            raise InputError(
                "processor: the tokenizer of the base has neither a CLS nor an EOS token, and one of them has to stand "
                "for no answer. Choose another base"
            )
        filled = {"n_best": N_BEST, "max_answer_length": MAX_ANSWER_LENGTH, **filled}
        for name in ("n_best", "max_answer_length"):
            if filled[name] < 1:
                raise InputError(f"processor.{name} = {filled[name]}: expected 1 or more")
        return filled

    def fault(self, row: Mapping[str, Any], *, labels: Sequence[str]) -> str | None:
        """See `Task.fault`: an empty question or context, or an answer that is not where the row says."""
        del labels
        for name in ("question", "context"):
            if not (row.get(name) or "").strip():
                return f"{name}: there is none"
        return fault_of_answers(row["answers"], row["context"]) if row.get("answers") is not None else None

    def model_config(self, problem: Problem) -> dict[str, Any]:
        """See `Task.model_config`; each token has two outputs, whatever the base was trained for before."""
        del problem
        return {"num_labels": 2}

    def encode(self, rows: Rows, problem: Problem, *, training: bool = False) -> Features:
        """See `Task.encode`. A long context makes several features; only a question can be too long and be cut.

        `start` and `end` say where in the context each token is, `null` which token stands for "no answer".
        """
        del training
        contexts = list(rows["context"])
        questions, cut = shortened(rows["question"], problem)
        windows = question_windows(questions, contexts, problem)
        features: Features = {name: [] for name in ("length", "truncated", "row", "null", "start", "end")}
        for window in windows:
            for name, values in window.inputs.items():
                features.setdefault(name, []).append(values)
            features["length"].append(len(window.start))
            features["truncated"].append(cut[window.row])
            features["row"].append(window.row)
            features["null"].append(null_position(window, problem.processor))
            features["start"].append(window.start)
            features["end"].append(window.end)
        if rows.get("answers") is not None:
            spans = [answer_spans(own, text) for own, text in zip(rows["answers"], contexts, strict=True)]
            features["labels"] = [
                answer_tokens(window, spans[window.row], null=null)
                for window, null in zip(windows, features["null"], strict=True)
            ]
        return features

    def references(self, rows: Rows, problem: Problem) -> list[Any]:
        """See `Task.references`: the texts of the right answers; none for an unanswerable question."""
        del problem
        return [list(answers["text"]) for answers in rows["answers"]]

    def collator(
        self, problem: Problem, *, training: bool = False
    ) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]:
        """See `Task.collator`; pads on the right."""
        del training
        import torch

        def collate(features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
            batch = pad_windows(features, problem)
            if "labels" in features[0]:
                batch["labels"] = torch.tensor([row["labels"] for row in features])  # (windows, 2): first, last token
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
        """See `Task.loss`: cross-entropy over the tokens of a window, for the first and the last token of the answer.

        Padding is no token to choose from, so that a window's loss does not depend on its batch.
        """
        del problem, class_weight, label_smoothing
        import torch
        import torch.nn.functional as F  # noqa: N812

        padding = batch["attention_mask"].eq(0)
        total = torch.zeros((), device=batch["labels"].device)
        for side, name in enumerate(("start_logits", "end_logits")):
            logits = outputs[name].float()  # (windows, tokens)
            logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
            total = total + F.cross_entropy(logits, batch["labels"][:, side], reduction="sum")
        return total / items

    def answer(
        self, model: Any, batch: Mapping[str, Any], problem: Problem, *, outputs: Any | None
    ) -> dict[str, torch.Tensor]:
        """See `Task.answer`: `start_logits` and `end_logits`, `(windows, tokens)` each."""
        outputs = self.forward(model, batch, problem) if outputs is None else outputs
        return {name: outputs[name] for name in ("start_logits", "end_logits")}

    def decode(
        self, answer: Mapping[str, np.ndarray], features: Sequence[Mapping[str, Any]], problem: Problem
    ) -> list[Any]:
        """See `Task.decode`: for each window its best spans of the context, and the score of no answer."""
        settings, parts = problem.settings, []
        for start_logits, end_logits, feature in zip(
            answer["start_logits"], answer["end_logits"], features, strict=True
        ):
            spans = best_spans(
                start_logits,
                end_logits,
                starts=feature["start"],
                ends=feature["end"],
                max_tokens=settings["max_answer_length"],
                count=max(CANDIDATES, settings["n_best"]),
            )
            parts.append((float(start_logits[feature["null"]]) + float(end_logits[feature["null"]]), spans))
        return parts

    def join(self, parts: Parts, row: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
        """See `Task.join`: the best span of all windows, or no answer where that is likelier in every window.

        Scores are probabilities among the best spans of the row, and no answer where the adapter may say so.
        """
        settings = problem.settings
        spans = merged([found for _, found in parts], count=max(CANDIDATES, settings["n_best"]))
        threshold = settings.get("null_threshold", 0.0 if problem.labels else None)
        none = None if threshold is None else min(score for score, _ in parts)
        shares = _shares([score for score, _, _ in spans], none)
        found: list[dict[str, Any]] = [
            {"answer": row["context"][start:end], "score": share, "start": start, "end": end}
            for share, (_, start, end) in zip(shares, spans, strict=False)
        ]
        empty: dict[str, Any] = {"answer": "", "score": shares[-1] if none is not None else 0.0}
        empty |= {"start": None, "end": None}
        more: dict[str, Any] = {"candidates": found[: settings["n_best"]]} if settings["n_best"] > 1 else {}
        if none is None:
            return {**(found[0] if found else empty), **more}
        more = {"no_answer_score": shares[-1], **more}
        if not found:
            return {**empty, **more}
        if none - spans[0][0] > threshold:
            return {**empty, **more, "rejected": found[0]}
        return {**found[0], **more}

    def scorer(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> Callable[[Any], dict[str, float]]:
        """See `Task.scorer`: as SQuAD's own script, from 0 to 1."""
        del problem
        from lora_ft.metrics.extractive_answers import answer_counts, answer_scores

        counts = answer_counts([prediction["answer"] for prediction in predictions], references)
        return lambda rows: answer_scores(counts, rows)

    def constant_answer(self, references: Sequence[Any], problem: Problem) -> dict[str, Any] | None:
        """See `Task.constant_answer`: none to every question, where some are unanswerable."""
        del problem
        if all(references):
            return None
        return {"answer": "", "score": 1.0, "start": None, "end": None}

    def tune(
        self, predictions: Sequence[dict[str, Any]], references: Sequence[Any], problem: Problem
    ) -> dict[str, Any]:
        """See `Task.tune`: the `null_threshold` with the best F1, unless the recipe gives one.

        Only where unanswerable questions are among the training rows and among these.
        """
        if not problem.labels or "null_threshold" in problem.settings or all(references):
            return {}
        from lora_ft.metrics.extractive_answers import answer_match, best_threshold

        best = [prediction.get("rejected", prediction) for prediction in predictions]
        odds = [
            math.log(max(prediction["no_answer_score"], LOWEST)) - math.log(max(one["score"], LOWEST))
            for prediction, one in zip(predictions, best, strict=True)
        ]  # the difference of both scores, which the threshold is compared with
        matches = [answer_match(one["answer"], texts)[0] for one, texts in zip(best, references, strict=True)]
        found: float = best_threshold(odds, matches, [not texts for texts in references]).value
        above = [value for value in odds if value > found]
        return {"null_threshold": (found + min(above)) / 2 if above else found + 1.0}

    def probe_values(self, outputs: Any, batch: Mapping[str, Any]) -> torch.Tensor:
        """See `Task.probe_values`: both logits of every token."""
        del batch
        import torch

        return torch.cat([outputs["start_logits"], outputs["end_logits"]], dim=1)  # (windows, 2 * tokens)

    def shown(self, feature: Mapping[str, Any], problem: Problem) -> str:
        """See `Task.shown`: the answer marked in its context."""
        return shown.answer_shown(feature, problem)

    def example_rows(self, problem_type: str) -> dict[str, list[Any]]:
        """See `Task.example_rows`."""
        del problem_type
        questions = ["What broke?", "How long was it fine?", "Who sells it?", "What is the story?"]
        contexts = [
            "I love the phone, but the battery broke.",
            "The pan was good for one week, then it broke.",
            "The book is cheap and the size is nice.",
            "It is a sad story and not very good.",
        ]
        answers = ["the battery", "one week", None, "a sad story"]
        found: list[dict[str, list[Any]]] = [
            {"text": [text], "answer_start": [context.index(text)]} if text else {"text": [], "answer_start": []}
            for text, context in zip(answers, contexts, strict=True)
        ]
        return {"question": questions, "context": contexts, "answers": found}


def _shares(scores: Sequence[float], none: float | None) -> list[float]:
    """Probabilities among spans, and no answer as the last one where it may be said."""
    import numpy as np
    from scipy.special import softmax

    values = np.array([*scores, *([] if none is None else [none])])
    return [float(share) for share in softmax(values)] if len(values) else []
