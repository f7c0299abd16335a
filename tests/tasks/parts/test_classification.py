"""Classification parts: the best constant answer, and learned or not: better than it by more than chance."""

from __future__ import annotations

import pytest

from lora_ft.tasks.parts.classification import beats_majority, majority_answer
from lora_ft.tasks.parts.problem import Problem

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@pytest.mark.parametrize(
    ("mcc", "rows", "learned"),
    [
        (0.653, 200, True),
        (0.0, 200, False),
        (0.02, 200, False),
        (0.12, 200, True),
        (0.3, 20, False),
        (-0.5, 200, False),
    ],
)
def test_a_classifier_has_learned_when_its_correlation_is_beyond_chance(mcc: float, rows: int, learned: bool) -> None:
    ours = {"matthews_corrcoef": mcc, "accuracy": 0.94}  # of 95:5 classes: below the 0.95 of the constant answer
    constant = {"matthews_corrcoef": 0.0, "accuracy": 0.95}
    assert beats_majority(ours, constant, rows=rows, problem_type=SINGLE) is learned


def test_a_regression_that_guesses_has_not_learned() -> None:
    constant = {"mse": 1.0, "pearsonr": 0.0}
    assert not beats_majority({"mse": 0.999, "pearsonr": 0.05}, constant, rows=100, problem_type=REGRESSION)
    assert not beats_majority({"mse": 1.2, "pearsonr": 0.9}, constant, rows=100, problem_type=REGRESSION)
    assert beats_majority({"mse": 0.5, "pearsonr": 0.7}, constant, rows=100, problem_type=REGRESSION)


def test_several_labels_must_beat_the_constant_on_both_means() -> None:
    constant = {"f1_micro": 0.5, "f1_macro": 0.2}
    assert beats_majority({"f1_micro": 0.6, "f1_macro": 0.4}, constant, rows=50, problem_type=MULTI)
    assert not beats_majority({"f1_micro": 0.5, "f1_macro": 0.4}, constant, rows=50, problem_type=MULTI)


@pytest.mark.parametrize(
    ("problem_type", "references", "expected"),
    [
        (
            "single_label_classification",
            [0, 1, 1],
            {"label": "b", "score": 2 / 3, "scores": {"a": 1 / 3, "b": 2 / 3}},
        ),
        (
            "multi_label_classification",
            [[1, 0], [1, 1], [1, 0]],
            {"labels": ["a"], "scores": {"a": 1.0, "b": 1 / 3}},
        ),
        ("regression", [1.0, 2.0, 6.0], {"value": 3.0}),
    ],
)
def test_the_majority_answer_is_the_best_constant(
    problem_type: str, references: list[object], expected: dict[str, object]
) -> None:
    assert majority_answer(references, Problem(problem_type, ("a", "b"), None, {})) == expected
