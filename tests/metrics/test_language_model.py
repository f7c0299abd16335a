"""A language model's loss is the mean over tokens, and its perplexity never overflows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lora_ft.metrics.language_model import language_model_counts, language_model_scores
from lora_ft.metrics.load import load_metric


def test_loss_is_the_mean_over_tokens_not_over_rows_for_any_drawn_rows() -> None:
    generator = np.random.default_rng(0)
    losses = [generator.exponential(size=size) for size in (1, 7, 30, 2, 11)]
    right = [generator.random(len(row)) < 0.4 for row in losses]
    counts = language_model_counts(
        [row.sum() for row in losses], [len(row) for row in losses], [row.sum() for row in right]
    )
    for drawn in (np.arange(5), generator.integers(0, 5, size=5)):
        tokens = np.concatenate([losses[i] for i in drawn])
        assert language_model_scores(counts, drawn) == pytest.approx(
            {
                "loss": tokens.mean(),
                "perplexity": math.exp(tokens.mean()),
                "token_accuracy": np.concatenate([right[i] for i in drawn]).mean(),
            }
        )


def test_a_uniform_guess_has_the_perplexity_of_its_vocabulary() -> None:
    scores = language_model_scores(language_model_counts([3 * math.log(512)], [3], [0]))
    assert scores["perplexity"] == pytest.approx(512)


def test_a_huge_loss_has_a_finite_perplexity_and_no_tokens_have_loss_zero() -> None:
    with np.errstate(all="raise"):
        assert language_model_scores(language_model_counts([1e9], [1], [0]))["perplexity"] == math.exp(100)
        assert language_model_scores(language_model_counts([0.0], [0], [0]))["loss"] == 0.0


def test_the_evaluate_module_gives_the_same_numbers() -> None:
    rows = {"loss_sum": [2.5, 9.0], "tokens": [2, 3], "correct": [1, 0]}
    assert load_metric("language_model").compute(**rows) == language_model_scores(language_model_counts(**rows))
