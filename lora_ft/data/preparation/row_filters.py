"""Training rows that are left out for what their texts are: too short, too long, or in another language."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import datasets
import numpy as np
import numpy.typing as npt

from lora_ft.data.doctor.duplicates import WORD
from lora_ft.data.doctor.stream import BATCH_ROWS, text_of
from lora_ft.data.language import languages_of

Count = Callable[[Sequence[Sequence[str]]], Sequence[int]]
"""Texts, column by column -> how long each row is."""


def characters_of(texts: Sequence[Sequence[str]]) -> list[int]:
    """Characters of each row."""
    return [sum(map(len, row)) for row in zip(*texts, strict=True)]


def words_of(texts: Sequence[Sequence[str]]) -> list[int]:
    """Words of each row; a sign is one where a script has no blanks."""
    return [sum(len(WORD.findall(text)) for text in row) for row in zip(*texts, strict=True)]


def lengths_of(rows: datasets.Dataset, columns: Sequence[str], *, count: Count) -> npt.NDArray[np.int64]:
    """How long each row is, `(rows,)`.

    Args:
        rows: Rows under our column names.
        columns: Its columns of texts.
        count: What counts.
    """
    found: list[int] = []
    for start in range(0, len(rows), BATCH_ROWS):
        found.extend(count(_texts(rows, columns, start)))
    return np.array(found, dtype=np.int64)


def other_languages(
    rows: datasets.Dataset, columns: Sequence[str], *, languages: Sequence[str], threshold: float
) -> npt.NDArray[np.bool_]:
    """Which rows are in another language for sure, `(rows,)`; one that nobody can tell is not.

    Args:
        rows: Rows under our column names.
        columns: Its columns of texts.
        languages: Codes of the languages that rows may be in.
        threshold: From this probability on a language counts as told.
    """
    found: list[bool] = []
    for start in range(0, len(rows), BATCH_ROWS):
        texts = [" ".join(row) for row in zip(*_texts(rows, columns, start), strict=True)]
        found += [code not in languages and sure >= threshold for code, sure in languages_of(texts)]
    return np.array(found, dtype=bool)


def _texts(rows: datasets.Dataset, columns: Sequence[str], start: int) -> list[list[str]]:
    """Texts of a thousand rows, column by column."""
    batch = rows.select_columns(list(columns))[start : start + BATCH_ROWS]
    return [list(map(text_of, batch[name])) for name in columns]
