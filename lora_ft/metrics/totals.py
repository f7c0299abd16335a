"""Sums over drawn rows: what most metrics are made of, fast enough for a thousand draws of a bootstrap."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lora_ft.metrics.intervals import Indices

Table = npt.NDArray[np.float64]
"""Counts or sums of each row, `(rows, columns)`; whole numbers stay exact up to 2**53."""


def row_weights(rows: Indices | None, count: int) -> npt.NDArray[np.float64]:
    """How often each of `count` rows was drawn, `(count,)`.

    Args:
        rows: Row numbers from 0, with repetition; None: every row once.
        count: How many rows there are.
    """
    if rows is None:
        return np.ones(count)
    return np.bincount(np.asarray(rows, dtype=np.int64), minlength=count).astype(np.float64)


def totals(table: Table, rows: Indices | None) -> npt.NDArray[np.float64]:
    """The sum of each column over the drawn rows, `(columns,)`.

    Args:
        table: `(rows, columns)`.
        rows: Row numbers from 0, with repetition; None: every row once.
    """
    summed: npt.NDArray[np.float64] = row_weights(rows, len(table)) @ table
    return summed


def ratio(part: Any, whole: Any) -> Any:
    """`part / whole`, numbers or arrays, and 0 where there is nothing to divide by."""
    return np.where(np.equal(whole, 0), 0.0, part / np.where(np.equal(whole, 0), 1, whole))
