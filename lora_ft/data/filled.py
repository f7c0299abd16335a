"""Training features as a data loader of several processes reads them: filled up with ghosts, which teach nothing.

37 rows, 8 a step: the last step has 5 rows, on one process and on four. accelerate (1.15) would fill it with rows from
the beginning of the epoch, so that several processes learn other rows than one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import torch

from lora_ft.data.encode import LazySplit

NUMBER = "number"
"""The key under which a collator is told which feature it gets."""
GHOST = "ghost"
"""The key that a ghost has, and a batch of nothing else."""


class FilledRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Features with their numbers; whatever number is beyond the last is a ghost.

    Ghosts are left out of a batch that has rows. A batch of ghosts alone is the shortest row, marked: a process has to
    compute something where others learn, or they would wait for it.

    Args:
        features: The features of the training rows.
    """

    def __init__(self, features: datasets.Dataset | LazySplit) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The features with their numbers; without it Python would go on to ghosts without end."""
        return (self[number] for number in range(len(self)))

    def __getitem__(self, key: int | str) -> Any:
        """A feature with its number, a ghost, or a column of all features, such as `length`."""
        return self.features[key] if isinstance(key, str) else self.__getitems__([key])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """A batch, as torch's data loader asks for one.

        Args:
            numbers: Of features, from 0; ghosts have higher ones.

        Returns:
            The features without the ghosts, or one ghost.
        """
        real = [number for number in numbers if number < len(self)]
        if not real:
            return [{**self.features[self._shortest], NUMBER: numbers[0], GHOST: True}]
        if isinstance(self.features, datasets.Dataset):
            found = self.features.__getitems__(real)  # a batch at once is far quicker than row by row
        else:
            found = [self.features[number] for number in real]
        return [{**feature, NUMBER: number} for number, feature in zip(real, found, strict=True)]

    @cached_property
    def _shortest(self) -> int:
        return int(np.argmin(np.asarray(self.features["length"][:], dtype=np.int64)))


class FilledSampler(torch.utils.data.Sampler[int]):
    """An order of rows, followed by as many ghosts as make the last batches of all processes whole.

    Args:
        order: The order of the rows of an epoch; but for a sequential one, it takes the epoch.
        rows: How many rows there are; the ghosts have the numbers from there on.
        multiple: Rows of one batch on all processes together.
    """

    def __init__(self, order: Any, *, rows: int, multiple: int) -> None:
        self.order = order
        self.rows = rows
        self.multiple = multiple

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next epoch; the Trainer calls it."""
        if not isinstance(self.order, torch.utils.data.SequentialSampler):
            self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.order) // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from range(self.rows, self.rows + len(self) - len(self.order))
