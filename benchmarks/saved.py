"""What autograd keeps of a forward pass for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def saved_mb(forward: Callable[[], Any], *, leave_out: nn.Module) -> float:
    """Megabytes of the distinct storages that are kept.

    Args:
        forward: Computes something that has a gradient.
        leave_out: The model whose parameters and buffers are there anyway.
    """
    owned = {one.untyped_storage().data_ptr() for one in (*leave_out.parameters(), *leave_out.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()  # held until all is counted, so that no address is used twice
    del result
    return sum(kept.values()) / 1e6
