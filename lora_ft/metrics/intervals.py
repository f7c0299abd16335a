"""How sure a number is: intervals from resampled rows, for one system and for the difference of two.

Source: Efron, B. and Tibshirani, R. J., An Introduction to the Bootstrap, Chapman & Hall 1993; percentile
interval: section 13.3, equation 13.5. Pairing two systems on the same rows: Koehn, P., EMNLP 2004, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lora_ft.errors import InputError

RESAMPLES = 1_000
CONFIDENCE = 0.95

Scores = Mapping[str, float]
Indices = npt.NDArray[np.int64]


class Interval(NamedTuple):
    """An interval that holds the true value with the confidence asked for, both ends included."""

    low: float
    high: float


def bootstrap_intervals(
    score: Callable[[Indices], Scores],
    rows: int,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Interval]:
    """Intervals of any metrics that a function computes from some of the rows.

    Args:
        score: Row indices `(rows,)`, with repetition -> metric -> value, as
            `lambda i: single_label_scores(predictions[i], references[i])`.
        rows: Number of rows.
        resamples: How often rows are drawn.
        confidence: Probability that the interval holds the true value.
        seed: Seed of the draws; the same seed draws the same rows.
        advance: Called with 1 after each draw, for a progress bar.

    Returns:
        Metric -> interval, for the metrics of all rows.

    Raises:
        InputError: No rows, no resamples, or a confidence that is not between 0 and 1.
    """
    _check(rows, resamples, confidence)
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in score(np.arange(rows))}
    for _ in range(resamples):
        for name, value in score(generator.integers(0, rows, size=rows)).items():
            drawn[name].append(value)
        if advance is not None:
            advance(1)
    return {name: _percentiles(np.asarray(values), confidence) for name, values in drawn.items()}


def paired_intervals(
    first: Callable[[Indices], Scores],
    second: Callable[[Indices], Scores],
    rows: int,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Interval]:
    """Intervals of `first - second` for two systems on the same rows; one without 0 is a difference.

    Args:
        first: As `score` of `bootstrap_intervals`.
        second: Likewise, for the other system; the same metrics.
        rows: Number of rows.
        resamples: How often rows are drawn.
        confidence: Probability that the interval holds the true difference.
        seed: Seed of the draws.
        advance: Called with 1 after each draw.

    Returns:
        Metric -> interval of the difference, for metrics that both have.
    """

    def difference(indices: Indices) -> Scores:
        one, other = first(indices), second(indices)
        return {name: one[name] - other[name] for name in one if name in other}

    return bootstrap_intervals(difference, rows, resamples=resamples, confidence=confidence, seed=seed, advance=advance)


def _check(rows: int, resamples: int, confidence: float) -> None:
    if rows < 1:
        raise InputError("intervals: there are no rows to draw from. Expected at least one")
    if resamples < 1:
        raise InputError(f"intervals: resamples = {resamples}. Expected at least one, 1,000 for two digits")
    if not 0 < confidence < 1:
        raise InputError(f"intervals: confidence = {confidence}. Expected a probability between 0 and 1, such as 0.95")


def _percentiles(values: npt.NDArray[Any], confidence: float) -> Interval:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))
