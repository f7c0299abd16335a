"""LoRA layers by our function beside peft's own: forward and backward of all that one transformer layer has.

    python -m benchmarks.op_lora_linear [--tokens 2560] [--rounds 7]

Milliseconds are medians over interleaved rounds; saved MB is what autograd keeps for the backward pass.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn

import lora_ft  # noqa: F401  # makes peft importable beside a CPU torch
from benchmarks.saved import saved_mb
from lora_ft.adapters.lean_lora import lean_layers
from lora_ft.adapters.lean_readers import Readers

SHAPES = {
    "MiniLM (384 wide)": (("q", "k", "v", "o"), 384, ("up",), 1536, "down"),
    "SmolLM2-135M (576 wide)": (("q", "k", "v", "o"), 576, ("gate", "up"), 1536, "down"),
}


class Layers(nn.Module):
    """The linear layers of one transformer layer, in the order in which it calls them."""

    def __init__(self, names: tuple[str, ...], hidden: int, wide: tuple[str, ...], inner: int, down: str) -> None:
        super().__init__()
        self.names, self.wide, self.last = names, wide, down
        for name in names:
            self.add_module(name, nn.Linear(hidden, hidden))
        for name in wide:
            self.add_module(name, nn.Linear(hidden, inner))
        self.add_module(down, nn.Linear(inner, hidden))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *readers, last = (self.get_submodule(name) for name in self.names)
        x = x + last(sum(one(x) for one in readers))
        inner = sum(self.get_submodule(name)(x) for name in self.wide)
        return x + self.get_submodule(self.last)(inner)


def adapted(shape: str, *, dropout: float, ours: bool) -> nn.Module:
    """A layer with LoRA of rank 8 on all of it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    names, hidden, wide, inner, down = SHAPES[shape]
    config = LoraConfig(r=8, lora_alpha=16, lora_dropout=dropout, target_modules=[*names, *wide, down])
    readers = Readers(byte_dropout=True, room_bytes=0) if ours else None
    with nullcontext() if readers is None else lean_layers(config, readers):
        model: nn.Module = get_peft_model(Layers(names, hidden, wide, inner, down), config)  # type: ignore[arg-type]
    if readers is not None:
        with readers.watching(model):
            model(torch.zeros(1, hidden))
    return model.train()


def timed(steps: dict[str, Callable[[], None]], *, rounds: int) -> dict[str, float]:
    """Median milliseconds of each, interleaved; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return {name: 1e3 * statistics.median(found[1:]) for name, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=2560)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(f"{options.tokens} tokens, fp32, {torch.get_num_threads()} threads")
    print("| layers | lora_dropout | peft ms | ours ms | times | peft MB saved | ours MB saved |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for shape in SHAPES:
        for dropout in (0.0, 0.1):
            print(line(shape, dropout, tokens=options.tokens, rounds=options.rounds))


def line(shape: str, dropout: float, *, tokens: int, rounds: int) -> str:
    """One line of the table."""
    x = torch.randn(tokens, SHAPES[shape][1], requires_grad=True)
    models = {name: adapted(shape, dropout=dropout, ours=name == "ours") for name in ("peft", "ours")}
    steps = {name: lambda model=model: model(x).sum().backward() for name, model in models.items()}
    ms = timed(steps, rounds=rounds)
    mb = {name: saved_mb(lambda model=model: model(x), leave_out=model) for name, model in models.items()}
    times = f"{ms['peft']:.0f} | {ms['ours']:.0f} | {ms['peft'] / ms['ours']:.2f}"
    return f"| {shape} | {dropout} | {times} | {mb['peft']:.0f} | {mb['ours']:.0f} |"


if __name__ == "__main__":
    main()
