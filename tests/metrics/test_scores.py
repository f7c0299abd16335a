"""The metrics are scikit-learn's and scipy's own numbers, and never nan."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.metrics.load import load_metric
from lora_ft.metrics.multi_label import multi_label_scores
from lora_ft.metrics.regression import regression_scores
from lora_ft.metrics.single_label import label_ranks, single_label_scores, top_k_accuracy

NAMES = ["a", "b", "c", "d"]
CLASSES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)
VECTOR = st.lists(st.integers(0, 1), min_size=3, max_size=3)
VECTORS = st.lists(st.tuples(VECTOR, VECTOR), min_size=1, max_size=20)
NUMBER = st.floats(-100, 100).map(lambda value: round(value, 3))
NUMBERS = st.lists(st.tuples(NUMBER, NUMBER), min_size=1, max_size=20)


def plain_floats(scores: dict[str, Any]) -> bool:
    return all(type(value) is float and math.isfinite(value) for value in scores.values())


@given(CLASSES)
@settings(deadline=None, max_examples=80)
def test_single_label_equals_scikit_learn(rows: list[tuple[int, int]]) -> None:
    predicted, true = zip(*rows, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = single_label_scores(predicted, true, label_names=NAMES)
    assert plain_floats(scores)
    expected = {
        "accuracy": sk.accuracy_score(true, predicted),
        "f1_macro": sk.f1_score(true, predicted, average="macro", zero_division=0),
        "precision_macro": sk.precision_score(true, predicted, average="macro", zero_division=0),
        "recall_macro": sk.recall_score(true, predicted, average="macro", zero_division=0),
        "matthews_corrcoef": sk.matthews_corrcoef(true, predicted) if len({*true, *predicted}) > 1 else 0.0,
    }
    each = sk.f1_score(true, predicted, labels=range(4), average=None, zero_division=0)
    expected |= {f"f1/{name}": value for name, value in zip(NAMES, each, strict=True)}
    assert scores == pytest.approx(expected)


@given(st.integers(0, 1_000), st.integers(1, 5))
@settings(deadline=None, max_examples=30)
def test_top_k_accuracy_equals_scikit_learn_on_any_rows(seed: int, k: int) -> None:
    generator = np.random.default_rng(seed)
    scores, true = generator.random((12, 5)), generator.integers(0, 5, size=12)
    ranks = label_ranks(np.argsort(-scores, axis=1).tolist(), true.tolist())
    rows = generator.integers(0, 12, size=12)
    for drawn in (np.arange(12), rows):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn finds k = 5 of 5 classes meaningless
            expected = sk.top_k_accuracy_score(true[drawn], scores[drawn], k=k, labels=range(5))
        assert top_k_accuracy(ranks[drawn], k) == pytest.approx(expected)


def test_a_label_that_is_not_among_the_ranked_ones_is_never_right() -> None:
    ranks = label_ranks([["cat", "dog"], ["dog", "cat"], ["cat", "dog"]], ["cat", "cat", "cow"])
    assert [top_k_accuracy(ranks, k) for k in (1, 2, 100)] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert top_k_accuracy(ranks[:0], 5) == 0.0


@given(VECTORS)
@settings(deadline=None, max_examples=80)
def test_multi_label_equals_scikit_learn_on_the_labels_that_occur(
    rows: list[tuple[list[int], list[int]]],
) -> None:
    predicted, true = (np.array(side) for side in zip(*rows, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = multi_label_scores(predicted, true, label_names=NAMES[:3])
    assert plain_floats(scores)
    occur = [column for column in range(3) if predicted[:, column].any() or true[:, column].any()]
    expected = {"accuracy": sk.accuracy_score(true, predicted)}
    functions = {"f1": sk.f1_score, "precision": sk.precision_score, "recall": sk.recall_score}
    for name, function in functions.items():
        each = function(true, predicted, average=None, zero_division=0)
        expected[f"{name}_macro"] = float(np.mean([each[column] for column in occur])) if occur else 0.0
        expected[f"{name}_micro"] = function(true, predicted, average="micro", zero_division=0)
    each = sk.f1_score(true, predicted, average=None, zero_division=0)
    expected |= {f"f1/{name}": value for name, value in zip(NAMES[:3], each, strict=True)}
    assert scores == pytest.approx(expected)


@given(NUMBERS)
@settings(deadline=None, max_examples=80)
def test_regression_equals_scipy_and_scikit_learn(rows: list[tuple[float, float]]) -> None:
    predicted, true = zip(*rows, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = regression_scores(predicted, true)
    assert plain_floats(scores)
    both_vary = len(set(predicted)) > 1 and len(set(true)) > 1
    expected = {
        "pearsonr": np.corrcoef(true, predicted)[0, 1] if both_vary else 0.0,
        "spearmanr": scipy.stats.spearmanr(true, predicted)[0] if both_vary else 0.0,
        "mse": sk.mean_squared_error(true, predicted),
        "mae": sk.mean_absolute_error(true, predicted),
        "r2": sk.r2_score(true, predicted) if len(set(true)) > 1 else 0.0,
    }
    assert scores == pytest.approx(expected, abs=1e-9)


def test_a_perfect_output_scores_one_even_where_a_label_does_not_occur() -> None:
    single = single_label_scores([0, 1], [0, 1], label_names=NAMES)
    assert (single["f1_macro"], single["matthews_corrcoef"], single["f1/a"], single["f1/d"]) == (
        1.0,
        1.0,
        1.0,
        0.0,
    )
    multi = multi_label_scores([[1, 0], [0, 0]], [[1, 0], [0, 0]], label_names=["a", "b"])
    assert (multi["f1_macro"], multi["f1_micro"], multi["accuracy"]) == (1.0, 1.0, 1.0)
    perfect = {"pearsonr": 1, "spearmanr": 1, "mse": 0, "mae": 0, "r2": 1}
    assert regression_scores([1.0, 2.0], [1.0, 2.0]) == pytest.approx(perfect)


def test_constant_predictions_have_no_correlation() -> None:
    scores = regression_scores([0.1 + 0.2, 0.3, 0.3], [1.0, 2.0, 3.0])
    assert (scores["pearsonr"], scores["spearmanr"]) == (0.0, 0.0)
    assert regression_scores([1.0, 2.0], [3.0, 3.0])["r2"] == 0.0


@pytest.mark.parametrize(
    ("name", "predictions", "references", "more", "function"),
    [
        ("single_label", [0, 1, 2, 1], [0, 1, 1, 1], {"label_names": NAMES}, single_label_scores),
        ("multi_label", [[1, 0], [1, 1]], [[1, 0], [0, 1]], {"label_names": ["a", "b"]}, multi_label_scores),
        ("regression", [0.1, 2.5, 3.0], [0.0, 2.0, 3.5], {}, regression_scores),
    ],
)
def test_the_evaluate_module_gives_the_same_numbers(
    name: str, predictions: Any, references: Any, more: dict[str, Any], function: Any
) -> None:
    metric = load_metric(name)
    once = metric.compute(predictions=predictions, references=references, **more)
    assert once == function(predictions, references, **more)
    assert plain_floats(once)
    assert metric.compute(predictions=predictions, references=references, **more) == once
