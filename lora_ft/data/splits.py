"""Validation and test shares split off from the training rows: seeded, stratified by class."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sklearn.model_selection import train_test_split

from lora_ft.errors import DataError

logger = logging.getLogger(__name__)


def split_rows(labels: Sequence[Any], *, shares: dict[str, float], seed: int) -> dict[str, list[int]]:
    """Divides the training rows; the same seed gives the same rows.

    Args:
        labels: The label of each training row; texts, booleans and integers are classes and are stratified
            by.
        shares: Split -> its share of all training rows.
        seed: Seed of the choice.

    Returns:
        `train` and each split of `shares` -> its row indices, ascending; disjoint, together all rows.

    Raises:
        DataError: A share is not between 0 and 1, or too few rows are left for training.
    """
    for split, share in shares.items():
        if not 0 < share < 1:
            raise DataError(
                f"dataset.{split} = {share}: a share of the training rows. Expected more than 0, less than 1"
            )
    sizes = {split: max(1, round(share * len(labels))) for split, share in shares.items()}
    if sum(sizes.values()) >= len(labels):
        told = ", ".join(f"dataset.{split} = {share}" for split, share in shares.items())
        raise DataError(
            f"{told}: {sum(sizes.values())} of {len(labels)} training rows would be split off, and none is "
            "left to train on. Expected smaller shares, or more rows"
        )
    left = list(range(len(labels)))
    result: dict[str, list[int]] = {}
    for split, size in sizes.items():
        classes = _classes(labels, left, size=size, split=split)
        left, taken = train_test_split(left, test_size=size, random_state=seed, stratify=classes)
        left, result[split] = sorted(left), sorted(taken)
    return {"train": left, **result}


def _classes(labels: Sequence[Any], rows: Sequence[int], *, size: int, split: str) -> list[str] | None:
    """What to stratify by, or None with the reason in the log."""
    if not all(isinstance(labels[row], str | bool | int) for row in rows):
        return None
    classes = [str(labels[row]) for row in rows]
    counts = Counter(classes)
    rare = sorted(name for name, count in counts.items() if count < 2)
    if rare:
        reason = f"{len(rare)} labels have a single row (such as {rare[0]!r})"
    elif size < len(counts) or len(rows) - size < len(counts):
        reason = f"{len(counts)} labels do not fit into {size} and {len(rows) - size} rows"
    else:
        return classes
    logger.info("%s: split off at random and not by label: %s", split, reason)
    return None
