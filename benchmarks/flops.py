"""torch's counter of floating-point operations, with the products in place that it (2.13) does not know."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def flop_counter() -> FlopCounterMode:
    """Counts matrix products and attention within its context, forward and backward."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added_product})


def added_product(added: tuple[int, int], first: tuple[int, int], second: tuple[int, int], **others: Any) -> int:
    """Operations of `added += first @ second`.

    Args:
        added: Shape `(n, out)`.
        first: Shape `(n, in)`.
        second: Shape `(in, out)`.
        **others: What does not matter.
    """
    del others
    return 2 * first[1] * added[0] * second[1]
