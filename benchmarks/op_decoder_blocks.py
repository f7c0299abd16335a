"""RMSNorm and the product of SwiGLU, ours beside the lines of transformers: forward, backward, and what is saved.

    python -m benchmarks.op_decoder_blocks [--tokens 2048] [--rounds 15]

Of SmolLM2-135M's widths, 576 and 1,536, float32. Milliseconds are medians over interleaved rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from benchmarks.saved import saved_mb
from lora_ft.ops.rms_norm import rms_norm
from lora_ft.ops.swiglu import swiglu

HIDDEN, INNER, EPS = 576, 1536, 1e-5

Block = Callable[..., torch.Tensor]


def transformers_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As `LlamaRMSNorm` writes it."""
    wide = x.to(torch.float32)
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype)


def our_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Ours."""
    return rms_norm(x, weight, eps=EPS)


def transformers_gate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """As `LlamaMLP` writes it."""
    return F.silu(gate) * up


def timed(block: Block, inputs: list[torch.Tensor], gradient: torch.Tensor) -> tuple[float, float]:
    """Milliseconds of one forward and one backward pass."""
    started = time.perf_counter()
    output = block(*inputs)
    between = time.perf_counter()
    torch.autograd.grad(output, [one for one in inputs if one.requires_grad], gradient)
    return 1e3 * (between - started), 1e3 * (time.perf_counter() - between)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.manual_seed(0)
    hidden = torch.randn(options.tokens, HIDDEN, requires_grad=True)
    gate, up = (torch.randn(options.tokens, INNER, requires_grad=True) for _ in range(2))
    blocks: dict[str, tuple[dict[str, Block], list[torch.Tensor]]] = {
        "RMSNorm": ({"transformers": transformers_norm, "ours": our_norm}, [hidden, torch.rand(HIDDEN)]),
        "SwiGLU's product": ({"transformers": transformers_gate, "ours": swiglu}, [gate, up]),
    }
    print(f"{options.tokens} tokens, fp32, {torch.get_num_threads()} threads")
    print("| block | way | forward ms | backward ms | saved MB |")
    print("|---|---|---:|---:|---:|")
    for name, (ways, inputs) in blocks.items():
        gradient = torch.randn(inputs[0].shape)
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, block in ways.items():
                times[way].append(timed(block, inputs, gradient))
        for way, block in ways.items():
            forward, backward = (statistics.median(part) for part in zip(*times[way], strict=True))
            saved = saved_mb(lambda block=block, inputs=inputs: block(*inputs), leave_out=nn.Module())
            print(f"| {name} | {way} | {forward:.2f} | {backward:.2f} | {saved:.1f} |")


if __name__ == "__main__":
    main()
