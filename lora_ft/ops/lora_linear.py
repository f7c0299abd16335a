"""Frozen linear layers that read the same input, each with its LoRA: one function, one saved input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lora_ft.ops.byte_dropout import ByteMask, draw_mask, pieces_of


@dataclass(frozen=True)
class FrozenLinear:
    """What does not train of one of the layers.

    Attributes:
        weight: Returns the weight `(out, in)` in any type, dequantised where it is kept in 4 bits; asked for in both
            directions. None: only what LoRA adds is computed.
        bias: `(out,)`, or None.
        scaling: What the product of B and A is multiplied by.
    """

    weight: Callable[[], torch.Tensor] | None
    bias: torch.Tensor | None
    scaling: float


def lora_linears(
    x: torch.Tensor,
    layers: Sequence[FrozenLinear],
    adapters: Sequence[tuple[torch.Tensor, torch.Tensor]],
    *,
    p: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, ...]:
    """`x W^T + bias + scaling * dropout(x) A^T B^T` of each layer.

    x is saved once for all of them, and with dropout one byte mask `(rows, in)` beside it; nothing else that is as wide
    as x or as an output. All is computed in one type; gradients have the types of what they are of.

    Args:
        x: What all layers read, `(..., in)`, in any floating type.
        layers: What is frozen, one or more.
        adapters: A `(r, in)` and B `(out, r)` of each layer.
        p: Probability with which a value that A reads is dropped, from 0 to `byte_dropout.MOST_DROPPED`.
        dtype: What is computed in.

    Returns:
        The outputs, `(..., out)` each, in that type.

    Source: Hu et al., LoRA (2021), arXiv:2106.09685, equation 3; the gradients follow by the product rule.
    """
    mask = draw_mask(x.shape[:-1].numel(), x.shape[-1], p=p, device=x.device) if p else None
    flat = [matrix for pair in adapters for matrix in pair]
    call = _Call(tuple(layers), mask, dtype)
    outputs: tuple[torch.Tensor, ...] = _LoraLinears.apply(x, call, *flat)  # type: ignore[no-untyped-call]
    return outputs


@dataclass(frozen=True)
class _Call:
    """What a call of `lora_linears` is about besides tensors with gradients."""

    layers: tuple[FrozenLinear, ...]
    mask: ByteMask | None
    dtype: torch.dtype


class _LoraLinears(torch.autograd.Function):
    """See `lora_linears`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, call: _Call, *flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(x.device.type, enabled=False):
            rows = x.reshape(-1, x.shape[-1]).to(call.dtype)  # (n, in)
            a, bs = _in_type(flat, call.dtype)
            hidden = rows @ a.t() if call.mask is None else _hidden(rows, a, call.mask)  # (n, all r)
            parts = torch.split(hidden, [b.shape[1] for b in bs], dim=1)
            outputs = tuple(
                _output(rows, one, own, b, shape=x.shape) for one, own, b in zip(call.layers, parts, bs, strict=True)
            )
        ctx.save_for_backward(rows, hidden, *(() if call.mask is None else (call.mask.kept,)), *flat)
        ctx.layers, ctx.shape, ctx.type = call.layers, x.shape, x.dtype
        ctx.scale = None if call.mask is None else call.mask.scale
        ctx.set_materialize_grads(False)  # an output that nobody reads gives its adapter no gradient, not one of zeros
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        rows, hidden, *flat = ctx.saved_tensors
        mask = None if ctx.scale is None else ByteMask(flat.pop(0), ctx.scale)
        a, bs = _in_type(flat, rows.dtype)
        x_wanted, _, *wanted = ctx.needs_input_grad
        ranks = [b.shape[1] for b in bs]
        of_x = torch.empty_like(rows) if x_wanted else None
        of_hidden: list[torch.Tensor] = []
        of_b: list[torch.Tensor | None] = []
        with torch.autocast(rows.device.type, enabled=False):
            first = True
            parts = torch.split(hidden, ranks, dim=1)
            for layer, gradient, b, own in zip(ctx.layers, gradients, bs, parts, strict=True):
                if gradient is None:
                    of_hidden.append(torch.zeros_like(own))
                    of_b.append(None)
                    continue
                g = gradient.reshape(-1, gradient.shape[-1])  # (n, out)
                of_hidden.append((g @ b).mul_(layer.scaling))
                of_b.append((own.t() @ g).t().mul(layer.scaling))  # twice as fast as g^T own
                if of_x is not None and layer.weight is not None:
                    weight = layer.weight().to(g.dtype)
                    if first:
                        torch.mm(g, weight, out=of_x)
                    else:
                        of_x.addmm_(g, weight)
                    first = False
            if of_x is not None and first:
                of_x.zero_()
            of_a = _through_a(rows, a, torch.cat(of_hidden, dim=1), of_x=of_x, mask=mask)
        of_flat: list[torch.Tensor | None] = []
        for part, one in zip(torch.split(of_a, ranks), of_b, strict=True):
            of_flat += [None if one is None else part, one]
        typed = [
            one.to(leaf.dtype) if one is not None and want else None
            for one, leaf, want in zip(of_flat, flat, wanted, strict=True)
        ]
        return (None if of_x is None else of_x.view(ctx.shape).to(ctx.type), None, *typed)


def _in_type(flat: Sequence[torch.Tensor], dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """All A's on top of each other, `(all r, in)`, and the B's."""
    return torch.cat([one.to(dtype) for one in flat[::2]]), [one.to(dtype) for one in flat[1::2]]


def _output(
    rows: torch.Tensor, layer: FrozenLinear, hidden: torch.Tensor, b: torch.Tensor, *, shape: torch.Size
) -> torch.Tensor:
    """What one layer says, `(..., out)`; no view, since models change outputs in place (wav2vec2 does)."""
    output = rows.new_empty(*shape[:-1], len(b))
    flat = output.view(-1, len(b))
    if layer.weight is None:
        torch.mm(hidden, b.t(), out=flat).mul_(layer.scaling)
        return output
    weight, bias = layer.weight().to(rows.dtype), None if layer.bias is None else layer.bias.to(rows.dtype)
    if bias is not None and rows.device.type == "cpu":  # addmm (torch 2.13) would first write it into all of the output
        torch.mm(rows, weight.t(), out=flat)
        with_ones = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=1)  # (n, r + 1)
        with_bias = torch.cat([b * layer.scaling, bias[:, None]], dim=1)  # (out, r + 1)
        flat.addmm_(with_ones, with_bias.t())
        return output
    if bias is None:
        torch.mm(rows, weight.t(), out=flat)
    else:
        torch.addmm(bias, rows, weight.t(), out=flat)
    flat.addmm_(hidden, b.t(), alpha=layer.scaling)
    return output


def _hidden(rows: torch.Tensor, a: torch.Tensor, mask: ByteMask) -> torch.Tensor:
    """What all A's say of what is kept of `(n, in)`, `(n, all r)`; that is never there as a whole."""
    hidden = rows.new_empty(len(rows), len(a))
    for piece, numbers in pieces_of(mask.kept, rows.dtype):
        torch.mm(numbers.mul_(rows[piece]), a.t(), out=hidden[piece])
    return hidden.mul_(mask.scale)


def _through_a(
    rows: torch.Tensor, a: torch.Tensor, of_hidden: torch.Tensor, *, of_x: torch.Tensor | None, mask: ByteMask | None
) -> torch.Tensor:
    """The gradient of all A's, `(all r, in)`; what reaches x through them is added to its gradient in place."""
    if mask is None:
        if of_x is not None:
            of_x.addmm_(of_hidden, a)
        return of_hidden.t() @ rows
    of_hidden.mul_(mask.scale)
    of_a = torch.zeros_like(a, dtype=torch.promote_types(a.dtype, torch.float32))  # pieces of 16 bits add up in 32
    for piece, numbers in pieces_of(mask.kept, a.dtype):
        if of_x is not None:
            of_x[piece].addcmul_(of_hidden[piece] @ a, numbers)
        of_a += of_hidden[piece].t() @ numbers.mul_(rows[piece])
    return of_a
