"""Which training rows an epoch draws where classes are balanced: whole rows, rare ones more often or others less."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

Strategy = Literal["oversample", "undersample", "balanced"]
NO_LABEL = -1
"""The group of rows without a label, where a row may have several or none."""


def class_groups(references: Sequence[Any], *, several: bool) -> npt.NDArray[np.int64]:
    """Which class each row counts for.

    Args:
        references: Class numbers, or 0/1 vectors where `several`.
        several: Whether a row may have several labels: it counts for the rarest of them, so that a rare label is not
            drawn less because a frequent one stands beside it; rows without a label are a class of their own.

    Returns:
        Class numbers, `(rows,)`; `NO_LABEL` for rows without one.
    """
    if not several:
        return np.asarray(references, dtype=np.int64)
    hot = np.asarray(references) > 0  # (rows, labels)
    counts = hot.sum(axis=0)
    rarity = np.where(hot, counts, np.iinfo(np.int64).max)
    return np.where(hot.any(axis=1), rarity.argmin(axis=1), NO_LABEL).astype(np.int64)


def drawn_counts(counts: Sequence[int], *, strategy: Strategy, ratio: float) -> list[int]:
    """How many rows of each class an epoch draws.

    Args:
        counts: Rows of each class; none is 0.
        strategy: See the recipe's `balancing`.
        ratio: Rows of the rarest class for each of the most frequent one, above 0 and at most 1.

    Returns:
        As many numbers, each at least 1.
    """
    most, least = max(counts), min(counts)
    if strategy == "oversample":
        return [max(count, math.ceil(ratio * most)) for count in counts]
    if strategy == "undersample":
        return [min(count, max(math.floor(least / ratio), 1)) for count in counts]
    shares = [max(count, ratio * most) for count in counts]
    return [max(round(sum(counts) * share / sum(shares)), 1) for share in shares]


@dataclass(frozen=True)
class ClassDraw:
    """The rows of each epoch, by class.

    A class is drawn without repetition as long as it has enough rows: the next epoch takes the next part of it, until
    no whole part is left and its rows are shuffled again. Where an epoch wants more than there are, all rows come
    equally often, and a part of them once more. What an epoch holds depends on seed and epoch alone.

    Attributes:
        groups: The class of each row, `(rows,)`.
        strategy: See the recipe's `balancing`.
        ratio: Likewise.
        seed: Seed of the draw.
    """

    groups: npt.NDArray[np.int64]
    strategy: Strategy
    ratio: float
    seed: int

    def counts(self) -> dict[int, tuple[int, int]]:
        """Class -> its rows, and how many of them an epoch draws."""
        names, counts = np.unique(self.groups, return_counts=True)
        drawn = drawn_counts(counts.tolist(), strategy=self.strategy, ratio=self.ratio)
        return {int(name): (int(count), one) for name, count, one in zip(names, counts, drawn, strict=True)}

    def __len__(self) -> int:
        return sum(drawn for _, drawn in self.counts().values())

    def rows(self, epoch: int) -> npt.NDArray[np.int64]:
        """Numbers of the rows of an epoch, class by class, `(drawn,)`."""
        parts = []
        for name, (count, drawn) in self.counts().items():
            own = np.flatnonzero(self.groups == name)
            parts += [own] * (drawn // count)
            if rest := drawn % count:
                pieces = count // rest  # of one shuffling
                rng = np.random.default_rng((self.seed, name - NO_LABEL, epoch // pieces))
                at = epoch % pieces * rest
                parts.append(rng.permutation(own)[at : at + rest])
        return np.concatenate(parts)


class DrawnSampler(torch.utils.data.Sampler[int]):
    """Yields the rows of a draw in random order, whatever their length; see `LengthGroupedSampler` for the other way.

    Args:
        draw: The rows of each epoch.
    """

    def __init__(self, draw: ClassDraw) -> None:
        self.draw = draw
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the rows and the order of the next epoch; the Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.draw)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.draw.seed, self.epoch))
        yield from generator.permutation(self.draw.rows(self.epoch)).tolist()
