"""Tensors walked through side by side, a part that stays in a core's cache at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

PIECE_VALUES = 2**18
"""Values of each tensor in a piece: a megabyte of float32."""


def piece_rows(rows: int, width: int, device: torch.device) -> int:
    """How many rows make a piece; on other devices than a CPU all of them do.

    Args:
        rows: Rows of the tensors.
        width: Values a row.
        device: Where they are.
    """
    return max(1, PIECE_VALUES // max(width, 1)) if device.type == "cpu" else max(1, rows)


def pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The rows of several tensors of as many, piece by piece; the first one's width decides.

    Args:
        *tensors: `(rows, width)` each, on one device.
    """
    first = tensors[0]
    size = piece_rows(len(first), first.shape[1], first.device)
    yield from zip(*(torch.split(one, size) for one in tensors), strict=True)
