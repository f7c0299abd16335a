"""The product in the middle of a SwiGLU block: its two factors are saved, and nothing that follows from them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.autograd.function import once_differentiable

from lora_ft.ops.pieces import pieces


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up`, with the gradients that torch makes of it.

    torch saves silu(gate) for the product beside the two; here it is made once more in the backward pass, on a CPU
    piece by piece: a step waits for memory there, not for this.

    Args:
        gate: `(..., width)`, of any floating type.
        up: The same; of another type, torch computes all of it.

    Returns:
        Of that shape and type.

    Source: Shazeer, GLU Variants Improve Transformer (2020), arXiv:2002.05202, equation 6.
    """
    if gate.dtype != up.dtype:
        return F.silu(gate) * up
    product: torch.Tensor = _Swiglu.apply(gate, up)  # type: ignore[no-untyped-call]
    return product


class _Swiglu(torch.autograd.Function):
    """See `swiglu`."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        gates, ups = _rows(gate), _rows(up)
        product = torch.empty_like(gates)
        for one, other, into in pieces(gates, ups, product):
            torch.mul(F.silu(one), other, out=into)
        return product.view(gate.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = (_rows(one) for one in ctx.saved_tensors)
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        for came, one, other, into_gate, into_up in pieces(_rows(gradient), gate, up, of_gate, of_up):
            torch.mul(came, F.silu(one), out=into_up)
            torch.ops.aten.silu_backward.grad_input(came * other, one, grad_input=into_gate)
        return of_gate.view(gradient.shape), of_up.view(gradient.shape)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """`(..., width)` as contiguous `(rows, width)`."""
    return tensor.reshape(-1, tensor.shape[-1]).contiguous()
