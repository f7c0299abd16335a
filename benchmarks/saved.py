"""What autograd keeps of a forward pass for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef


class SavedStorages:
    """The distinct storages that are kept while they are counted; those of a model's own tensors are left out."""

    def __init__(self) -> None:
        self._sizes: dict[StorageWeakRef, int] = {}

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return sum(self._sizes.values())

    @contextmanager
    def counting(self, *, leave_out: nn.Module) -> Iterator[None]:
        """Counts within; an address that is used again is another storage.

        Args:
            leave_out: The model whose parameters and buffers are there anyway.
        """
        owned = {one.untyped_storage().data_ptr() for one in (*leave_out.parameters(), *leave_out.buffers())}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in owned:
                self._sizes[StorageWeakRef(storage)] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield


def saved_mb(forward: Callable[[], Any], *, leave_out: nn.Module) -> float:
    """Megabytes that a forward pass keeps, parameters and buffers of a model left out.

    Args:
        forward: Computes something that has a gradient.
        leave_out: The model.
    """
    saved = SavedStorages()
    with saved.counting(leave_out=leave_out):
        result = forward()
    del result
    return saved.bytes / 1e6
