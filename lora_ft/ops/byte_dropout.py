"""Dropout by one random byte a value: each value is dropped with exactly p, at a fraction of torch's cost on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lora_ft.ops.pieces import piece_rows

LEVELS = 256
MOST_DROPPED = 255 / 256
"""No byte lies below a threshold of 256 and above it."""


@dataclass(frozen=True)
class ByteMask:
    """Which values of a matrix are kept.

    Attributes:
        kept: 1 or 0, one byte each, `(rows, width)`.
        scale: What kept values are multiplied by, so that their expectation stays.
    """

    kept: torch.Tensor
    scale: float


def draw_mask(rows: int, width: int, *, p: float, device: torch.device) -> ByteMask:
    """Draws which values are kept.

    A byte below a threshold is dropped. p is no number of 256ths, so each row draws which of its two neighbours is its
    threshold: 0.1 lies between 25 and 26 of 256, so six rows in ten take 26 and four take 25.

    All chance comes from the device's global generator of torch, whose state checkpoints keep.

    Args:
        rows: Rows of the matrix.
        width: Values a row.
        p: From 0 to `MOST_DROPPED`.
        device: Where the mask is wanted.

    Returns:
        The mask.
    """
    low = int(p * LEVELS)
    higher = torch.rand(rows, 1, device=device) < p * LEVELS - low  # (rows, 1)
    thresholds = (low - LEVELS // 2 + higher.to(torch.int16)).to(torch.int8)
    drawn = _random_bytes(rows * width, device).view(rows, width)
    kept = torch.empty_like(drawn)
    torch.ge(drawn, thresholds, out=kept)  # into bytes: torch 2.13 writes booleans twenty times slower
    return ByteMask(kept, 1 / (1 - p))


def _random_bytes(count: int, device: torch.device) -> torch.Tensor:
    """Random int8, `(count,)`."""
    words = max(1, -(-count // 8))
    if device.type == "cpu":  # NumPy's SFC64 takes half the time of torch's Mersenne twister
        seed = int(torch.randint(2**62, ()))
        drawn = torch.from_numpy(np.random.SFC64(seed).random_raw(words).view(np.int64))
    else:
        drawn = torch.empty(words, dtype=torch.int64, device=device)
        # the least number as lower bound: without it the highest bit stays 0, which biases one byte in eight
        drawn.random_(torch.iinfo(torch.int64).min, None)
    return drawn.view(torch.int8)[:count]


def pieces_of(kept: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
    """A mask as numbers, on a CPU piece by piece; each piece overwrites the one before.

    Args:
        kept: 1 or 0, `(rows, width)`.
        dtype: Of the numbers.

    Yields:
        Which rows, and their numbers.
    """
    rows, width = kept.shape
    size = piece_rows(rows, width, kept.device)
    room = torch.empty(min(size, rows), width, dtype=dtype, device=kept.device)
    for start in range(0, rows, size):
        piece = slice(start, min(start + size, rows))
        yield piece, room[: piece.stop - start].copy_(kept[piece])
