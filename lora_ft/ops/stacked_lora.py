"""LoRA of many adapters in one batch: the rows of each adapter get its own low-rank update, in a few batched GEMMs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

SEGMENT_FLOATS = 40_000
"""What starting the two GEMMs of one segment costs, in floats that could be copied meanwhile: about 10 us, measured on
two cores; a wrong value makes a pass slower, never wrong."""


def add_stacked_lora(
    out: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, counts: Sequence[int]
) -> None:
    """Adds `x A_k^T B_k` to the rows of the k-th adapter, for all adapters; `out` is changed in place.

    Equal counts need no copy at all; else either the rows are padded to equal counts, or the pair of matrices is
    repeated for each row, or each adapter gets GEMMs of its own: whichever copies least at this shape.

    Args:
        out: `(rows, tokens, out)`, contiguous: what the base layer answered.
        x: `(rows, tokens, in)`: its input; the rows of one adapter lie side by side.
        a: `(adapters, rank, in)`.
        b: `(adapters, rank, out)`, times the scaling: transposed from what peft keeps.
        counts: Rows of each adapter, in the order of `a`; none is 0, and their sum is `rows`.

    Source:
        Chen et al., Punica (2023), section 4; Sheng et al., S-LoRA (2023), section 5.
    """
    rows, tokens, width = out.shape
    adapters, rank, read = a.shape
    if min(counts) == max(counts):
        _add(out.view(adapters, -1, width), x.reshape(adapters, -1, read), a, b)
        return
    most = max(counts)
    padded = adapters * most * tokens * (read + width)
    repeated = rows * rank * (read + width)
    if adapters * SEGMENT_FLOATS <= min(padded, repeated):
        starts = [0, *torch.tensor(counts).cumsum(0).tolist()]
        for index, (start, end) in enumerate(pairwise(starts)):
            one = slice(index, index + 1)
            _add(out[start:end].view(1, -1, width), x[start:end].reshape(1, -1, read), a[one], b[one])
        return
    owner = torch.repeat_interleave(torch.arange(adapters, device=x.device), torch.tensor(counts, device=x.device))
    if repeated <= padded:
        _add(out, x, a[owner], b[owner])
        return
    first = torch.tensor([0, *counts[:-1]], device=x.device).cumsum(0)
    place = owner * most + torch.arange(rows, device=x.device) - first[owner]
    spread = x.new_zeros(adapters * most, tokens, read)
    spread[place] = x
    delta = torch.bmm(torch.bmm(spread.view(adapters, -1, read), a.transpose(1, 2)), b)
    out.add_(delta.view(adapters * most, tokens, width)[place])


def scale_rows(out: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, *, counts: Sequence[int]) -> None:
    """Scales what a base layer answered to the rows of the k-th adapter, without its bias; `out` is changed in place.

    Args:
        out: `(rows, tokens, out)`.
        scale: `(adapters, out)`.
        bias: `(out,)` of the base layer, or None.
        counts: Rows of each adapter; their sum is `rows`.

    Source:
        Liu et al., DoRA (2024), equation 5: magnitude over the norm of each row of the adapted weight.
    """
    repeats = torch.tensor(counts, device=out.device)
    factors = torch.repeat_interleave(scale.to(out.dtype), repeats, dim=0)[:, None]
    if bias is None:
        out.mul_(factors)
    else:
        out.sub_(bias).mul_(factors).add_(bias)


def _add(out: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """`out += x a^T b` for batches of matrices `(n, t, out)`, `(n, t, in)`, `(n, r, in)`, `(n, r, out)`."""
    h = torch.bmm(x, a.transpose(1, 2))
    if h.dtype == out.dtype == b.dtype:
        out.baddbmm_(h, b)
    else:  # under autocast, or a base in 16 bits: as peft adds it
        out.add_(torch.bmm(h, b))
