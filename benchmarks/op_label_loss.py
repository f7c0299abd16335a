"""Head and loss of a language model, forward and backward, three ways: what each takes of time and memory.

    python -m benchmarks.op_label_loss

1,024 tokens of a model 576 wide (SmolLM2-135M's), 30 % of them with a label, float32, two threads:

- full: all logits, torch's cross-entropy over the labelled ones (the usual script);
- recomputed: labelled positions in chunks of 256, each chunk's logits made again in the backward pass (TRL's default);
- ours: `lora_ft.ops.label_loss`.

Times are medians of three, interleaved in one process; peaks are of a process each, above what it
held before; apart: the relative distance from full.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from lora_ft.ops.label_loss import FrozenHead, label_cross_entropy

TOKENS, WIDTH, SHARE, CHUNK, TIMES, THREADS = 1_024, 576, 0.3, 256, 3, 2
VOCABULARIES = (49_152, 151_936)

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def full(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """All logits."""
    return F.cross_entropy(hidden @ weight.T, labels, reduction="sum")


def recomputed(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Chunks of labelled positions, made again in the backward pass."""

    def of_chunk(part: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(part @ weight.T, wanted, reduction="sum")

    kept = labels.ne(-100)
    pairs = zip(hidden[kept].split(CHUNK), labels[kept].split(CHUNK), strict=True)
    parts = [checkpoint(of_chunk, part, wanted, use_reentrant=False) for part, wanted in pairs]
    return torch.stack(parts).sum()


def ours(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Gradients made in the forward pass."""
    kept = labels.ne(-100)
    return label_cross_entropy(hidden[kept], labels[kept], head=FrozenHead(weight, weight.dtype)).sum()


WAYS: dict[str, Loss] = {"full": full, "recomputed": recomputed, "ours": ours}


def inputs(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, the head's weight, and labels."""
    torch.manual_seed(0)
    labels = torch.randint(0, vocabulary, (TOKENS,))
    labels[torch.rand(TOKENS) >= SHARE] = -100
    return torch.randn(TOKENS, WIDTH, requires_grad=True), torch.randn(vocabulary, WIDTH) * 0.05, labels


def run(way: Loss, given: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> tuple[float, float, torch.Tensor]:
    """Seconds, loss and gradient of one forward and backward pass."""
    started = time.perf_counter()
    loss = way(*given)
    (gradient,) = torch.autograd.grad(loss, [given[0]])
    return time.perf_counter() - started, float(loss.detach()), gradient


def peak_mb(name: str, vocabulary: int) -> float:
    """What a way needs above its inputs, in a process of its own."""
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.op_label_loss", name, str(vocabulary)], capture_output=True, check=True
    )
    return float(told.stdout)


def own_peak_mb(name: str, vocabulary: int) -> float:
    """The same, in this process."""
    given = inputs(vocabulary)
    run(
        WAYS[name], (given[0], given[1][:64].clone(), torch.where(given[2].eq(-100), -100, given[2] % 64))
    )  # libraries are loaded
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = highest_mb()
    run(WAYS[name], given)
    return highest_mb() - before


def highest_mb() -> float:
    """The largest resident memory of this process so far."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(THREADS)
    if len(sys.argv) > 1:
        print(own_peak_mb(sys.argv[1], int(sys.argv[2])))
        return
    print(
        "| vocabulary | way | ms | times ours | peak MB | loss apart | gradient apart |\n|---|---|---|---|---|---|---|"
    )
    for vocabulary in VOCABULARIES:
        given = inputs(vocabulary)
        found = {name: [run(way, given)] for name, way in WAYS.items()}
        for _ in range(TIMES - 1):
            for name, way in WAYS.items():
                found[name].append((run(way, given)[0], *found[name][0][1:]))
        middle = {name: statistics.median(one[0] for one in runs) for name, runs in found.items()}
        _, loss, gradient = found["full"][0]
        for name, runs in found.items():
            apart = float((runs[0][2] - gradient).abs().max() / gradient.abs().max())
            print(
                f"| {vocabulary:,} | {name} | {middle[name] * 1e3:.0f} | {middle[name] / middle['ours']:.2f} | "
                f"{peak_mb(name, vocabulary):.0f} | {abs(runs[0][1] / loss - 1):.0e} | {apart:.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
