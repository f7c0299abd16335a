"""Rows of a split -> features, by the function that the task gives: kept in memory, or made as they are read."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import datasets
import torch

from lora_ft.data.progress import WATCHED_ROWS, quiet
from lora_ft.errors import DataError

BATCH_ROWS = 1_000


class LazyEncode(Protocol):
    """What a `LazySplit` calls for each row: `encode(rows, index=7, epoch=0)`."""

    def __call__(self, rows: Mapping[str, Sequence[Any]], *, index: int, epoch: int) -> Mapping[str, Sequence[Any]]:
        """A batch of one row, column by column -> its one feature, column by column.

        Args:
            rows: The row.
            index: Its number in the split.
            epoch: The epoch; what is random must follow from the run's seed, `epoch` and `index` alone, so that it
                does not depend on the number of workers.
        """


def encode_split(
    rows: datasets.Dataset,
    encode: Callable[[Mapping[str, list[Any]]], Mapping[str, Sequence[Any]]],
    *,
    description: str,
) -> datasets.Dataset:
    """Encodes all rows of a split; the columns of the rows are gone afterwards.

    The features stay in memory: the cache of `datasets` would keep them in readable files, and its key would be a hash
    of the tokenizer, which changes as it is used; `feature_cache.py` does better. A token takes about six bytes.

    Args:
        rows: Rows under our column names.
        encode: A batch of rows, column by column -> features, column by column. Where they are not one for each row,
            the column `row` has the position in the batch of the row that each feature came from.
        description: What a progress bar says; there is one from 5,000 rows on.

    Returns:
        The features in the order of their rows, with the column `row`: the number in `rows` of the row of each. Where
        no row makes any there are no rows, and only the columns `length` and `row`.
    """

    def numbered(batch: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, Any]:
        features = dict(encode(batch))
        return {**features, "row": [numbers[at] for at in features.get("row", range(len(numbers)))]}

    with quiet(unless=len(rows) >= WATCHED_ROWS):
        features = rows.map(
            numbered,
            batched=True,
            with_indices=True,
            batch_size=BATCH_ROWS,
            remove_columns=rows.column_names,
            keep_in_memory=True,
            new_fingerprint=uuid.uuid4().hex,  # else `datasets` pickles the tokenizer to hash it
            desc=description,
        )
    if not len(features):  # then `datasets` hands out the columns of the rows
        return datasets.Dataset.from_dict({"length": [], "row": []})
    return features


class LazySplit(torch.utils.data.Dataset[dict[str, Any]]):
    """The features of a split, one for each row, made anew each time one is read and never kept (images, sounds).

    A DataLoader's workers get a copy. The epoch lies in shared memory, so that `set_epoch` reaches workers that live
    on from one epoch to the next, too; `train/trainer.py` calls it at the beginning of each.

    Args:
        rows: Rows under our column names.
        encode: Makes the feature of a row; must be picklable where workers are not forked.
        lengths: What each row costs, `(rows,)`, known without encoding.
    """

    def __init__(self, rows: datasets.Dataset, encode: LazyEncode, *, lengths: Sequence[int]) -> None:
        self.rows = rows
        self.encode = encode
        self.lengths = list(lengths)
        self.epoch = torch.zeros((), dtype=torch.int64)
        self.epoch.share_memory_()  # type: ignore[no-untyped-call]  # as torch 2.13 has it

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch rows are encoded for from now on."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | str) -> Any:
        """The feature of a row with `row`, its number; or the columns `length` and `row` without encoding anything.

        Args:
            key: A row's number, from the end if negative, or the name of one of the two columns.

        Raises:
            DataError: The row cannot be read, though nothing was wrong with it at first sight; says its number.
            IndexError: There is no such row.
            KeyError: There is no such column, or it is known only by encoding.
            ValueError: `encode` made more or fewer features than one.
        """
        if isinstance(key, str):
            return {"length": self.lengths, "row": list(range(len(self)))}[key]
        index = range(len(self))[key]
        try:
            columns = self.encode(self.rows[index : index + 1], index=index, epoch=int(self.epoch))
        except DataError as error:  # what only reading it whole could show, such as a sound that breaks off
            raise DataError(f"row {index + 1} of the split: {error}") from error
        if any(len(values) != 1 for values in columns.values()):
            raise ValueError(f"row {index}: a lazy split has one feature for each row, encode made more or fewer")
        return {**{name: values[0] for name, values in columns.items()}, "row": index}
