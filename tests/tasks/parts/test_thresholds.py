"""Thresholds: the best one beside a search through all of them, and what is done where few rows could tell."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts.problem import Problem
from lora_ft.tasks.parts.thresholds import best_cut, known_thresholds, tuned_thresholds

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
TASK = load_task("text-classification")


def slow_f1(scores: Sequence[float], positive: Sequence[bool], threshold: float, *, both: bool) -> float:
    """F1 by counting rows one by one."""
    predicted = [score >= threshold for score in scores]

    def f1(wanted: bool) -> float:
        right = sum(p == y == wanted for p, y in zip(predicted, positive, strict=True))
        sides = sum(p == wanted for p in predicted) + sum(y == wanted for y in positive)
        return 2 * right / sides if sides else 0.0

    return (f1(True) + f1(False)) / 2 if both else f1(True)


ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.51, 0.9, 1.0]), st.booleans()), min_size=1, max_size=30
)


@given(rows=ROWS, both=st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_threshold_is_better_than_the_chosen_one(rows: list[tuple[float, bool]], both: bool) -> None:
    scores, positive = [score for score, _ in rows], [has for _, has in rows]
    cut = best_cut(scores, positive, both=both)
    assert slow_f1(scores, positive, cut.value, both=both) == pytest.approx(cut.score)
    assert cut.score == pytest.approx(max(slow_f1(scores, positive, t, both=both) for t in [*scores, 1.1]))
    assert cut.default == pytest.approx(slow_f1(scores, positive, 0.5, both=both))


def test_the_threshold_is_the_middle_of_the_widest_best_stretch() -> None:
    assert best_cut([0.1, 0.2, 0.4, 0.45], [False, False, True, True], both=True).value == pytest.approx(0.3)


def test_one_half_stays_where_nothing_is_better() -> None:
    assert best_cut([0.1, 0.9], [False, True], both=True).value == 0.5
    assert best_cut([0.3, 0.3], [False, True], both=False).value == pytest.approx(0.15)  # ties go together


def rows_of(scores: Sequence[float], *, rare: int) -> tuple[list[dict[str, object]], list[int]]:
    """Predictions of two classes, the first `rare` rows are of class 0."""
    predictions: list[dict[str, object]] = [{"scores": {"a": score, "b": 1 - score}} for score in scores]
    return predictions, [0] * rare + [1] * (len(scores) - rare)


def test_of_two_classes_the_rarer_one_gets_the_threshold() -> None:
    predictions, references = rows_of([0.4] * 12 + [0.1] * 30, rare=12)
    found = tuned_thresholds(predictions, references, labels=("a", "b"), several=False)
    assert found == {"a": pytest.approx(0.25)}


def test_few_rows_of_a_class_choose_no_threshold_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    predictions, references = rows_of([0.4] * 9 + [0.1] * 30, rare=9)
    with caplog.at_level(logging.WARNING):
        assert tuned_thresholds(predictions, references, labels=("a", "b"), several=False) == {"a": 0.5}
    assert "9 of 39 validation rows have a, at least 10" in caplog.text


def test_each_label_gets_its_own_threshold_and_rare_ones_share_one() -> None:
    rng = np.random.default_rng(0)
    hot = np.zeros((60, 3), dtype=int)
    hot[:30, 0], hot[20:40, 1], hot[:4, 2] = 1, 1, 1
    low = np.array([0.05, 0.3, 0.1])
    scores = np.where(hot > 0, low + 0.3, low) + rng.random((60, 3)) * 0.01
    predictions = [{"scores": dict(zip("abc", row, strict=True))} for row in scores.tolist()]
    found = tuned_thresholds(predictions, hot.tolist(), labels=("a", "b", "c"), several=True)
    assert 0.06 < found["a"] <= 0.35
    assert 0.31 < found["b"] <= 0.6
    assert found["c"] not in (found["a"], found["b"])
    shared = slow_f1(scores.ravel().tolist(), (hot.ravel() > 0).tolist(), found["c"], both=False)
    assert shared == pytest.approx(best_cut(scores.ravel(), hot.ravel() > 0, both=False).score)


@pytest.mark.parametrize("name", ["text-classification", "image-classification", "audio-classification"])
def test_a_prediction_follows_the_threshold_and_keeps_its_scores(name: str) -> None:
    task = load_task(name)
    plain = Problem(SINGLE, ("a", "b"), None, {"thresholds": "tuned"})  # not yet tuned
    (part,) = task.decode({"logits": np.array([[0.0, 1.0]])}, [{}], plain)
    assert task.join([part], {}, plain) == part
    assert part["label"] == "b"
    eager = task.join([part], {}, Problem(SINGLE, ("a", "b"), None, {"thresholds": {"a": 0.2}}))
    assert eager == {"label": "a", "score": part["scores"]["a"], "scores": part["scores"]}
    wary = task.join([part], {}, Problem(SINGLE, ("a", "b"), None, {"thresholds": {"b": 0.9}}))
    assert wary["label"] == "a"


def test_several_labels_follow_their_thresholds() -> None:
    problem = Problem(MULTI, ("a", "b", "c"), None, {"thresholds": {"a": 0.9, "b": 0.2}})
    (part,) = TASK.decode({"logits": np.array([[2.0, -1.0, 0.1]])}, [{}], problem)
    assert TASK.join([part], {}, problem)["labels"] == ["b", "c"]


def test_a_threshold_that_was_given_is_not_tuned() -> None:
    predictions, references = rows_of([0.4] * 12 + [0.1] * 30, rare=12)
    for asked, tunes in (({}, False), ({"thresholds": {"a": 0.3}}, False), ({"thresholds": "tuned"}, True)):
        found = TASK.tune(predictions, references, Problem(SINGLE, ("a", "b"), None, asked))
        assert bool(found) is tunes
        assert not tunes or known_thresholds(found) == {"a": pytest.approx(0.25)}
