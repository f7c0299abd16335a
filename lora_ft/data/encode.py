"""Rows of a split -> features, by the function that the task gives."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

import datasets

from lora_ft.data.progress import WATCHED_ROWS, quiet

BATCH_ROWS = 1_000


def encode_split(
    rows: datasets.Dataset,
    encode: Callable[[Mapping[str, list[Any]]], dict[str, list[Any]]],
    *,
    description: str,
) -> datasets.Dataset:
    """Encodes all rows of a split; the columns of the rows are gone afterwards.

    The features stay in memory and are never cached on disk: a cache would keep a copy of the user's texts
    behind the run, and its key would be a hash of the tokenizer, which changes as the tokenizer is used. A
    token takes about six bytes.

    Args:
        rows: Rows under our column names.
        encode: A batch of rows, column by column -> features, column by column.
        description: What a progress bar says; there is one from 5,000 rows on.

    Returns:
        One row of features for each row, in the same order.
    """
    with quiet(unless=len(rows) >= WATCHED_ROWS):
        return rows.map(
            encode,
            batched=True,
            batch_size=BATCH_ROWS,
            remove_columns=rows.column_names,
            keep_in_memory=True,
            new_fingerprint=uuid.uuid4().hex,  # else `datasets` pickles the tokenizer to hash it
            desc=description,
        )
