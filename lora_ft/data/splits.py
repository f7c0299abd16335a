"""Validation and test shares split off from the training rows: stratified by class, by whole groups, or by time."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lora_ft.errors import DataError

logger = logging.getLogger(__name__)

MOST_FOLDS = 20
MOST_GROUPS = 2_000
"""Up to here groups are dealt out one by one so that sizes and labels come out even, a second or two for a thousand; of
more groups a random share comes out even by itself."""

Numbers = npt.NDArray[np.int64]


def split_rows(labels: Sequence[Any], *, shares: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Divides the training rows at random; the same seed gives the same rows.

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
    from sklearn.model_selection import train_test_split  # here: scikit-learn takes 40 MB, and few runs split

    sizes = _sizes(len(labels), shares)
    left = list(range(len(labels)))
    result: dict[str, list[int]] = {}
    for split, size in sizes.items():
        classes = _classes(labels, left, size=size, what=f"{split}: split off")
        left, taken = train_test_split(left, test_size=size, random_state=seed, stratify=classes)
        left, result[split] = sorted(left), sorted(taken)
    return {"train": left, **result}


def split_groups(
    labels: Sequence[Any], groups: Sequence[str], *, shares: Mapping[str, float], seed: int
) -> dict[str, list[int]]:
    """Divides the training rows so that rows of one group are all in one split, at random; see `split_rows`.

    Sizes and classes come out as even as whole groups allow.

    Args:
        labels: The label of each training row.
        groups: What each training row belongs to: a customer, a document.
        shares: Split -> its share of all training rows.
        seed: Seed of the choice.

    Raises:
        DataError: As `split_rows`, or there are fewer groups than splits.
    """
    sizes = _sizes(len(labels), shares)
    number: Numbers = np.unique(np.asarray(groups, dtype=object), return_inverse=True)[1]
    count = int(number.max()) + 1
    if count <= len(sizes):
        told = "one group" if count == 1 else f"{count} groups"
        raise DataError(
            f"dataset.group: the training rows are of {told}, and {len(sizes) + 1} splits need one each at least. "
            "Expected a column that tells more of them apart; or leave it out"
        )
    left: Numbers = np.arange(len(labels))
    result: dict[str, list[int]] = {}
    for still, (split, size) in zip(range(len(sizes), 0, -1), sizes.items(), strict=True):
        taken = _some_groups(
            labels, number, left, share=size / len(left), most=len(set(number[left])) - still, seed=seed
        )
        result[split] = left[taken].tolist()
        left = left[~taken]
    return {"train": left.tolist(), **result}


def split_by_time(times: Numbers, *, shares: Mapping[str, float]) -> dict[str, list[int]]:
    """Divides the training rows by time: the newest are the test rows, the ones before them the validation rows.

    Rows of one moment stay together, so a share may come out a little smaller or larger.

    Args:
        times: When each training row is from, `(rows,)`; what `times_of` made.
        shares: Split -> its share of all training rows.

    Returns:
        As `split_rows`.

    Raises:
        DataError: As `split_rows`, or too few moments differ.
    """
    sizes = _sizes(len(times), shares)
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    result: dict[str, list[int]] = {}
    end = len(times)
    for split in [name for name in ("test", "validation") if name in sizes]:
        begin = _nearest_change(ordered, end - sizes[split])
        if not 0 < begin < end:
            raise DataError(
                f"dataset.time: no {sizes[split]} of {len(times)} training rows are newer than the others: too many "
                "are of one moment. Expected a finer column, or another share"
            )
        result[split] = sorted(order[begin:end].tolist())
        end = begin
    return {"train": sorted(order[:end].tolist()), **{split: result[split] for split in sizes}}


def times_of(values: Sequence[str]) -> tuple[Numbers, list[int]]:
    """When rows are from, as numbers that are larger for what is newer.

    Args:
        values: Numbers, or dates of ISO 8601 (`2024-05-01`, `2024-05-01T10:00:00+02:00`; without a zone UTC).

    Returns:
        The numbers, `(rows,)`, and the positions of the values that are neither, if not all are of one of the two.
    """
    as_numbers = pd.to_numeric(pd.Series(values, dtype=object), errors="coerce")
    if as_numbers.notna().all():
        return np.unique(as_numbers.to_numpy(dtype=np.float64), return_inverse=True)[1], []
    moments = pd.to_datetime(pd.Series(values, dtype=object), format="ISO8601", utc=True, errors="coerce")
    wrong = np.flatnonzero(moments.isna().to_numpy()).tolist()
    return np.unique(moments.to_numpy(), return_inverse=True)[1], wrong


def sample_rows(labels: Sequence[Any], *, size: int, seed: int) -> list[int]:
    """Some of the rows, at random, by label as `split_rows`; the same seed gives the same rows.

    Args:
        labels: The label of each row; None where there are none.
        size: How many; all rows where there are no more.
        seed: Seed of the choice.

    Returns:
        Their positions, ascending.
    """
    from sklearn.model_selection import train_test_split

    rows = list(range(len(labels)))
    if size >= len(rows):
        return rows
    classes = _classes(labels, rows, size=size, what="sample: drawn")
    taken, _ = train_test_split(rows, train_size=size, random_state=seed, stratify=classes)
    return sorted(taken)


def _sizes(rows: int, shares: Mapping[str, float]) -> dict[str, int]:
    """How many rows each share is.

    Raises:
        DataError: A share is not between 0 and 1, or too few rows are left for training.
    """
    for split, share in shares.items():
        if not 0 < share < 1:
            raise DataError(
                f"dataset.{split} = {share}: a share of the training rows. Expected more than 0, less than 1"
            )
    sizes = {split: max(1, round(share * rows)) for split, share in shares.items()}
    if sum(sizes.values()) >= rows:
        told = ", ".join(f"dataset.{split} = {share}" for split, share in shares.items())
        raise DataError(
            f"{told}: {sum(sizes.values())} of {rows} training rows would be split off, and none is "
            "left to train on. Expected smaller shares, or more rows"
        )
    return sizes


def _some_groups(
    labels: Sequence[Any], number: Numbers, left: Numbers, *, share: float, most: int, seed: int
) -> npt.NDArray[np.bool_]:
    """Which of the rows that are left are taken, `(rows left,)`: about a share of them, whole groups, some left over.

    Args:
        labels: Of all training rows.
        number: The group of each training row.
        left: The rows that are left.
        share: Of them.
        most: The most groups that may be taken.
        seed: Seed of the choice.
    """
    from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold

    mine = number[left]
    taken = np.zeros(len(left), dtype=bool)
    groups = len(np.unique(mine))
    if groups > MOST_GROUPS:
        splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed)
        taken[next(splitter.split(left, groups=mine))[1]] = True
        return taken
    part = Fraction(share).limit_denominator(min(MOST_FOLDS, groups))
    if not 0 < part < 1:
        part = Fraction(1, min(groups, max(2, round(1 / share)))) if part == 0 else Fraction(groups - 1, groups)
    folds, wanted = part.denominator, part.numerator
    values = [labels[row] for row in left.tolist()]
    counts = Counter(map(str, values))
    by_class = all(isinstance(value, str | bool | int) for value in values) and max(counts.values()) >= folds
    classes = list(map(str, values)) if by_class else ["all"] * len(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer rows than folds: as even as it can be
        dealt = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(left, classes, mine)
        for _, rows in dealt:
            grown = taken.copy()
            grown[rows] = True
            if wanted > 0 and len(rows) and len(np.unique(mine[grown])) <= most:
                taken, wanted = grown, wanted - 1
    return taken


def _nearest_change(ordered: Numbers, at: int) -> int:
    """The position nearest to `at` where ascending values change; of two as near the later one."""
    lower = int(np.searchsorted(ordered, ordered[at], side="left"))
    upper = int(np.searchsorted(ordered, ordered[at], side="right"))
    return lower if at - lower < upper - at else upper


def _classes(labels: Sequence[Any], rows: Sequence[int], *, size: int, what: str) -> list[str] | None:
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
    logger.info("%s at random and not by label: %s", what, reason)
    return None
