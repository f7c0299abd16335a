"""What is known of a split's way through the frozen layers, as a forward pass over a batch of it is given it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import datasets

from lora_ft.assemble.encode import EncodedRows
from lora_ft.data.feature_cache import rows_digest
from lora_ft.models.hidden_rows import HiddenRows
from lora_ft.models.prefix import Prefix, passing_over


@dataclass(frozen=True)
class KnownPrefix:
    """A split whose rows need not be computed below the lowest layer that is trained.

    Attributes:
        prefix: The layers.
        hidden: What they return for each row.
        device: Where the model computes.
    """

    prefix: Prefix
    hidden: HiddenRows
    device: str


def passed_over(
    known: KnownPrefix | None, rows: Sequence[int] | None, batch: Mapping[str, Any]
) -> AbstractContextManager[None]:
    """Within, the next forward pass over a batch is given what is known of it.

    Args:
        known: What is known; None: nothing.
        rows: Numbers of the batch's features; None: it is none of the split.
        batch: The batch; it says how wide the rows are padded.
    """
    if known is None or rows is None:
        return nullcontext()
    hidden = known.hidden.padded(rows, int(batch["attention_mask"].shape[1]))
    return passing_over(known.prefix, hidden.to(known.device))


def known_of_rows(
    known: KnownPrefix | None, features: EncodedRows, others: EncodedRows, *, rows: Sequence[int]
) -> KnownPrefix | None:
    """What is known of some rows of a split that were encoded once more.

    Args:
        known: What is known of the split.
        features: Its features.
        others: The features of the rows that were encoded once more.
        rows: Their numbers in the split, ascending.

    Returns:
        What is known of them; None where nothing is, or where the features are not the same.
    """
    if known is None or not isinstance(features, datasets.Dataset) or not isinstance(others, datasets.Dataset):
        return None
    wanted = frozenset(rows)
    numbers = [number for number, row in enumerate(features["row"][:]) if row in wanted]
    columns = sorted(name for name in features.column_names if name != "row")
    if columns != sorted(name for name in others.column_names if name != "row") or len(numbers) != len(others):
        return None
    if rows_digest(features.select(numbers).select_columns(columns)) != rows_digest(others.select_columns(columns)):
        return None
    return replace(known, hidden=known.hidden.select(numbers))
