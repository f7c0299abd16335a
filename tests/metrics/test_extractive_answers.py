"""Answers are scored as the official SQuAD 2.0 script scores them; the script's functions stand here as the twin."""

from __future__ import annotations

import collections
import re
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.metrics.extractive_answers import (
    answer_counts,
    answer_match,
    answer_scores,
    best_threshold,
    normalise_answer,
)
from lora_ft.metrics.load import load_metric

WORDS = st.sampled_from(["the", "a", "An", "Denver", "denver,", "Broncos", "50", "--", "Łódź", "théâtre", "U.S.", "  "])
TEXT = st.lists(WORDS, max_size=5).map(" ".join)
PAIRS = st.lists(st.tuples(TEXT, st.lists(TEXT, max_size=3)), min_size=1, max_size=12)


def official_normalize_answer(s: str) -> str:
    """evaluate-v2.0.py, `normalize_answer`."""

    def remove_articles(text):
        regex = re.compile(r"\b(a|an|the)\b", re.UNICODE)
        return re.sub(regex, " ", text)

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return " ".join(remove_articles(remove_punc(s.lower())).split())


def official_compute_f1(a_gold: str, a_pred: str) -> float:
    """evaluate-v2.0.py, `compute_f1`."""
    gold_toks = official_normalize_answer(a_gold).split()
    pred_toks = official_normalize_answer(a_pred).split()
    num_same = sum((collections.Counter(gold_toks) & collections.Counter(pred_toks)).values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision, recall = num_same / len(pred_toks), num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def official_raw_scores(a_pred: str, answers: list[str]) -> tuple[float, float]:
    """evaluate-v2.0.py, `get_raw_scores` of one question."""
    gold_answers = [a for a in answers if official_normalize_answer(a)] or [""]
    exact = max(int(official_normalize_answer(a) == official_normalize_answer(a_pred)) for a in gold_answers)
    return max(official_compute_f1(a, a_pred) for a in gold_answers), exact


def official_find_best_thresh(preds, scores, na_probs, qid_to_has_ans) -> tuple[float, float]:
    """evaluate-v2.0.py, `find_best_thresh`, as a share instead of per cent."""
    cur_score = sum(1 for k in qid_to_has_ans if not qid_to_has_ans[k])
    best_score, best_thresh = cur_score, 0.0
    for qid in sorted(na_probs, key=lambda k: na_probs[k]):
        diff = scores[qid] if qid_to_has_ans[qid] else -1 if preds[qid] else 0
        cur_score += diff
        if cur_score > best_score:
            best_score, best_thresh = cur_score, na_probs[qid]
    return best_score / len(scores), best_thresh


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The Denver Broncos!", "denver broncos"),
        ("  a  cat,  an owl\tand\nthe dog ", "cat owl and dog"),
        ("U.S.A.", "usa"),
        ("an-the", "anthe"),
        ("theatre", "theatre"),
        ("“quoted” — dash", "“quoted” — dash"),
        ("the", ""),
    ],
)
def test_texts_are_normalised_as_in_the_official_script(text: str, normalised: str) -> None:
    assert normalise_answer(text) == official_normalize_answer(text) == normalised


@given(PAIRS)
@settings(deadline=None, max_examples=150)
def test_f1_and_exact_match_are_the_official_ones(rows: list[tuple[str, list[str]]]) -> None:
    for prediction, answers in rows:
        assert answer_match(prediction, answers) == pytest.approx(official_raw_scores(prediction, answers))


@pytest.mark.parametrize(
    ("prediction", "answers", "f1", "exact"),
    [
        ("the Denver Broncos", ["Denver Broncos"], 1.0, 1.0),
        ("Denver", ["Denver Broncos", "the Broncos"], 2 / 3, 0.0),
        ("Carolina Panthers", ["Denver Broncos"], 0.0, 0.0),
        ("", ["Denver Broncos"], 0.0, 0.0),
        ("", [], 1.0, 1.0),
        ("Denver", [], 0.0, 0.0),
        ("to to be", ["to be"], 0.8, 0.0),
    ],
)
def test_known_examples(prediction: str, answers: list[str], f1: float, exact: float) -> None:
    assert answer_match(prediction, answers) == pytest.approx((f1, exact))


@given(PAIRS, st.integers(0, 100))
@settings(deadline=None, max_examples=80)
def test_drawn_rows_score_as_if_they_were_all(rows: list[tuple[str, list[str]]], seed: int) -> None:
    predictions, references = [row[0] for row in rows], [row[1] for row in rows]
    counts = answer_counts(predictions, references)
    for drawn in (np.arange(len(rows)), np.random.default_rng(seed).integers(0, len(rows), size=len(rows))):
        raw = [(*official_raw_scores(*rows[i]), bool(rows[i][1])) for i in drawn]
        expected = {}
        for prefix, some in (
            ("", raw),
            ("has_answer_", [r for r in raw if r[2]]),
            ("no_answer_", [r for r in raw if not r[2]]),
        ):
            expected[f"{prefix}f1"] = float(np.mean([r[0] for r in some])) if some else 0.0
            expected[f"{prefix}exact_match"] = float(np.mean([r[1] for r in some])) if some else 0.0
        if all(references):
            expected = {name: expected[name] for name in ("f1", "exact_match")}
        with np.errstate(all="raise"):
            assert answer_scores(counts, drawn) == pytest.approx(expected)


@given(st.integers(0, 10_000), st.integers(1, 40))
@settings(deadline=None, max_examples=150)
def test_the_threshold_is_the_official_scripts(seed: int, rows: int) -> None:
    generator = np.random.default_rng(seed)
    scores, has_answer = generator.random(rows), generator.random(rows) < 0.6
    f1 = np.where(has_answer, generator.integers(0, 9, size=rows) / 8, 0.0)  # sums are exact
    preds = ["something"] * rows
    best, value = official_find_best_thresh(
        preds, f1.tolist(), dict(enumerate(scores.tolist())), dict(enumerate(has_answer.tolist()))
    )
    assert best_threshold(scores, f1, ~has_answer) == pytest.approx((value, best))


@given(st.integers(0, 10_000), st.integers(1, 30))
@settings(deadline=None, max_examples=100)
def test_no_threshold_is_better_when_it_is_used(seed: int, rows: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(-3, 4, size=rows) / 2  # ties, and scores below zero
    unanswerable = generator.random(rows) < 0.5
    f1 = np.where(unanswerable, 0.0, generator.random(rows))

    def used(value: float) -> float:
        return float(np.where(scores <= value, f1, unanswerable).mean())

    found = best_threshold(scores, f1, unanswerable)
    assert used(found.value) == pytest.approx(found.score)
    assert found.score == pytest.approx(max(used(value) for value in [-9.0, *scores]))


def test_where_nothing_should_be_answered_the_threshold_lies_below_all_scores() -> None:
    assert best_threshold([0.2, 0.4], [0.0, 0.0], [True, True]) == (0.0, 1.0)
    value, score = best_threshold([-2.0, 0.4], [0.0, 0.0], [True, False])
    assert (value < -2.0, score) == (True, 0.5)


def test_the_evaluate_module_gives_the_same_numbers() -> None:
    rows = {"predictions": ["Denver", "", "x"], "references": [["Denver Broncos", "Denver"], [], ["y"]]}
    scores = load_metric("extractive_answers").compute(**rows)
    assert scores == answer_scores(answer_counts(**rows))
    assert (scores["f1"], scores["has_answer_f1"], scores["no_answer_f1"]) == pytest.approx((2 / 3, 0.5, 1.0))
