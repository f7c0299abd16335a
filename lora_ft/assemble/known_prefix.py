"""What is known of a split's way through the frozen layers, as a forward pass over a batch of it is given it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

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
