"""Pairs are in order where the chosen answer is rated higher."""

from __future__ import annotations

import numpy as np
import pytest

from lora_ft.metrics.load import load_metric
from lora_ft.metrics.preferences import preference_counts, preference_scores


def test_a_tie_is_wrong_and_the_margin_is_the_mean_difference() -> None:
    scores = preference_scores(preference_counts([1.0, 2.0, 0.0, 5.0], [0.0, 2.0, 1.0, 1.0]))
    assert scores == {"reward_accuracy": 0.5, "reward_margin": 1.0}


def test_drawn_pairs_score_as_if_they_were_all() -> None:
    generator = np.random.default_rng(0)
    chosen, rejected = generator.normal(size=(2, 30))
    drawn = generator.integers(0, 30, size=30)
    scores = preference_scores(preference_counts(chosen, rejected), drawn)
    margin = (chosen - rejected)[drawn]
    assert scores == pytest.approx({"reward_accuracy": (margin > 0).mean(), "reward_margin": margin.mean()})


def test_the_evaluate_module_gives_the_same_numbers() -> None:
    rows = {"chosen": [0.5, -1.0], "rejected": [0.25, 2.0]}
    assert load_metric("preferences").compute(**rows) == preference_scores(preference_counts(**rows))
