"""Metrics of preference pairs: how often, and by how much, the chosen answer is rated above the rejected one."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

from lora_ft.metrics.intervals import Indices
from lora_ft.metrics.totals import Table, ratio, totals

DESCRIPTION = """`reward_accuracy` is the share of pairs whose chosen answer has the higher reward (a tie is
wrong), `reward_margin` the mean of chosen minus rejected. A reward may be DPO's implicit one, beta times the
log-probability of the policy over that of the reference, or a plain log-probability."""

INPUTS = """
Args:
    chosen: For each pair the reward of the chosen answer.
    rejected: For each pair the reward of the rejected answer.
"""

CITATION = """@inproceedings{dpo, title={Direct Preference Optimization: Your Language Model is Secretly a Reward
Model}, author={Rafailov, Rafael and others}, booktitle={NeurIPS}, year={2023}}"""


def preference_counts(chosen: npt.ArrayLike, rejected: npt.ArrayLike) -> Table:
    """Compares the pairs, once for all draws of a bootstrap.

    Args:
        chosen: Rewards of the chosen answers, `(rows,)`.
        rejected: Rewards of the rejected answers, `(rows,)`.

    Returns:
        For each pair whether it is in order, its margin, and 1, `(rows, 3)`.
    """
    margin = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    return np.stack([(margin > 0).astype(np.float64), margin, np.ones_like(margin)], axis=1)


def preference_scores(counts: Table, rows: Indices | None = None) -> dict[str, float]:
    """The metrics of drawn pairs.

    Args:
        counts: As `preference_counts` made them.
        rows: Row numbers, with repetition; None: all rows.

    Returns:
        Metric -> value.
    """
    right, margin, pairs = totals(counts, rows)
    return {"reward_accuracy": float(ratio(right, pairs)), "reward_margin": float(ratio(margin, pairs))}


class Preferences(evaluate.Metric):  # type: ignore[misc]
    """Metrics of rewards against rewards."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"chosen": datasets.Value("float64"), "rejected": datasets.Value("float64")}),
            reference_urls=["https://arxiv.org/abs/2305.18290"],
        )

    def _compute(self, chosen: Any, rejected: Any) -> dict[str, float]:
        return preference_scores(preference_counts(chosen, rejected))
