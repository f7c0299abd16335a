"""Tensors and modules of which every process has a piece, as PyTorch's FSDP2 cuts them.

A forward pass through such a module is a collective: all processes have to do it, as often as each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor; to be called by all processes, since it is put together from their pieces.

    Args:
        tensor: One that is cut, or any other.

    Returns:
        A plain tensor of the same shape, on the same device; the tensor itself where it is not cut.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def piece(tensor: torch.Tensor) -> torch.Tensor:
    """What this process has of a tensor; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut_like(tensor: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """Cuts a tensor that all processes have as another one is cut.

    Args:
        tensor: The same on all processes, of the shape of `model`.
        model: One that is cut, or any other.

    Returns:
        On the device of `model`; cut if that is.
    """
    if not isinstance(model, DTensor):
        return tensor.to(model.device)
    mesh = model.device_mesh
    return distribute_tensor(tensor.to(model.device), mesh, model.placements, src_data_rank=None)


def is_cut(module: nn.Module) -> bool:
    """Whether a module is cut, so that its forward pass is a collective."""
    return isinstance(module, FSDPModule)


def let_go(module: nn.Module) -> None:
    """Has each process keep its pieces alone; without a backward pass, some are left whole after a forward pass."""
    for one in module.modules():
        if isinstance(one, FSDPModule):
            one.reshard()


@contextmanager
def put_together(module: nn.Module) -> Iterator[None]:
    """Has each process hold all that the module itself was cut into, while modules within it are called directly.

    What those were cut into themselves they put together on their own.
    """
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()
