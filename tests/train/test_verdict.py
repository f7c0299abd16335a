"""Learned, or not: better than a constant by more than chance."""

from __future__ import annotations

import pytest

from lora_ft.train.verdict import learned_something

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
    assert learned_something(ours, constant, rows=rows, problem_type=SINGLE) is learned


def test_a_regression_that_guesses_has_not_learned() -> None:
    constant = {"mse": 1.0, "pearsonr": 0.0}
    assert not learned_something({"mse": 0.999, "pearsonr": 0.05}, constant, rows=100, problem_type=REGRESSION)
    assert not learned_something({"mse": 1.2, "pearsonr": 0.9}, constant, rows=100, problem_type=REGRESSION)
    assert learned_something({"mse": 0.5, "pearsonr": 0.7}, constant, rows=100, problem_type=REGRESSION)


def test_several_labels_must_beat_the_constant_on_both_means() -> None:
    constant = {"f1_micro": 0.5, "f1_macro": 0.2}
    assert learned_something({"f1_micro": 0.6, "f1_macro": 0.4}, constant, rows=50, problem_type=MULTI)
    assert not learned_something({"f1_micro": 0.5, "f1_macro": 0.4}, constant, rows=50, problem_type=MULTI)
