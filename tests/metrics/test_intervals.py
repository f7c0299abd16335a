"""Bootstrap intervals: seeded, paired, and as wide as theory says."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.errors import InputError
from lora_ft.metrics.intervals import Interval, bootstrap_intervals, paired_intervals
from lora_ft.metrics.single_label import single_label_scores


def mean_of(values: np.ndarray):
    return lambda indices: {"mean": float(values[indices].mean())}


def mean_interval(values, **options) -> Interval:
    array = np.asarray(values)
    return bootstrap_intervals(mean_of(array), len(array), **options)["mean"]


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40), st.integers(0, 3))
@settings(deadline=None, max_examples=30)
def test_the_same_seed_gives_the_same_interval_inside_the_values(values: list[float], seed: int) -> None:
    once = mean_interval(values, resamples=50, seed=seed)
    assert mean_interval(values, resamples=50, seed=seed) == once
    assert min(values) - 1e-9 <= once.low <= once.high <= max(values) + 1e-9


def test_every_draw_advances_the_bar_by_one() -> None:
    steps: list[int] = []
    mean_interval([1.0, 2.0], resamples=7, advance=steps.append)
    assert steps == [1] * 7


def test_an_interval_of_a_mean_is_close_to_scipys_and_to_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(loc=5, size=400)
    ours = mean_interval(values, resamples=4000)
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=0)
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)
    assert ours.high - ours.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)


def test_ninety_five_of_a_hundred_intervals_hold_the_truth() -> None:
    generator = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        low, high = mean_interval(generator.binomial(1, 0.8, size=200), resamples=200)
        held += low <= 0.8 <= high
    assert 0.90 <= held / 300 <= 0.985


def test_every_metric_of_a_score_gets_its_interval() -> None:
    generator = np.random.default_rng(3)
    true = generator.integers(0, 3, size=200)
    predicted = np.where(generator.random(200) < 0.8, true, 0)
    intervals = bootstrap_intervals(lambda i: single_label_scores(predicted[i], true[i]), 200, resamples=100)
    scores = single_label_scores(predicted, true)
    assert set(intervals) == set(scores)
    assert all(intervals[name].low < scores[name] < intervals[name].high for name in scores)
    assert isinstance(intervals["accuracy"], Interval)


def test_pairing_finds_a_difference_that_single_intervals_hide() -> None:
    generator = np.random.default_rng(4)
    hard = generator.normal(size=300)
    first, second = hard + 0.05, hard
    paired = paired_intervals(mean_of(first), mean_of(second), 300, resamples=200)["mean"]
    assert paired == pytest.approx((0.05, 0.05))
    assert mean_interval(first).low < mean_interval(second).high


def test_a_system_does_not_differ_from_itself() -> None:
    values = np.random.default_rng(5).normal(size=50)
    assert paired_intervals(mean_of(values), mean_of(values), 50, resamples=20)["mean"] == Interval(0.0, 0.0)


def test_one_row_gives_a_point() -> None:
    assert mean_interval([0.25]) == Interval(0.25, 0.25)


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        (0, {}, "there are no rows"),
        (3, {"resamples": 0}, "resamples = 0"),
        (3, {"confidence": 95}, "confidence = 95"),
    ],
)
def test_what_cannot_be_drawn_is_refused(rows: int, more: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bootstrap_intervals(mean_of(np.ones(rows)), rows, **more)
