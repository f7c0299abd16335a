"""Metrics of answers taken from a text, as the official SQuAD script computes them, and its no-answer threshold.

One row's references: ["Denver Broncos", "the Denver Broncos"]; an unanswerable question has none.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

from lora_ft.metrics.intervals import Indices
from lora_ft.metrics.totals import Table, ratio, totals

DESCRIPTION = """Exact match and word F1 of answers, from 0 to 1 (the official script prints per cent), each
the best over the right answers of a row. Both sides are normalised as in the official script: lower case, without
ASCII punctuation, without a, an, the, white space made one. A row without an answer that is left by this is
unanswerable, and right where the prediction is empty. Where some rows are unanswerable: `has_answer_*` and
`no_answer_*` are over the rows of either kind, 0.0 where there are none. As evaluate-v2.0.py; evaluate-v1.1.py
differs only in an answer made of nothing but articles and punctuation."""

INPUTS = """
Args:
    predictions: A text for each row; empty: no answer.
    references: For each row the texts of its right answers; none: unanswerable.
"""

CITATION = """@inproceedings{squad2, title={Know What You Don't Know: Unanswerable Questions for {SQ}u{AD}},
author={Rajpurkar, Pranav and Jia, Robin and Liang, Percy}, booktitle={ACL}, year={2018}}"""

ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class AnswerCounts:
    """What the metrics of any rows are summed from.

    Attributes:
        table: F1 and exact match and 1 where a row is answerable, and the same three where it is not, `(rows, 6)`.
        some_unanswerable: Whether any row is unanswerable.
    """

    table: Table
    some_unanswerable: bool


class Threshold(NamedTuple):
    """Where questions are best called unanswerable.

    Attributes:
        value: A row is answered where its no-answer score is at most this.
        score: The mean score of all rows then, from 0 to 1.
    """

    value: float
    score: float


def normalise_answer(text: str) -> str:
    """Lower case, without ASCII punctuation and articles, white space made one.

    Source: `normalize_answer` of evaluate-v2.0.py, https://worksheets.codalab.org (SQuAD 2.0); the order matters.
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def answer_match(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """F1 and exact match of one prediction, each the best over the right answers.

    Source: `get_raw_scores` of evaluate-v2.0.py.

    Args:
        prediction: Its text; empty: no answer.
        answers: The right answers; none: unanswerable.

    Returns:
        F1 and exact match, from 0 to 1.
    """
    given = normalise_answer(prediction)
    gold = [answer for answer in map(normalise_answer, answers) if answer] or [""]
    return max(_word_f1(given, answer) for answer in gold), float(given in gold)


def answer_counts(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> AnswerCounts:
    """Compares the rows, once for all draws of a bootstrap.

    Args:
        predictions: A text for each row; empty: no answer.
        references: For each row the texts of its right answers; none: unanswerable.

    Returns:
        The counts.
    """
    table = np.zeros((len(references), 2, 3))
    for row, (prediction, answers) in enumerate(zip(predictions, references, strict=True)):
        table[row, 0 if len(answers) else 1] = (*answer_match(prediction, answers), 1)
    return AnswerCounts(table.reshape(-1, 6), bool(table[:, 1, 2].any()))


def answer_scores(counts: AnswerCounts, rows: Indices | None = None) -> dict[str, float]:
    """The metrics of drawn rows.

    Args:
        counts: As `answer_counts` made them.
        rows: Row numbers, with repetition; None: all rows.

    Returns:
        Metric -> value, from 0 to 1.
    """
    sums = totals(counts.table, rows).reshape(2, 3)
    parts = {"": sums.sum(axis=0)}
    if counts.some_unanswerable:
        parts |= {"has_answer_": sums[0], "no_answer_": sums[1]}
    return {
        f"{prefix}{name}": float(ratio(part[index], part[2]))
        for prefix, part in parts.items()
        for index, name in enumerate(("f1", "exact_match"))
    }


def best_threshold(
    scores_no_answer: npt.ArrayLike, f1_if_answered: npt.ArrayLike, unanswerable: npt.ArrayLike
) -> Threshold:
    """The no-answer score above which questions are best left unanswered.

    Source: `find_best_thresh` of evaluate-v2.0.py. Two differences: rows of the same score are answered together
    or not at all, as they are when the threshold is used; and where no row should be answered the threshold lies
    below all scores (the script's 0.0 does only for probabilities).

    Args:
        scores_no_answer: How much speaks for no answer, `(rows,)`: a probability or a difference of logits.
        f1_if_answered: The score of the best answer of each row if it is given, `(rows,)`; F1 or exact match.
        unanswerable: Whether a row has no answer, `(rows,)`.

    Returns:
        The lowest of the best thresholds, and the mean score with it.
    """
    score = np.asarray(scores_no_answer, dtype=np.float64)
    unanswered = np.asarray(unanswerable, dtype=np.float64)
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    gained = np.cumsum((np.asarray(f1_if_answered, dtype=np.float64) - unanswered)[order])
    ends = np.flatnonzero(np.append(np.diff(ranked) > 0, True)) if len(ranked) else np.arange(0)
    best = ends[np.argmax(gained[ends])] if len(ends) else None
    if best is None or gained[best] <= 0:
        lowest = float(ranked[0]) if len(ranked) else 1.0
        return Threshold(0.0 if lowest > 0 else lowest - 1.0, float(ratio(unanswered.sum(), len(score))))
    return Threshold(float(ranked[best]), float((unanswered.sum() + gained[best]) / len(score)))


def _word_f1(given: str, answer: str) -> float:
    ours, theirs = given.split(), answer.split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


class ExtractiveAnswers(evaluate.Metric):  # type: ignore[misc]
    """Metrics of texts against the right answers."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": datasets.List(text)}),
            reference_urls=["https://rajpurkar.github.io/SQuAD-explorer/"],
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return answer_scores(answer_counts(predictions, references))
