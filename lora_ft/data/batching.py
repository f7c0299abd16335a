"""Batches of rows of like length: little padding, still random, and the same on any number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lora_ft.data.balancing import ClassDraw

MEGABATCH_BATCHES = 50


class LengthGroupedSampler(torch.utils.data.Sampler[int]):
    """Yields the rows of an epoch in an order in which each global batch holds rows of like length.

    Every row comes once, or as often as `draw` says. Rows are shuffled, cut into megabatches of 50 global batches, and
    sorted by length within each; then the batches are shuffled. The batch with the longest row comes first, so that
    too little memory shows at the first step; an incomplete batch comes last. The order depends on seed and epoch
    alone: accelerate gives process i every i-th piece of it, so that one step sees the same rows on one process and
    on eight.

    Args:
        lengths: Tokens of each row.
        global_batch_size: Rows of one optimizer step: all processes, all accumulated batches.
        seed: Seed of the order.
        draw: Which rows an epoch draws, where classes are balanced; None: every row once.
    """

    def __init__(
        self, lengths: Sequence[int], *, global_batch_size: int, seed: int, draw: ClassDraw | None = None
    ) -> None:
        self.lengths = np.asarray(lengths[:], dtype=np.int64)  # `[:]`: a column of `datasets` is slow row by row
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.draw = draw
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next epoch; the Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) if self.draw is None else len(self.draw)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        rows = generator.permutation(len(self.lengths) if self.draw is None else self.draw.rows(self.epoch))
        size = self.global_batch_size
        batches: list[list[int]] = []
        for start in range(0, len(rows), MEGABATCH_BATCHES * size):
            mega = rows[start : start + MEGABATCH_BATCHES * size]
            mega = mega[np.argsort(-self.lengths[mega], kind="stable")]
            batches += [mega[at : at + size].tolist() for at in range(0, len(mega), size)]
        incomplete = [batches.pop()] if batches and len(batches[-1]) < size else []
        if batches:
            # sorted longest first, the first row of a batch is its longest
            longest = max(range(len(batches)), key=lambda index: self.lengths[batches[index][0]])
            first = batches.pop(longest)
            batches = [first, *(batches[index] for index in generator.permutation(len(batches)))]
        for batch in (*batches, *incomplete):
            yield from batch


def padded_lengths(lengths: npt.ArrayLike, settings: Mapping[str, Any]) -> npt.NDArray[np.int64]:
    """Tokens that each row has where it is the longest of its batch, `(rows,)`; at least 1.

    Args:
        lengths: Tokens of each row.
        settings: The recipe's `processor`, which may pad to more.
    """
    tokens = np.maximum(np.asarray(lengths, dtype=np.int64), 1)
    if settings.get("padding") == "max_length":
        tokens = np.maximum(tokens, int(settings["max_length"]))
    multiple = int(settings.get("pad_to_multiple_of") or 1)
    return -(-tokens // multiple) * multiple


def padding_ratio(
    lengths: Sequence[int], batches: Iterable[Sequence[int]], *, padded: Sequence[int] | None = None
) -> float:
    """Tokens computed over real tokens, when each batch is padded to its longest row; 1.0 is no padding.

    Args:
        lengths: Tokens of each row.
        batches: Row indices of each batch.
        padded: What each row has where it is the longest of its batch; None: its tokens.
    """
    widths = lengths if padded is None else padded
    computed = real = 0
    for batch in batches:
        tokens = [lengths[row] for row in batch]
        computed += len(tokens) * max(widths[row] for row in batch)
        real += sum(tokens)
    return computed / real if real else 1.0
