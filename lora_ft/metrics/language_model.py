"""Metrics of a language model, from sums over the tokens of each row: loss, perplexity, token accuracy."""

from __future__ import annotations

import math
from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

from lora_ft.metrics.intervals import Indices
from lora_ft.metrics.totals import Table, ratio, totals

DESCRIPTION = """`loss` is the mean over all predicted tokens (not over rows) of the negative log-likelihood in
nats, `perplexity` its exponential, `token_accuracy` the share of tokens that were the most likely one. Without a
single token all sums are 0.0. A loss above 100 nats, which no vocabulary gives, has the perplexity of 100."""

INPUTS = """
Args:
    loss_sum: For each row the sum of its tokens' losses, in nats.
    tokens: For each row how many tokens were predicted.
    correct: For each row how many of them were the most likely token.
"""

CITATION = """@article{perplexity, title={Perplexity: a measure of the difficulty of speech recognition tasks},
author={Jelinek, F. and Mercer, R. L. and Bahl, L. R. and Baker, J. K.}, journal={JASA}, volume={62}, year={1977}}"""

LARGEST_LOSS = 100.0


def language_model_counts(loss_sum: npt.ArrayLike, tokens: npt.ArrayLike, correct: npt.ArrayLike) -> Table:
    """Puts the sums of the rows together, once for all draws of a bootstrap.

    Args:
        loss_sum: Sum of the losses of each row's tokens, nats, `(rows,)`.
        tokens: How many tokens each row has, `(rows,)`.
        correct: How many of them were the most likely token, `(rows,)`.

    Returns:
        The three side by side, `(rows, 3)`.
    """
    return np.stack([np.asarray(column, dtype=np.float64) for column in (loss_sum, tokens, correct)], axis=1)


def language_model_scores(counts: Table, rows: Indices | None = None) -> dict[str, float]:
    """The metrics of drawn rows.

    Args:
        counts: As `language_model_counts` made them.
        rows: Row numbers, with repetition; None: all rows.

    Returns:
        Metric -> value.
    """
    loss_sum, tokens, correct = totals(counts, rows)
    loss = float(ratio(loss_sum, tokens))
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, LARGEST_LOSS)),
        "token_accuracy": float(ratio(correct, tokens)),
    }


class LanguageModel(evaluate.Metric):  # type: ignore[misc]
    """Metrics of sums over tokens."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "loss_sum": datasets.Value("float64"),
                    "tokens": datasets.Value("int64"),
                    "correct": datasets.Value("int64"),
                }
            ),
            reference_urls=["https://huggingface.co/docs/transformers/perplexity"],
        )

    def _compute(self, loss_sum: Any, tokens: Any, correct: Any) -> dict[str, float]:
        return language_model_scores(language_model_counts(loss_sum, tokens, correct))
