"""A frozen RMSNorm: what it is given is saved, and one number a row; on a CPU piece by piece, in both directions."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lora_ft.ops.pieces import pieces


def rms_norm(x: torch.Tensor, weight: torch.Tensor, *, eps: float, offset: float = 0.0) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + eps) * (offset + weight)` along the last dimension.

    It is computed in float32 or wider. Without an offset what is normalised has the type of x before the weight is
    multiplied (Llama, Qwen, Mistral), with one the product has (Gemma).

    Args:
        x: `(..., width)`, of any floating type.
        weight: `(width,)`; it gets no gradient.
        eps: Is added to the mean of the squares.
        offset: Is added to the weight.

    Returns:
        `(..., width)`.

    Source: Zhang and Sennrich, Root Mean Square Layer Normalization (2019), arXiv:1910.07467, equation 4; the gradient
    follows by the quotient rule.
    """
    normed: torch.Tensor = _RmsNorm.apply(x, weight, (eps, offset))  # type: ignore[no-untyped-call]
    return normed


class _RmsNorm(torch.autograd.Function):
    """See `rms_norm`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, added: tuple[float, float]) -> torch.Tensor:
        eps, offset = added
        rows = x.reshape(-1, x.shape[-1])
        wide = torch.promote_types(x.dtype, torch.float32)
        rates = rows.new_empty(len(rows), 1, dtype=wide)
        normed = rows.new_empty(rows.shape, dtype=x.dtype if offset else torch.promote_types(x.dtype, weight.dtype))
        shifted = weight.to(wide) + offset if offset else weight
        for row, rate, into in pieces(rows, rates, normed):
            own = row.to(wide)
            torch.rsqrt(own.pow(2).mean(-1, keepdim=True).add_(eps), out=rate)
            scaled = own * rate
            into.copy_(scaled.mul_(shifted) if offset else scaled.to(x.dtype) * shifted)
        ctx.save_for_backward(rows, rates, weight)
        ctx.shape, ctx.offset = x.shape, offset
        return normed.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        rows, rates, weight = ctx.saved_tensors
        width, wide = rows.shape[1], rates.dtype
        shifted = weight.to(wide) + ctx.offset
        of_x = torch.empty_like(rows)
        for came, row, rate, into in pieces(gradient.reshape(rows.shape), rows, rates, of_x):
            own, passed = row.to(wide), came.to(wide) * shifted
            along = (passed * own).sum(-1, keepdim=True).mul_(rate.pow(3))
            into.copy_(passed.mul_(rate).addcmul_(own, along, value=-1 / width))
        return of_x.view(ctx.shape), None, None
